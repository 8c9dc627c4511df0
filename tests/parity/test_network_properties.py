"""What every network type must keep to, beside every kind of layer."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from mindspore import Tensor

import networks
from library.device.profile import CPU, Device
from library.files.safetensors_utils import save_file
from library.graphs.block import Block, Layers
from library.graphs.layer_target import LayerTarget
from library.graphs.program import Forward, bind
from library.graphs.random import key_tensor
from library.graphs.values import Value
from library.models.weights import named_block, to_tensors
from library.runs.network_setup import open_network, read_network_file
from library.training.block_tape import BlockTape
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.optimizer import Optimizer
from library.training.trained import Group, Trained, trained_adapters
from networks.network_base import Network, unmerge
from networks.together import combine

MERGED_TOLERANCE = 1e-5
"""Relative L2: one product by W + dW instead of two; float32 sums of up to 144 terms differ by 1e-7 to 1e-6."""
RANK, ALPHA = 3, 2.0
OUT, IN = 20, 16


# --- one block per kind of layer --------------------------------------------------------------------------------------
def one_linear(x: Value, layers: Layers) -> Value:
    rows = layers.linear(x.reshape(-1, IN), "layer")  # a linear layer takes the rows of all samples
    return rows.reshape((*x.shape[:-1], OUT))


def one_turned(x: Value, layers: Layers) -> Value:
    return layers.linear(x, "mlp.fc1")


def one_pointwise(x: Value, layers: Layers) -> Value:
    return layers.conv(x, "layer", 1, 0)


def one_conv(x: Value, layers: Layers) -> Value:
    return layers.conv(x, "layer", 1, 1)


def one_strided(x: Value, layers: Layers) -> Value:
    return layers.conv(x, "layer", 2, 1)


@dataclass(frozen=True)
class Kind:
    """A kind of layer."""

    block: Block
    target: LayerTarget
    input_shape: tuple[int, ...]


def _kind(
    function: Callable[..., Value],
    weight: tuple[int, ...],
    x: tuple[int, ...],
    stride: int = 1,
    padding: int = 0,
    layer: str = "layer",
) -> Kind:
    block = named_block("unet", function, "", (f"{layer}.bias", f"{layer}.weight"))
    target = LayerTarget("unet", layer, "lora_unet_layer", weight, stride, padding, extended=len(weight) == 4)
    return Kind(block, target, x)


KINDS = {
    "linear": _kind(one_linear, (OUT, IN), (2, 5, IN)),
    "linear of vectors": _kind(one_linear, (OUT, IN), (2, IN)),
    "linear, weight held as [in, out]": _kind(one_turned, (OUT, IN), (2, IN), layer="mlp.fc1"),
    "conv 1x1": _kind(one_pointwise, (OUT, IN, 1, 1), (2, IN, 4, 6)),
    "conv 3x3": _kind(one_conv, (OUT, IN, 3, 3), (2, IN, 4, 6), padding=1),
    "conv 3x3, stride 2": _kind(one_strided, (OUT, IN, 3, 3), (2, IN, 4, 6), stride=2, padding=1),
}
MODULES = {
    module.__name__: module
    for info in pkgutil.iter_modules(networks.__path__)
    if "create_network" in vars(module := importlib.import_module(f"networks.{info.name}"))
}
NETWORK_ARGS = {"networks.lora": {"conv_dim": str(RANK), "conv_alpha": str(ALPHA)}}
"""What makes a network type adapt convolutions too."""

PLAIN = Device(CPU, compiled=False)

each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
pytestmark = pytest.mark.usefixtures("device")


# --- running one layer -----------------------------------------------------------------------------------------------
def base_weights(kind: Kind) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal(kind.target.shape).astype(np.float32) / np.sqrt(np.prod(kind.target.shape[1:]))
    key = kind.target.key
    return {"unet": {f"{key}.weight": weight.astype(np.float32), f"{key}.bias": np.ones(OUT, np.float32)}}


def layer_input(kind: Kind) -> Tensor:
    return Tensor(np.random.default_rng(2).standard_normal(kind.input_shape).astype(np.float32))


def tensors_of(weights: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Tensor]]:
    return {part: to_tensors(dict(named)) for part, named in weights.items()}


def fresh_network(module: ModuleType, kind: Kind, dropout: float | None = None, **network_args: str) -> Network:
    network: Network = module.create_network(
        [kind.target],
        network_dim=RANK,
        network_alpha=ALPHA,
        network_dropout=dropout,
        network_args=NETWORK_ARGS[module.__name__] | network_args,
        generator_of=lambda name: np.random.default_rng(3),
    )
    return network


def moved(network: Network) -> Network:
    """The network with every tensor away from its first value."""
    rng = np.random.default_rng(4)
    network.tensors.update({k: rng.standard_normal(v.shape).astype(np.float32) for k, v in network.tensors.items()})
    return network


def base_output(kind: Kind, weights: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    run = Forward({kind.block: bind(kind.block, tensors_of(weights), PLAIN)})
    return run(kind.block, layer_input(kind)).asnumpy()  # type: ignore[no-any-return]


def adapted_output(kind: Kind, network: Network, key: int = 0, compiled: bool = False) -> np.ndarray:
    return adapted_outputs(kind, network, [key], compiled)[0]


def adapted_outputs(kind: Kind, network: Network, keys: Iterable[int], compiled: bool = False) -> list[np.ndarray]:
    """One output per random key."""
    run, x = running(kind, network, 0, Forward, compiled), layer_input(kind)
    outputs = []
    for key in keys:
        run.keys = {kind.block: key_tensor(key)}
        outputs.append(run(kind.block, x).asnumpy())
    return outputs


def running(kind: Kind, network: Network, key: int, how: type[Forward], compiled: bool = False) -> Forward:
    bound = trained_of(kind, network).bind(tensors_of(base_weights(kind)), [kind.block], Device(CPU, compiled=compiled))
    return how(bound, {kind.block: key_tensor(key)})


def trained_of(kind: Kind, network: Network) -> Trained:
    return trained_adapters(network, [kind.block], lambda key: Group("all", 1e-2))


def gradients(kind: Kind, network: Network, key: int = 0) -> dict[str, np.ndarray]:
    """Gradients for a random gradient of the output."""
    trained, found = trained_of(kind, network), {}
    bound = trained.bind(tensors_of(base_weights(kind)), [kind.block], PLAIN)
    tape = BlockTape(bound, {kind.block: key_tensor(key)})
    y = tape(kind.block, layer_input(kind))
    d_y = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
    tape.backward(Tensor(d_y), found.__setitem__)
    return trained.by_name(found)


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


# --- properties ------------------------------------------------------------------------------------------------------
def test_every_network_file_is_tested() -> None:
    files = {f"networks.{info.name}" for info in pkgutil.iter_modules(networks.__path__)}
    shared = {f"networks.{name}" for name in ("network_base", "block_weights", "together")}
    assert files - shared == set(MODULES) == set(NETWORK_ARGS)


@each_module
@each_kind
def test_a_fresh_network_changes_nothing(module: ModuleType, kind: Kind) -> None:
    before = base_output(kind, base_weights(kind))
    assert np.array_equal(adapted_output(kind, fresh_network(module, kind)), before)
    assert not np.array_equal(adapted_output(kind, moved(fresh_network(module, kind))), before)


@each_module
@each_kind
def test_beside_the_layer_is_merged_into_it(module: ModuleType, kind: Kind) -> None:
    network, weights = moved(fresh_network(module, kind)), base_weights(kind)
    network.merge_into(weights, 1.0)
    assert relative_error(adapted_output(kind, network), base_output(kind, weights)) < MERGED_TOLERANCE


@each_module
@each_kind
def test_half_the_multiplier_is_half_the_effect(module: ModuleType, kind: Kind) -> None:
    network, weights = moved(fresh_network(module, kind)), base_weights(kind)
    before, whole = base_output(kind, weights), adapted_output(kind, network)
    network.merge_into(weights, 0.5)
    assert relative_error(base_output(kind, weights) - before, (whole - before) / 2) < MERGED_TOLERANCE


@each_module
@each_kind
def test_merging_leaves_the_given_arrays_alone_and_is_undone_bit_for_bit(module: ModuleType, kind: Kind) -> None:
    network, weights, untouched = moved(fresh_network(module, kind)), base_weights(kind), base_weights(kind)
    key = f"{kind.target.key}.weight"
    given = weights["unet"][key]
    originals = network.merge_into(weights, 0.7, keep_originals=True)
    assert not np.array_equal(weights["unet"][key], given)
    assert np.array_equal(given, untouched["unet"][key])
    unmerge(weights, originals)
    assert all(np.array_equal(weights["unet"][name], array) for name, array in untouched["unet"].items())


@each_module
@each_kind
def test_a_half_precision_base_stays_in_half_precision(module: ModuleType, kind: Kind) -> None:
    network, weights = moved(fresh_network(module, kind)), base_weights(kind)
    half = {"unet": {key: array.astype(np.float16) for key, array in weights["unet"].items()}}
    network.merge_into(half, 1.0)
    network.merge_into(weights, 1.0)
    key = f"{kind.target.key}.weight"
    merged = half["unet"][key]
    assert merged.dtype == np.float16
    # fp16 rounds the base and the sum by up to 2**-11 each.
    np.testing.assert_allclose(merged, weights["unet"][key], rtol=2e-3, atol=2e-3)


@each_module
@each_kind
def test_training_leaves_the_base_untouched(module: ModuleType, kind: Kind) -> None:
    network, weights = moved(fresh_network(module, kind)), tensors_of(base_weights(kind))
    before = {key: array.copy() for key, array in network.tensors.items()}
    trained = trained_of(kind, network)
    optimizer = Optimizer(AdamW(), trained.tensors, PLAIN)
    optimizer.begin_step()
    tape = BlockTape(trained.bind(weights, [kind.block], PLAIN))
    tape.backward(tape(kind.block, layer_input(kind)), lambda tensor, d: optimizer.update(tensor, d, 1.0))
    for key, tensor in tensors_of(base_weights(kind))["unet"].items():
        assert np.array_equal(weights["unet"][key].asnumpy(), tensor.asnumpy())
    assert not any(np.array_equal(array, before[key]) for key, array in trained.named().items())


@each_module
@each_kind
def test_every_parameter_gets_the_gradient_of_the_merged_weight(module: ModuleType, kind: Kind) -> None:
    """Moving every parameter against its gradient must lower a linear loss by lr times the gradient's square."""
    network = moved(fresh_network(module, kind))
    grads = gradients(kind, network)
    assert set(grads) == set(network.tensors)
    assert all(np.abs(grad).min() > 0 for grad in grads.values())
    d_y = np.random.default_rng(5).standard_normal(adapted_output(kind, network).shape)
    for key, grad in grads.items():
        step = 1e-2 / np.linalg.norm(grad)
        change = np.zeros(2)
        for i, sign in enumerate((1, -1)):
            shifted = network.tensors | {key: network.tensors[key] + np.float32(sign * step) * grad}
            change[i] = (adapted_output(kind, Network(network.layers, shifted)) * d_y).sum()
        slope = (change[0] - change[1]) / (2 * step)
        # Central differences of a function that is linear in each tensor: what is left is float32 rounding.
        assert slope == pytest.approx(np.linalg.norm(grad) ** 2, rel=2e-3)


@each_module
@each_kind
def test_saved_and_loaded_is_the_same(module: ModuleType, kind: Kind, tmp_path: Path) -> None:
    network = moved(fresh_network(module, kind))
    save_file(network.state_dict(), tmp_path / "n.safetensors")
    state = read_network_file(tmp_path / "n.safetensors")
    assert [name for name, each in MODULES.items() if each.recognises(state)] == [module.__name__]
    again = open_network(tmp_path / "n.safetensors", [kind.target])
    assert again.layers == network.layers
    assert all(np.array_equal(again.tensors[key], array) for key, array in network.tensors.items())
    assert np.array_equal(adapted_output(kind, again), adapted_output(kind, network))
    fresh = fresh_network(module, kind)
    fresh.load(state, "n.safetensors")
    assert all(np.array_equal(fresh.tensors[key], array) for key, array in network.tensors.items())


@each_module
@each_kind
def test_several_beside_the_layer_are_merged_one_after_the_other(module: ModuleType, kind: Kind) -> None:
    """Each at its own strength; one of them has dropouts, which are for training."""
    first, second = moved(fresh_network(module, kind)), fresh_network(module, kind, dropout=0.5)
    second.tensors.update({key: np.float32(0.5) - array for key, array in first.tensors.items()})
    weights = base_weights(kind)
    for network, strength in ((first, 0.7), (second, -1.5)):
        network.merge_into(weights, strength)
    together = combine([(first, 0.7), (second, -1.5)])
    assert relative_error(adapted_output(kind, together, key=9), base_output(kind, weights)) < MERGED_TOLERANCE
    weights = base_weights(kind)
    together.merge_into(weights, 0.5)
    before, whole = base_output(kind, base_weights(kind)), adapted_output(kind, together)
    assert relative_error(base_output(kind, weights) - before, (whole - before) / 2) < MERGED_TOLERANCE


@each_module
def test_layers_that_only_one_of_several_has_are_adapted_by_it(module: ModuleType) -> None:
    kinds = KINDS["linear"], KINDS["linear, weight held as [in, out]"]
    one, other = (moved(fresh_network(module, kind)) for kind in kinds)
    renamed = {key.replace("layer", "other"): array for key, array in other.tensors.items()}
    other = Network({"lora_unet_other": other.layers["lora_unet_layer"]}, renamed)
    together = combine([(one, 1.0), (other, 1.0)])
    for kind, alone in zip(kinds, (one, other), strict=True):
        assert relative_error(adapted_output(kind, together), adapted_output(kind, alone)) < MERGED_TOLERANCE


@each_module
def test_compiled_is_the_same(module: ModuleType) -> None:
    """Dropout masks too, bit for bit: they are integers' bits."""
    kind = KINDS["linear"]
    network = moved(fresh_network(module, kind, dropout=0.5))
    compiled, plain = (adapted_output(kind, network, key=9, compiled=c) for c in (True, False))
    assert relative_error(compiled, plain) < MERGED_TOLERANCE


# --- dropouts --------------------------------------------------------------------------------------------------------
DROPOUTS = {
    "network_dropout": {"dropout": 0.4},
    "rank_dropout": {"rank_dropout": "0.4"},
    "module_dropout": {"module_dropout": "0.4"},
}
each_dropout = pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)


def effects(kind: Kind, network: Network, keys: Iterable[int] = (0,)) -> list[np.ndarray]:
    """What the network adds to the layer's output, for each random key."""
    before = base_output(kind, base_weights(kind))
    return [output - before for output in adapted_outputs(kind, network, keys)]


@each_module
@each_kind
@each_dropout
def test_masks_follow_from_the_key(module: ModuleType, kind: Kind, dropout: dict) -> None:
    network = moved(fresh_network(module, kind, **dropout))
    drawn = effects(kind, network, range(12))
    assert np.array_equal(drawn[0], effects(kind, network)[0])
    # Few masks are possible for few values (2 of the whole adapter, 64 of 2 samples x 3 ranks), so some are the same.
    assert len({e.tobytes() for e in drawn}) >= (2 if "module_dropout" in dropout else 6)
    plain = moved(fresh_network(module, kind))
    assert np.array_equal(adapted_output(kind, network.eval()), adapted_output(kind, plain))


@each_module
@pytest.mark.parametrize("kind", [KINDS["linear"], KINDS["conv 3x3"]], ids=["linear", "conv 3x3"])
@each_dropout
def test_the_mean_over_masks_is_right(module: ModuleType, kind: Kind, dropout: dict) -> None:
    """What is kept is scaled up to keep the mean; but module dropout is not, in kohya neither."""
    count = 300
    network = moved(fresh_network(module, kind, **dropout))
    mean = sum(adapted_outputs(kind, network, range(count), compiled=True)) / count
    mean = mean - base_output(kind, base_weights(kind))
    (expected,) = effects(kind, moved(fresh_network(module, kind)))
    if "module_dropout" in dropout:
        expected = 0.6 * expected
    # A mask has a standard deviation of sqrt(0.4 / 0.6) of its mean; over 300 keys 5 % of it are left.
    assert relative_error(mean, expected) < 0.15


def kept_ratios(kind: Kind, network: Network, keys: Iterable[int]) -> np.ndarray:
    """Kept value over undropped value at each place between down and up, for each random key: [K, B, ..., rank]."""
    layer = network.layers["lora_unet_layer"].adapter
    up = np.zeros(layer.shapes()["lora_up.weight"], np.float32)
    up[np.arange(RANK), np.arange(RANK)] = 1  # the first outputs are the ranks
    network.tensors["lora_unet_layer.lora_up.weight"] = up
    dropped, whole = np.stack(effects(kind, network, keys)), np.stack(effects(kind, network.eval()))
    if len(kind.target.shape) == 4:
        dropped, whole = np.moveaxis(dropped, 2, -1), np.moveaxis(whole, 2, -1)
    return dropped[..., :RANK] / whole[..., :RANK]  # type: ignore[no-any-return]


@each_kind
@each_dropout
def test_lora_drops_values_ranks_or_all(kind: Kind, dropout: dict) -> None:
    """network_dropout: each value; rank_dropout: per sample and rank, at every place; module_dropout: everything."""
    network = moved(fresh_network(MODULES["networks.lora"], kind, **dropout))
    ratios = kept_ratios(kind, network, range(8))
    kept = 1.0 if "module_dropout" in dropout else 1 / 0.6
    # The ratio is a quotient of differences of float32 outputs near 1.
    assert np.all((np.abs(ratios) < 1e-3) | (np.abs(ratios - kept) < 1e-2))
    places = ratios.reshape(8, ratios.shape[1], -1, RANK) > 0.5
    same_everywhere = bool(np.all(places == places[:, :1, :1, :1]))
    same_at_every_place = bool(np.all(places == places[:, :, :1]))
    assert same_everywhere == ("module_dropout" in dropout)
    if places.shape[2] > 1:
        assert same_at_every_place == ("dropout" not in dropout)
    assert places.any() and not places.all()


def test_the_backward_pass_sees_the_masks_of_the_forward_pass() -> None:
    """A rank that was dropped in every sample has no gradient, one that was kept has."""
    kind = KINDS["linear"]
    network = moved(fresh_network(MODULES["networks.lora"], kind, rank_dropout="0.5"))
    seen = set()
    for key in range(12):
        kept = (kept_ratios(kind, network, [key])[0, :, 0] > 0.5).any(axis=0)
        grads = gradients(kind, network, key)
        down = np.abs(grads["lora_unet_layer.lora_down.weight"]).max(axis=1) > 0
        up = np.abs(grads["lora_unet_layer.lora_up.weight"]).max(axis=0) > 0
        assert np.array_equal(down, kept) and np.array_equal(up, kept)
        seen |= set(kept)
    assert seen == {True, False}


# --- files that do not fit -------------------------------------------------------------------------------------------
@each_module
def test_keys_that_do_not_fit_are_counted_and_named(module: ModuleType) -> None:
    kind = KINDS["linear"]
    network = moved(fresh_network(module, kind))
    before, first = dict(network.tensors), next(iter(network.tensors))
    state = network.state_dict()
    state["lora_unet_layer.extra"] = np.zeros(1, np.float32)
    state["lora_unet_layer.other"] = np.zeros(1, np.float32)
    state[first] = np.zeros((7, 7), np.float32)
    missing = list(network.tensors)[1]
    del state[missing]
    with pytest.raises(ValueError) as error:
        network.load(state, "f.safetensors")
    text = str(error.value)
    assert f"f.safetensors: 1 keys of this network are missing: {missing}" in text
    assert "2 keys fit no layer of this network: lora_unet_layer.extra, lora_unet_layer.other" in text
    assert f"1 keys have another shape: {first} is (7, 7)" in text
    assert network.tensors == before


@each_module
def test_layers_of_another_model_are_counted_and_named(module: ModuleType) -> None:
    state = fresh_network(module, KINDS["linear"]).state_dict()
    state |= {key.replace("lora_unet_layer", "lora_unet_strange"): array for key, array in state.items()}
    with pytest.raises(ValueError, match=r"f: 1 of its 2 layers are not in this base model: lora_unet_strange"):
        module.create_network_from_weights([KINDS["linear"].target], state, "f")
