"""Networks over all of SDXL's layers: kohya's names, keys and formats."""

from pathlib import Path

import numpy as np
import pytest

from library.families.base import BaseWeights
from library.families.sdxl.family import SdxlFamily
from library.files.safetensors_utils import SafetensorsFile, save_file
from library.graphs.layer_target import LayerTarget
from library.models.random_weights import lora_weights
from library.runs.network_setup import read_network_file
from library.training.trained import Group, trained_adapters
from networks import lora
from networks.network_base import Network
from tools.tiny_source import tiny_base

pytestmark = pytest.mark.usefixtures("device")
FAMILY = SdxlFamily()


@pytest.fixture(scope="module")
def weights() -> BaseWeights:
    return tiny_base(1)


@pytest.fixture(scope="module")
def targets(weights: BaseWeights) -> list[LayerTarget]:
    return FAMILY.targets(weights)


def lora_network(targets: list[LayerTarget], **network_args: str) -> Network:
    network: Network = lora.create_network(
        targets,
        network_dim=4,
        network_alpha=2,
        network_dropout=None,
        network_args=network_args,
        generator_of=lambda name: np.random.default_rng(0),
    )
    return network


@pytest.mark.parametrize(
    ("args", "file", "count"),
    [({}, "sdxl_lora_unet_keys.txt", 722), ({"conv_dim": "4"}, "sdxl_lora_unet_conv_keys.txt", 788)],
)
def test_layer_names_are_kohyas(targets: list[LayerTarget], golden: Path, args: dict, file: str, count: int) -> None:
    network = lora_network(targets, **args)
    names = [name for name, layer in network.layers.items() if layer.target.part == "unet"]
    assert len(names) == count
    assert sorted(names) == sorted((golden / file).read_text().split())
    assert (network.count("te1"), network.count("te2")) == (72, 192)


def test_a_saved_file_has_kohyas_keys_order_and_formats(
    targets: list[LayerTarget], golden: Path, tmp_path: Path
) -> None:
    network = lora_network(targets)
    save_file(network.state_dict(), tmp_path / "ours.safetensors", dtype="F16")
    theirs = golden / "lora_kohya.safetensors"
    with SafetensorsFile(theirs) as kohya, SafetensorsFile(tmp_path / "ours.safetensors") as ours:
        assert list(ours.specs.items()) == list(kohya.specs.items())


def test_the_references_file_loads_with_its_ranks_and_alphas(targets: list[LayerTarget], golden: Path) -> None:
    state = read_network_file(golden / "lora_kohya.safetensors")
    network = lora.create_network_from_weights(targets, state, "lora_kohya")
    assert len(network.layers) == 722 + 264
    adapter = network.layers["lora_unet_middle_block_1_proj_in"].adapter
    assert (adapter.rank, adapter.alpha) == (4, 2.0)
    assert set(network.state_dict()) == set(state)


def test_only_the_last_layer_of_text_encoder_1_is_idle(weights: BaseWeights, targets: list[LayerTarget]) -> None:
    """SDXL reads the layer before the last, so kohya's files hold twelve tensors that are never trained."""
    network = lora_network(targets, conv_dim="4")
    last = [key for key in network.tensors if key.startswith("lora_te1_text_model_encoder_layers_11_")]
    shapes = {key: array.shape for key, array in network.tensors.items()}
    before = dict(lora_weights(7, shapes, 2.0))
    network.tensors.update({key: array.copy() for key, array in before.items()})
    blocks = FAMILY.blocks(FAMILY.spec(weights), tuple(weights.parts))
    trained = trained_adapters(network, blocks, lambda key: Group("all", 1e-3))
    assert trained.idle == sorted(last) and len(last) == 12
    named = trained.named()
    assert set(named) == set(network.tensors) - set(last) and list(network.tensors) == list(before)
    assert trained.size == sum(array.size for array in named.values())
    assert all(np.array_equal(named[key], before[key]) for key in named)
    assert all(np.shares_memory(named[key], network.tensors[key]) for key in named)
