"""The layers of SDXL that networks may adapt, under kohya's names."""

import re
from typing import Any

from library.families.base import BaseWeights
from library.graphs.layer_target import LayerTarget

_TEXT_LAYERS = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
_RES_LAYERS = ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection", ".op", ".conv")
_LORA_PREFIX = {"unet": "lora_unet", "te1": "lora_te1", "te2": "lora_te2"}
STRIDE_2 = ".op"
"""The only strided convolution of the UNet: downsampling."""
_STAGES = {"input_blocks": ("down", 1), "middle_block": ("mid", 10), "output_blocks": ("up", 13)}
"""Stage, and the number that kohya gives its first block; the embeddings are 0, the last convolution is 22."""


def lora_targets(weights: BaseWeights) -> list[LayerTarget]:
    """Every layer that kohya's networks adapt: text encoder 1, text encoder 2, UNet.

    In the UNet these are all linear layers of its transformers; res blocks, up- and downsampling are marked
    ``extended``. Embeddings, the first and the last convolution are never adapted.
    """
    targets = []
    for part in ("te1", "te2", "unet"):
        for key, array in weights.parts[part].items():
            if key.endswith(".weight") and (target := _target(part, key.removesuffix(".weight"), array.shape)):
                targets.append(target)
    return targets


def _target(part: str, layer: str, shape: tuple[int, ...]) -> LayerTarget | None:
    name = f"{_LORA_PREFIX[part]}_{layer.replace('.', '_')}"
    if part != "unet":
        return LayerTarget(part, layer, name, shape) if layer.endswith(_TEXT_LAYERS) else None
    if len(shape) < 2 or not layer.startswith(("input_blocks.", "middle_block.", "output_blocks.")):
        return None
    if ".transformer_blocks." in layer or layer.endswith((".proj_in", ".proj_out")):
        return LayerTarget(part, layer, name, shape, **_place(layer))
    if not layer.endswith(_RES_LAYERS):
        return None
    stride = 2 if layer.endswith(STRIDE_2) else 1
    padding = shape[2] // 2 if len(shape) == 4 else 0
    return LayerTarget(part, layer, name, shape, stride, padding, **_place(layer), extended=True)


def _place(layer: str) -> dict[str, Any]:
    """Where in the UNet a layer is: stage, number of the block in it and in all."""
    match = re.match(r"(\w+)\.(\d+)\.", layer)
    assert match is not None, layer
    stage, first = _STAGES[match[1]]
    return {"stage": stage, "stage_index": int(match[2]), "block": first + int(match[2])}
