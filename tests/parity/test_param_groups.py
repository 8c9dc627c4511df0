"""Which learning rate each tensor of a network has, and what its parameter group is called.

The original's groups (``families/param_groups.json``) are those of SD1; SDXL has other layers but the same rules, so
names and rates are compared, and members are told from the names of the layers. Factors by block are those of SDXL.
"""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from library.data.run_rng import RunRng
from library.families.sdxl.family import SdxlFamily
from library.graphs.layer_target import LayerTarget
from library.runs.network_setup import chosen_targets, create_network, group_of, part_rates
from library.settings.flag_groups import NetworkArgs, OptimizerArgs
from library.training.trained import Group, trained_adapters
from networks import lora
from networks.block_weights import block_lr_weights
from networks.network_base import Network
from tests.conftest import GOLDEN
from tools.tiny_source import tiny_base

CASES = json.loads((GOLDEN / "families" / "param_groups.json").read_text(encoding="utf-8"))
BY_PART = [case for case in CASES if not any("lr_weight" in name for name in case["network_args"])]
BY_BLOCK = [case for case in CASES if case not in BY_PART]
FACTORS = json.loads((GOLDEN / "kohya_tables.json").read_text(encoding="utf-8"))["parse_block_lr_kwargs_sdxl"]
CONV_LAYERS = (GOLDEN / "sdxl_lora_unet_conv_keys.txt").read_text(encoding="utf-8").split()
LINEAR_LAYERS = (GOLDEN / "sdxl_lora_unet_keys.txt").read_text(encoding="utf-8").split()
FIRST_BLOCK = {"input": 1, "middle": 10, "output": 13}
"""The original's number of the first block of each stage."""
TEXT_LAYERS = 264
UP, DOWN = ".lora_up.weight", ".lora_down.weight"


@functools.cache
def base() -> tuple[LayerTarget, ...]:
    return tuple(SdxlFamily().targets(tiny_base(1)))


def make_network(network_args: Mapping[str, str], **options: Any) -> Network:
    listed = tuple(f"{name}={value}" for name, value in network_args.items())
    return create_network(lora, base(), NetworkArgs(network_dim=1, network_args=listed, **options), RunRng(1))


def rates_of(case: Mapping[str, Any], network: Network) -> dict[str, float]:
    given = () if case["text_encoder_lr"] is None else (case["text_encoder_lr"],)
    options = OptimizerArgs(learning_rate=case["learning_rate"], unet_lr=case["unet_lr"], text_encoder_lr=given)
    return part_rates(options, {layer.target.part for layer in network.layers.values()})


def groups_of(case: Mapping[str, Any], network: Network) -> dict[str, Group]:
    """Key of each tensor -> its group."""
    group = group_of(network, rates_of(case, network))
    return {key: group(key) for key in network.tensors}


def block_of(layer: str) -> int:
    """The original's number of the block that a layer of the UNet is in, from its name."""
    match = re.match(r"lora_unet_(input|middle|output)_blocks?_(\d+)_", layer)
    assert match, layer
    return FIRST_BLOCK[match[1]] + int(match[2])


@pytest.mark.parametrize("case", BY_PART, ids=lambda case: f"{case['network_args']}")
def test_rates_and_names_by_part_are_the_originals(case: Mapping[str, Any]) -> None:
    """A part whose rate is 0 has no group there; here it has one of rate 0."""
    found = groups_of(case, make_network(case["network_args"]))
    named = {group.name: group.lr for group in found.values() if group.lr}
    assert named == pytest.approx({group["description"]: group["lr"] for group in case["groups"]}, rel=1e-12)
    parts = {"lora_te1_": "textencoder", "lora_te2_": "textencoder", "lora_unet_": "unet"}
    for key, group in found.items():
        part = parts[next(start for start in parts if key.startswith(start))]
        has_plus = f"{part} plus" in named
        assert group.name == (f"{part} plus" if has_plus and key.endswith(UP) else part)
        assert key.endswith((UP, DOWN))


def test_the_rate_of_text_encoders_is_theirs_alone() -> None:
    case = {"text_encoder_lr": 0.5, "unet_lr": None, "learning_rate": 0.25}
    found = groups_of(case, make_network({}))
    assert {group.lr for key, group in found.items() if key.startswith("lora_te")} == {0.5}
    assert {group.lr for key, group in found.items() if key.startswith("lora_unet_")} == {0.25}
    case = {"text_encoder_lr": None, "unet_lr": 0.125, "learning_rate": 0.25}
    found = groups_of(case, make_network({}))
    assert {group.lr for key, group in found.items() if key.startswith("lora_te")} == {0.25}
    assert {group.lr for key, group in found.items() if key.startswith("lora_unet_")} == {0.125}


def test_of_several_rates_of_text_encoders_the_first_serves_both() -> None:
    options = OptimizerArgs(learning_rate=1.0, text_encoder_lr=(0.5, 0.25))
    assert part_rates(options, ("te1", "te2", "unet")) == {"te1": 0.5, "te2": 0.5, "unet": 1.0}


def test_rates_that_are_all_zero_train_nothing() -> None:
    with pytest.raises(ValueError, match="every learning rate is 0"):
        part_rates(OptimizerArgs(learning_rate=1.0, unet_lr=0.0), ("unet",))
    assert part_rates(OptimizerArgs(learning_rate=0.0, unet_lr=1.0), ("unet", "te")) == {"unet": 1.0, "te": 0.0}


@pytest.mark.parametrize(
    ("only", "parts"),
    [
        ("network_train_unet_only", {"unet"}),
        ("network_train_text_encoder_only", {"te1", "te2"}),
        ("", {"te1", "te2", "unet"}),
    ],
)
def test_flags_choose_the_parts(only: str, parts: set[str]) -> None:
    options = NetworkArgs(**{only: True} if only else {})
    chosen = chosen_targets(base(), options)
    assert {target.part for target in chosen} == parts
    assert chosen == [target for target in base() if target.part in parts], "all of them, in their order"


@pytest.mark.parametrize("factors", FACTORS, ids=lambda factors: f"{factors['kwargs']}")
@pytest.mark.parametrize("with_convs", [False, True])
def test_factors_by_block_are_the_originals(factors: Mapping[str, Any], with_convs: bool) -> None:
    """Each layer's rate is that of its block; blocks of factor 0 have no layers; text encoders know nothing of it."""
    network_args = factors["kwargs"] | ({"conv_dim": "1"} if with_convs else {})
    network = make_network(network_args)
    case = {"text_encoder_lr": 0.5, "unet_lr": 0.25, "learning_rate": 1.0}
    found = groups_of(case, network)
    expected = {}
    for layer in CONV_LAYERS if with_convs else LINEAR_LAYERS:
        number = block_of(layer)
        if factor := factors["result"][number]:
            expected |= {f"{layer}{end}": (f"unet_block{number}", pytest.approx(0.25 * factor)) for end in (UP, DOWN)}
    unet = {key: (group.name, group.lr) for key, group in found.items() if key.startswith("lora_unet_")}
    assert unet == expected
    text = [group for key, group in found.items() if key.startswith("lora_te")]
    assert set(text) == {Group("textencoder", 0.5)}
    assert len(text) == 2 * TEXT_LAYERS


@pytest.mark.parametrize("case", BY_BLOCK, ids=lambda case: f"{case['network_args']}")
def test_names_of_groups_by_block_are_made_as_the_originals(case: Mapping[str, Any]) -> None:
    """SD1 has twelve blocks to a stage and SDXL nine, so numbers differ: what is compared is how name and rate are
    made of a block's number and factor, and that LoRA+ multiplies the up matrices' rate of each block."""
    network = make_network(case["network_args"])
    ratio = float(case["network_args"].get("loraplus_lr_ratio", 1))
    theirs = {group["description"]: group["lr"] for group in case["groups"]}
    found = groups_of(case, network)
    shape = re.compile(r"textencoder( plus)?|unet_block\d+( plus)?")
    assert all(shape.fullmatch(name) for name in theirs)
    assert all(shape.fullmatch(group.name) for group in found.values())
    for name, rate in theirs.items():
        if name.endswith(" plus"):
            assert rate == pytest.approx(ratio * theirs[name.removesuffix(" plus")])
    for key, group in found.items():
        layer = network.layers[key.split(".")[0]]
        rate = case["unet_lr"] * layer.lr_weight if layer.lr_weight is not None else case["text_encoder_lr"]
        is_plus = ratio != 1 and key.endswith(UP)
        assert group.lr == pytest.approx(rate * (ratio if is_plus else 1))
        assert group.name.endswith(" plus") == is_plus


def test_the_curve_of_an_sd1_stage_is_the_originals() -> None:
    """The curves as such, at the twelve blocks that SD1's stages have."""
    (case,) = [case for case in BY_BLOCK if case["network_args"]["down_lr_weight"] == "sine"]
    args = {name: value for name, value in case["network_args"].items() if name.endswith("lr_weight")}
    factors = block_lr_weights(args, {"down": 12, "mid": 1, "up": 12})
    assert factors is not None
    by_number = dict(enumerate((*factors["down"], *factors["mid"], *factors["up"])))
    for group in case["groups"]:
        match = re.fullmatch(r"unet_block(\d+)", group["description"])
        if match:
            assert group["lr"] == pytest.approx(case["unet_lr"] * by_number[int(match[1])], rel=1e-12)


@pytest.mark.parametrize("value", ["steep", "1,x", "sine+x", "nan"])
def test_a_factor_that_is_neither_number_nor_curve_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="down_lr_weight: .* is not a number; give numbers"):
        make_network({"down_lr_weight": value})


def test_what_is_trained_carries_the_groups(device: None) -> None:
    """Tensors of one stack have one rate, and every tensor that is trained has its own group's."""
    network = make_network({"loraplus_lr_ratio": "16", "down_lr_weight": "linear+.25"})
    case = {"text_encoder_lr": 0.5, "unet_lr": 0.25, "learning_rate": 1.0}
    group, family = group_of(network, rates_of(case, network)), SdxlFamily()
    trained = trained_adapters(network, family.blocks(family.spec(tiny_base(1)), ("te1", "te2", "unet")), group)
    named = {name: tensor.group for tensor in trained.tensors for name in tensor.names}
    assert named == {key: group(key) for key in network.tensors if key not in trained.idle}
    assert {key.split(".")[0].split("_self")[0].split("_mlp")[0] for key in trained.idle} == {
        "lora_te1_text_model_encoder_layers_11"
    }
    before = {key: np.array(tensor) for key, tensor in network.tensors.items()}
    assert trained.named().keys() == named.keys()
    for name, value in trained.named().items():
        np.testing.assert_array_equal(value, before[name])


def test_tensors_of_one_shape_and_block_are_stacked_by_their_groups(device: None) -> None:
    """Queries with a rate of their own, beside keys of the same shape in the same block."""
    family, weights = SdxlFamily(), tiny_base(1)
    network = make_network({}, network_train_unet_only=True)
    queries, others = Group("queries", 1e-3), Group("others", 1e-4)

    def by_layer(key: str) -> Group:
        return queries if "_to_q." in key else others

    trained = trained_adapters(network, family.blocks(family.spec(weights), ("unet",)), by_layer)
    groups = {name: tensor.group for tensor in trained.tensors for name in tensor.names}
    assert groups == {name: by_layer(name) for name in network.tensors}
    assert any(len(tensor.names) > 1 for tensor in trained.tensors if tensor.group == others), "they are stacked at all"
