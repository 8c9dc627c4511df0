"""The VAE against recorded outputs, its key namings, and its errors."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from library.data.batch import Posterior
from library.families.sdxl.shapes import TINY_SDXL, VAE_PREFIX, checkpoint_shapes
from library.models import vae as vae_module
from library.models import vae_strips
from library.models.random_weights import random_weight
from library.models.vae import Vae, load_vae, vae_digest
from library.models.vae_keys import diffusers_vae_key, infer_vae_spec, original_vae_keys

TOLERANCE = 1e-4
"""Relative L2: float32 sums of a few thousand terms in another order differ by 1e-6 to 1e-5."""

STRIP_TOLERANCE = 1e-5
"""The same sums, perhaps in another order; a wrong row at a strip's edge shows as 1e-2."""

CHECKPOINT_SEED = 1
STAGES = 4


def tiny_vae_weights() -> dict[str, np.ndarray]:
    shapes = {key: shape for key, shape in checkpoint_shapes(TINY_SDXL).items() if key.startswith(VAE_PREFIX)}
    return {key.removeprefix(VAE_PREFIX): random_weight(CHECKPOINT_SEED, key, shape) for key, shape in shapes.items()}


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def weights(device: None) -> dict[str, np.ndarray]:
    return tiny_vae_weights()


@pytest.fixture(scope="module")
def tiny_vae(weights: Mapping[str, np.ndarray]) -> Vae:
    return load_vae(weights)


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, np.ndarray]:
    return load_file(golden / "models.safetensors")


def test_encode_matches_the_reference(tiny_vae: Vae, recorded: dict[str, np.ndarray]) -> None:
    mean, logvar = tiny_vae.encode_moments(recorded["vae.image"])
    assert relative_error(mean, recorded["vae.mean"]) < TOLERANCE
    assert relative_error(logvar, recorded["vae.logvar"]) < TOLERANCE


def test_decode_matches_the_reference(tiny_vae: Vae, recorded: dict[str, np.ndarray]) -> None:
    assert relative_error(tiny_vae.decode(recorded["vae.latents"]), recorded["vae.decoded"]) < TOLERANCE


def test_decoding_several_pictures_is_decoding_each(tiny_vae: Vae) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype(np.float32)
    together = tiny_vae.decode(latents)
    assert together.shape == (2, 3, 32, 48)
    assert np.array_equal(together[1:], tiny_vae.decode(latents[1:]))


def test_attention_in_chunks_equals_attention_at_once(
    tiny_vae: Vae, recorded: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_module, "_SCORES_AT_ONCE", 100 * 256)  # 256 tokens, 100 queries at a time
    assert relative_error(tiny_vae.decode(recorded["vae.latents"]), recorded["vae.decoded"]) < TOLERANCE


def test_layers_in_strips_give_the_same(tiny_vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, 3, 64, 48)).astype(np.float32)
    latents = rng.standard_normal((1, 4, 8, 6)).astype(np.float32)
    whole_mean, whole_decoded = tiny_vae.encode_moments(image)[0], tiny_vae.decode(latents)
    calls = []
    strip = vae_strips._strip
    monkeypatch.setattr(vae_strips, "_strip", lambda *args: calls.append(args[1]) or strip(*args))
    monkeypatch.setattr(vae_strips, "_WHOLE_BYTES", 100_000)  # the first layers' activations have 800 kB
    assert relative_error(tiny_vae.encode_moments(image)[0], whole_mean) < STRIP_TOLERANCE
    assert relative_error(tiny_vae.decode(latents), whole_decoded) < STRIP_TOLERANCE
    assert len(calls) > 50  # it was done in strips


def test_the_distribution_is_the_moments_however_many_images_at_once(tiny_vae: Vae) -> None:
    images = np.random.default_rng(3).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
    mean, logvar = tiny_vae.encode_moments(images)
    for at_once in (1, 2, 3):
        posterior = tiny_vae.encode(images, at_once)
        assert (posterior.mean.dtype, posterior.std.dtype) == (np.float32, np.float16)
        assert relative_error(posterior.mean, mean) < STRIP_TOLERANCE
        # float16 keeps 11 bits
        assert relative_error(posterior.std.astype(np.float32), np.exp(logvar / 2)) < 2**-11
    wide = Posterior(np.full((1, 4, 2, 2), 3.0, np.float32), np.full((1, 4, 2, 2), 2.0, np.float16))
    drawn = wide.draw(np.full((1, 4, 2, 2), 0.5))
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, 4.0)


def test_a_vaes_digest_is_of_its_values_in_any_naming(weights: dict[str, np.ndarray]) -> None:
    diffusers = {diffusers_vae_key(key, STAGES): array for key, array in weights.items()}
    for key, array in diffusers.items():
        if ".attentions." in key and array.ndim == 4:  # linear layers there
            diffusers[key] = array.reshape(array.shape[:2])
    assert vae_digest(diffusers) == vae_digest(weights)
    changed = weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + np.float32(1e-3)}
    assert vae_digest(changed) != vae_digest(weights)


def test_log_variance_is_clamped(weights: dict[str, np.ndarray]) -> None:
    bias = np.concatenate([np.zeros(4), [-100.0, 100.0, 0.0, 0.0]]).astype(np.float32)
    changed = weights | {"quant_conv.weight": np.zeros((8, 8, 1, 1), np.float32), "quant_conv.bias": bias}
    _, logvar = load_vae(changed).encode_moments(np.zeros((1, 3, 32, 32), np.float32))
    assert [float(channel.max()) for channel in logvar[0]] == [-30.0, 20.0, 0.0, 0.0]


def test_spec_is_read_from_the_shapes(weights: dict[str, np.ndarray]) -> None:
    spec = infer_vae_spec(weights)
    assert (spec.widths, spec.res_blocks, spec.image_channels, spec.latent_channels, spec.downscale) == (
        (32, 64, 128, 128), 2, 3, 4, 8,
    )  # fmt: skip


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


def test_a_diffusers_file_is_the_same_vae(
    tiny_vae: Vae, weights: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> None:
    renamed = {
        diffusers_vae_key(name, STAGES): array.reshape(array.shape[:2])
        if "attn_1" in name and array.ndim == 4
        else array
        for name, array in weights.items()
    }
    latents = recorded["vae.latents"]
    assert np.array_equal(load_vae(renamed).decode(latents), tiny_vae.decode(latents))


def test_half_precision_weights_are_computed_in_float32(
    tiny_vae: Vae, weights: dict[str, np.ndarray], recorded: dict[str, np.ndarray]
) -> None:
    half = load_vae({name: array.astype(np.float16) for name, array in weights.items()})
    image = recorded["vae.image"]
    mean, _ = half.encode_moments(image)
    assert mean.dtype == np.float32
    # fp16 rounds each weight by up to 2**-11; a random sum of such errors stays at that size.
    assert relative_error(mean, tiny_vae.encode_moments(image)[0]) < 5e-3


def test_what_does_not_fit_is_told_at_once(weights: dict[str, np.ndarray]) -> None:
    broken = dict(weights)
    del broken["decoder.up.3.block.0.conv1.weight"]
    broken["decoder.conv_out.bias"] = np.zeros(5, np.float32)
    broken["decoder.extra.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError) as error:
        load_vae(broken)
    message = str(error.value)
    assert "1 missing: decoder.up.3.block.0.conv1.weight" in message
    assert "1 not known: decoder.extra.weight" in message
    assert "1 of another shape: decoder.conv_out.bias is [5], expected [3]" in message


def test_what_is_no_vae_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not a VAE: it has no encoder\.conv_in\.weight.*1 tensors: out\.0\.weight"):
        load_vae({"out.0.weight": np.zeros(3, np.float32)})
