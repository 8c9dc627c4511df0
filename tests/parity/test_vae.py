"""The VAE against recorded outputs and mindone's class, in strips and at once, its key namings, and its errors."""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from library.data.batch import Posterior
from library.device.profile import CPU, Device
from library.families.sdxl.shapes import FULL_SDXL, TINY_SDXL, VAE_PREFIX, SdxlConfig, checkpoint_shapes
from library.graphs.block import Block, Layers
from library.graphs.program import Forward
from library.graphs.values import Trace
from library.models import vae_blocks
from library.models.random_weights import random_weight
from library.models.vae import Vae, load_vae, vae_digest
from library.models.vae_keys import diffusers_vae_key, infer_vae_spec, original_vae_keys
from library.models.vae_layout import vae_layout, vae_shapes
from tests.parity.traced import PROFILES
from tools.mindone_on_cpu import diffusers_class

pytestmark = pytest.mark.usefixtures("device")

TOLERANCE = 1e-5
"""Relative L2: float32 sums of a few thousand terms in another order; found are 1.4e-6."""
HALF_TOLERANCE = 1e-2
"""Relative L2 in float16: 11 bits, so each of some 60 layers rounds by up to 5e-4; found are 1.5e-3 to 3e-3."""
HALF_NOISE = 2e-4
"""That much at least the numbers in float16 must be off, else it was not float16 that computed."""
CHECKPOINT_SEED = 1
STAGES = 4


def sdxl_vae_shapes(config: SdxlConfig) -> dict[str, tuple[int, ...]]:
    shapes = checkpoint_shapes(config).items()
    return {key.removeprefix(VAE_PREFIX): shape for key, shape in shapes if key.startswith(VAE_PREFIX)}


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    shapes = sdxl_vae_shapes(TINY_SDXL).items()
    return {key: random_weight(CHECKPOINT_SEED, VAE_PREFIX + key, shape) for key, shape in shapes}


@pytest.fixture(scope="module")
def diffusers_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under diffusers' names, where the attention has linear layers."""
    return {
        diffusers_vae_key(key, STAGES): array.reshape(array.shape[:2]) if "attn_1" in key and array.ndim == 4 else array
        for key, array in weights.items()
    }


@pytest.fixture(scope="module")
def tiny_vae(weights: Mapping[str, np.ndarray]) -> Vae:
    return load_vae(weights, Device(CPU))


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, np.ndarray]:
    return load_file(golden / "models.safetensors")


# --- numbers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("compiled", [True, False])
def test_both_devices_ways_give_the_recorded_numbers(
    profile: str, compiled: bool, weights: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> None:
    vae = load_vae(weights, Device(PROFILES[profile], compiled=compiled))
    mean, logvar = vae.encode_moments(recorded["vae.image"])
    assert relative_error(mean, recorded["vae.mean"]) < TOLERANCE
    assert relative_error(logvar, recorded["vae.logvar"]) < TOLERANCE
    assert relative_error(vae.decode(recorded["vae.latents"]), recorded["vae.decoded"]) < TOLERANCE


@pytest.mark.parametrize("size", [(72, 40), (40, 104)])
def test_any_multiple_of_eight_pixels_is_what_mindone_computes(
    size: tuple[int, int], tiny_vae: Vae, diffusers_weights: dict[str, np.ndarray]
) -> None:
    """At both, sides of the coarsest resolution are odd, and the weights' statistics are not those of the recording."""
    model = mindones_vae(diffusers_weights)
    image, latents = random(2, 3, *size), random(2, 4, size[0] // 8, size[1] // 8)
    mean, logvar = np.split(model.encode(Tensor(image))[0].asnumpy(), 2, axis=1)
    found_mean, found_logvar = tiny_vae.encode_moments(image)
    assert relative_error(found_mean, mean) < TOLERANCE
    assert relative_error(found_logvar, logvar) < TOLERANCE
    assert relative_error(tiny_vae.decode(latents), model.decode(Tensor(latents))[0].asnumpy()) < TOLERANCE


def mindones_vae(diffusers_weights: Mapping[str, np.ndarray]) -> Any:
    model = diffusers_class("AutoencoderKL")(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * STAGES,
        up_block_types=("UpDecoderBlock2D",) * STAGES,
    )
    parameters = dict(model.parameters_and_names())
    assert set(parameters) == set(diffusers_weights)
    for key, parameter in parameters.items():
        parameter.set_data(Tensor(diffusers_weights[key]))
    model.set_train(False)
    return model


def test_several_pictures_are_each(tiny_vae: Vae) -> None:
    latents, images = random(2, 4, 4, 6), random(3, 3, 32, 48)
    together = tiny_vae.decode(latents)
    assert together.shape == (2, 3, 32, 48)
    assert np.array_equal(together[1:], tiny_vae.decode(latents[1:]))
    mean, logvar = tiny_vae.encode_moments(images)
    for i in range(3):
        one_mean, one_logvar = tiny_vae.encode_moments(images[i : i + 1])
        assert relative_error(mean[i : i + 1], one_mean) < TOLERANCE
        assert relative_error(logvar[i : i + 1], one_logvar) < TOLERANCE


@pytest.mark.parametrize(
    ("max_activation", "calls"),
    [
        (1, 1000),  # two rows at a time, the least
        (2 * 64 * 48 * 10, 200),  # ten rows and an uneven last strip at the finest resolution
    ],
)
def test_strips_give_what_the_whole_gives(
    max_activation: int, calls: int, tiny_vae: Vae, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention in strips too: 9 x 6 pixels at the coarsest resolution."""
    profile = replace(CPU, max_activation=max_activation, max_scores=54 * 12)
    in_strips = load_vae(weights, Device(profile))
    image, latents = random(2, 3, 72, 48), random(1, 4, 9, 6)
    mean, logvar = tiny_vae.encode_moments(image)
    decoded = tiny_vae.decode(latents)
    seen = watch(monkeypatch)
    found_mean, found_logvar = in_strips.encode_moments(image)
    assert relative_error(found_mean, mean) < TOLERANCE
    assert relative_error(found_logvar, logvar) < TOLERANCE
    assert relative_error(in_strips.decode(latents), decoded) < TOLERANCE
    assert len(seen) > calls
    for block, shape in seen:
        assert np.prod(shape) <= max_activation or shape[2] <= 2, (block, shape)


def test_attention_takes_few_pixels_at_a_time(weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load_vae(weights, Device(replace(CPU, max_scores=54 * 12 + 5)))
    seen = watch(monkeypatch)
    vae.decode(random(1, 4, 9, 6))
    assert [shape for block, shape in seen if block.function is vae_blocks.attend] == [
        *[(1, 128, 2, 6)] * 4,  # each of 12 pixels looks at 54
        (1, 128, 1, 6),
    ]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Block, tuple[int, ...]]]:
    """The calls of blocks that follow, with the shape of the strip that each is given."""
    seen: list[tuple[Block, tuple[int, ...]]] = []
    call = Forward.__call__

    def watched(self: Forward, block: Block, *inputs: Tensor) -> Tensor:
        seen.append((block, inputs[0].shape))
        return call(self, block, *inputs)

    monkeypatch.setattr(Forward, "__call__", watched)
    return seen


def test_activations_are_freed_on_the_way(weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer frees the strips of the one before, one by one: never are more values alive than two pictures have."""
    vae = load_vae(weights, Device(replace(CPU, max_activation=32 * 48 * 4)))
    alive: dict[int, int] = {}
    most = 0
    call = Forward.__call__

    def counted(self: Forward, block: Block, *inputs: Tensor) -> Tensor:
        nonlocal most
        output = call(self, block, *inputs)
        weakref.finalize(output, alive.pop, id(output))
        alive[id(output)] = output.size
        most = max(most, sum(alive.values()))
        return output

    monkeypatch.setattr(Forward, "__call__", counted)
    vae.encode_moments(random(1, 3, 96, 48))
    largest = 32 * 96 * 48
    assert largest < most < 2.2 * largest  # a residual block's input and what it makes of it, and some strips


# --- half precision ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", PROFILES)
def test_half_precision_computes(
    profile: str, tiny_vae: Vae, weights: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> None:
    half = load_vae(weights, Device(PROFILES[profile]), ms.float16)
    mean, logvar = half.encode_moments(recorded["vae.image"])
    decoded = half.decode(recorded["vae.latents"])
    for value, name in ((mean, "mean"), (logvar, "logvar"), (decoded, "decoded")):
        assert value.dtype == np.float32
        assert HALF_NOISE < relative_error(value, recorded[f"vae.{name}"]) < HALF_TOLERANCE


@pytest.mark.parametrize("half", [ms.float16, ms.bfloat16])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_operation_gets_inputs_of_one_type(profile: str, half: ms.Type, monkeypatch: pytest.MonkeyPatch) -> None:
    record, mixed, kinds = Trace.record, [], set()

    def checked(self: Trace, function: Any, inputs: Any, *others: Any) -> Any:
        types = {str(x.dtype) for x in inputs}
        kinds.add((function.name, *types))
        if len(types) > 1 and function.name not in ("Cast", "Depend"):
            mixed.append((function.name, [(x.shape, str(x.dtype)) for x in inputs]))
        return record(self, function, inputs, *others)

    monkeypatch.setattr(Trace, "record", checked)
    spec = infer_vae_spec({name: np.broadcast_to(np.float32(0), s) for name, s in sdxl_vae_shapes(TINY_SDXL).items()})
    shapes, traced = vae_shapes(spec), set()
    for block in vae_layout(spec).blocks():
        trace = Trace(PROFILES[profile])
        weights = {name: trace.input(shapes[block.prefix + name], half) for name in block.names}
        channels = next((w.shape[1] for w in weights.values() if len(w.shape) == 4), 64)
        strip, row = (trace.input((2, channels, rows, 4), half) for rows in (4, 1))
        norm = trace.input((2, 2 * channels), ms.float32)
        output = next((w.shape[0] for w in weights.values() if len(w.shape) == 4), 64)
        inputs = {
            vae_blocks.conv: (strip, row, row),
            vae_blocks.upsample: (strip, row, row),
            vae_blocks.downsample: (strip, row),
            vae_blocks.activate: (strip, norm),
            vae_blocks.project: (strip, norm),
            vae_blocks.attend: (strip, norm, strip, strip),
            vae_blocks.add: (strip, strip),
            vae_blocks.add_shortcut: (trace.input((2, output, 4, 4), half), strip),
        }.get(block.function, (strip,))
        layers = Layers(weights, (), block.options, {}, norm, 2, lambda y: y)
        out = block.function(*inputs, layers)
        assert out.dtype == (ms.float32 if block.function is vae_blocks.moments else half)
        traced.add(block.function)
    assert not mixed
    assert len(traced) == 10
    assert {("Conv2D", str(half)), ("SiLU", str(half)), ("Softmax", "Float32"), ("ReduceMean", "Float32")} <= kinds


def test_weights_in_half_precision_are_computed_in_float32(tiny_vae: Vae, weights: dict[str, np.ndarray]) -> None:
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    image = random(1, 3, 32, 32)
    mean, _ = load_vae(half, Device(CPU)).encode_moments(image)
    rounded = load_vae({name: array.astype(np.float32) for name, array in half.items()}, Device(CPU))
    assert mean.dtype == np.float32
    assert np.array_equal(mean, rounded.encode_moments(image)[0])
    assert relative_error(mean, tiny_vae.encode_moments(image)[0]) > HALF_NOISE


# --- the distribution -------------------------------------------------------------------------------------------------
def test_the_distribution_is_the_moments_however_many_images_at_once(tiny_vae: Vae) -> None:
    images = random(3, 3, 32, 32)
    mean, logvar = tiny_vae.encode_moments(images)
    for at_once in (1, 2, 3):
        posterior = tiny_vae.encode(images, at_once)
        assert (posterior.mean.dtype, posterior.std.dtype) == (np.float32, np.float16)
        assert relative_error(posterior.mean, mean) < TOLERANCE
        # float16 keeps 11 bits
        assert relative_error(posterior.std.astype(np.float32), np.exp(logvar / 2)) < 2**-11
    wide = Posterior(np.full((1, 4, 2, 2), 3.0, np.float32), np.full((1, 4, 2, 2), 2.0, np.float16))
    drawn = wide.draw(np.full((1, 4, 2, 2), 0.5))
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, 4.0)


def test_log_variance_is_clamped(weights: dict[str, np.ndarray]) -> None:
    bias = np.concatenate([np.zeros(4), [-100.0, 100.0, 0.0, 0.0]]).astype(np.float32)
    changed = weights | {"quant_conv.weight": np.zeros((8, 8, 1, 1), np.float32), "quant_conv.bias": bias}
    _, logvar = load_vae(changed, Device(CPU)).encode_moments(np.zeros((1, 3, 32, 32), np.float32))
    assert [float(channel.max()) for channel in logvar[0]] == [-30.0, 20.0, 0.0, 0.0]


# --- names, layout, errors --------------------------------------------------------------------------------------------
def test_a_vaes_digest_is_of_its_values_in_any_naming(
    weights: dict[str, np.ndarray], diffusers_weights: dict[str, np.ndarray]
) -> None:
    assert vae_digest(diffusers_weights) == vae_digest(weights)
    assert vae_digest({VAE_PREFIX + key: array for key, array in weights.items()}) == vae_digest(weights)
    changed = weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + np.float32(1e-3)}
    assert vae_digest(changed) != vae_digest(weights)


def test_layout_is_read_from_the_shapes(weights: dict[str, np.ndarray]) -> None:
    spec = infer_vae_spec(weights)
    assert (spec.widths, spec.res_blocks, spec.image_channels, spec.latent_channels, spec.downscale) == (
        (32, 64, 128, 128), 2, 3, 4, 8,
    )  # fmt: skip
    full = sdxl_vae_shapes(FULL_SDXL)
    spec = infer_vae_spec({name: np.broadcast_to(np.float32(0), shape) for name, shape in full.items()})
    assert vae_shapes(spec) == full


def test_every_naming_gives_the_original_names(weights: dict[str, np.ndarray]) -> None:
    new = [diffusers_vae_key(name, STAGES) for name in weights]
    assert len(set(new)) == len(weights) and not set(new) & {n for n in weights if ".mid." in n or ".up." in n}
    old = [
        n.replace("to_out.0", "proj_attn").replace("to_q", "query").replace("to_k", "key").replace("to_v", "value")
        for n in new
    ]
    checkpoint = [*(VAE_PREFIX + name for name in weights), "model.diffusion_model.out.0.weight"]
    with_leftovers = [*weights, "loss.logvar", "model_ema.decay"]
    for names in (new, old, checkpoint, with_leftovers):
        found = original_vae_keys(names)
        assert set(found) == set(weights)
        assert set(found.values()) <= set(names)
    assert original_vae_keys(new)["decoder.up.3.block.0.conv1.weight"] == "decoder.up_blocks.0.resnets.0.conv1.weight"


@pytest.mark.parametrize("prefix", ["", VAE_PREFIX])
def test_each_naming_is_the_same_vae(
    prefix: str,
    tiny_vae: Vae,
    weights: dict[str, np.ndarray],
    diffusers_weights: dict[str, np.ndarray],
) -> None:
    named = {prefix + name: array for name, array in weights.items()} if prefix else diffusers_weights
    latents = random(1, 4, 4, 4)
    assert np.array_equal(load_vae(named, Device(CPU)).decode(latents), tiny_vae.decode(latents))


def test_what_does_not_fit_is_told_at_once(weights: dict[str, np.ndarray]) -> None:
    broken = dict(weights)
    del broken["decoder.up.3.block.0.conv1.weight"]
    broken["decoder.conv_out.bias"] = np.zeros(5, np.float32)
    broken["encoder.mid.attn_1.q.weight"] = np.zeros((128, 128, 3, 3), np.float32)
    broken["decoder.extra.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError) as error:
        load_vae(broken, Device(CPU))
    message = str(error.value)
    assert "1 missing: decoder.up.3.block.0.conv1.weight" in message
    assert "1 not known: decoder.extra.weight" in message
    assert "2 of another shape: " in message
    assert "decoder.conv_out.bias is [5], expected [3]" in message
    assert "encoder.mid.attn_1.q.weight is [128, 128, 3, 3], expected [128, 128, 1, 1]" in message


def test_what_is_no_vae_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a VAE: it has no encoder\.conv_in\.weight.*1 tensors: out\.0\.weight"):
        load_vae({"out.0.weight": np.zeros(3, np.float32)}, Device(CPU))


def test_a_size_that_does_not_come_out_even_is_refused(tiny_vae: Vae) -> None:
    with pytest.raises(ValueError, match=r"images for the VAE are 36 x 32 pixels: give multiples of 8"):
        tiny_vae.encode_moments(np.zeros((1, 3, 32, 36), np.float32))
