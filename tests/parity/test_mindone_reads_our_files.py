"""A LoRA file of ours through mindone's own loader: what its pipeline adds to the weights is what we trained."""

import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from library.families.sdxl.keys import diffusers_names
from library.families.sdxl.shapes import TINY_SDXL
from library.families.sdxl.targets import lora_targets
from library.files.safetensors_utils import save_file
from networks import lora
from networks.network_base import Network
from tools import mindone_on_cpu
from tools.mindone_on_cpu import diffusers_class
from tools.mindone_pipeline import text_encoder, unet
from tools.tiny_source import tiny_base

TOLERANCE = 1e-6
"""Absolute: W + dW and W are float32 of size 1, so their difference is off by half of 1.2e-7 twice."""

RANK, ALPHA = 4, 2.0
FILE_NAME = "ours.safetensors"
COMPONENTS = MappingProxyType({"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"})
"""Our name of a model -> the pipeline's."""

Weights = dict[str, np.ndarray]


def tiny_pipeline() -> Any:
    """mindone's pipeline with models of the tiny SDXL's shape and values of mindone's own drawing.

    The loader looks at the three models that a LoRA changes; VAE, tokenizers and scheduler are left out.
    """
    spec = TINY_SDXL
    absent = dict.fromkeys(("vae", "tokenizer", "tokenizer_2", "scheduler"))
    return diffusers_class("StableDiffusionXLPipeline")(
        unet=unet(spec.model_channels, spec.context_width, spec.label_width),
        text_encoder=text_encoder("CLIPTextModel", spec.text_1_width, spec.text_1_layers, "quick_gelu"),
        text_encoder_2=text_encoder("CLIPTextModelWithProjection", spec.text_2_width, spec.text_2_layers, "gelu"),
        **absent,
    )


def random_network(network_args: dict[str, str]) -> Network:
    """A LoRA beside every layer of the tiny SDXL, with up drawn like down: every layer's change is its own."""
    network = lora.create_network(
        lora_targets(tiny_base(1)),
        network_dim=RANK,
        network_alpha=ALPHA,
        network_dropout=None,
        network_args=network_args,
        generator_of=lambda name: np.random.default_rng(zlib.crc32(name.encode())),
    )
    for key, value in network.tensors.items():
        if key.endswith(lora.UP):
            draw = np.random.default_rng(zlib.crc32(key.encode()))
            network.tensors[key] = (0.3 * draw.standard_normal(value.shape)).astype(np.float32)
    return network


def weights_of(pipeline: Any) -> dict[str, Weights]:
    """Our name of a model -> (diffusers' key -> copy of the weight); peft's own matrices are left out."""
    weights: dict[str, Weights] = {}
    for part, component in COMPONENTS.items():
        named = getattr(pipeline, component).parameters_and_names()
        weights[part] = {
            name.replace(".base_layer.", "."): parameter.asnumpy().copy()
            for name, parameter in named
            if ".lora_" not in name
        }
    return weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "network_args", [{}, {"conv_dim": "2", "conv_alpha": "3"}], ids=["linear", "with convolutions"]
)
@pytest.mark.usefixtures("device")
def test_load_lora_weights_adds_alpha_by_rank_up_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network_args: dict[str, str]
) -> None:
    # mindone's peft merges 3 x 3 layers by a convolution that has no CPU kernel; training and sampling never call it.
    monkeypatch.setattr("mindspore.mint.nn.functional.conv2d", mindone_on_cpu.conv2d)
    network = random_network(network_args)
    state = network.state_dict()
    save_file(state, tmp_path / FILE_NAME, {"ss_network_module": "networks.lora"})
    pipeline = tiny_pipeline()
    before = weights_of(pipeline)

    pipeline.load_lora_weights(str(tmp_path), weight_name=FILE_NAME)
    pipeline.fuse_lora()

    after = weights_of(pipeline)
    expected: dict[str, Weights] = {part: {} for part in COMPONENTS}
    for name, layer in network.layers.items():
        key = f"{layer.target.key}.weight"
        down, up, alpha = (state[f"{name}.{suffix}"] for suffix in (lora.DOWN, lora.UP, lora.ALPHA))
        change = alpha / len(down) * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))
        expected[layer.target.part][diffusers_names(layer.target.part, [key])[key]] = change.reshape(layer.target.shape)
    for part, changes in expected.items():
        assert len(changes) == network.count(part) > 0
        assert set(after[part]) == set(before[part])
        changed = {key for key, array in before[part].items() if not np.array_equal(array, after[part][key])}
        assert changed == set(changes), part
        for key, change in changes.items():
            np.testing.assert_allclose(
                after[part][key] - before[part][key], change, rtol=0, atol=TOLERANCE, err_msg=f"{part}: {key}"
            )
