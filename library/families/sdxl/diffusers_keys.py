"""Names of the UNet's weights in diffusers' folders, from the original ones.

Source: the block layout of both; SDXL has two res blocks per encoder stage and three per decoder stage.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

RES_PER_STAGE = 2
_TOP = MappingProxyType(
    {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
)
_RESNET = MappingProxyType(
    {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
)
_MIDDLE = MappingProxyType({"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"})


def diffusers_unet_key(key: str) -> str:
    """``input_blocks.4.1.proj_in.weight`` -> ``down_blocks.1.attentions.0.proj_in.weight``.

    Raises:
        ValueError: not a key of the original naming.
    """
    layer, _, leaf = key.rpartition(".")
    if layer in _TOP:
        return f"{_TOP[layer]}.{leaf}"
    if match := re.fullmatch(r"input_blocks\.(\d+)\.(\d)\.(.+)", layer):
        return f"{_encoder(int(match[1]), int(match[2]), match[3])}.{leaf}"
    if match := re.fullmatch(r"middle_block\.(\d)\.(.+)", layer):
        return f"mid_block.{_MIDDLE[match[1]]}.{_inner(match[2])}.{leaf}"
    if match := re.fullmatch(r"output_blocks\.(\d+)\.(\d)\.(.+)", layer):
        return f"{_decoder(int(match[1]), int(match[2]), match[3])}.{leaf}"
    raise ValueError(f"{key} is not a key of the original UNet naming")


def _encoder(index: int, child: int, rest: str) -> str:
    stage, place = divmod(index - 1, RES_PER_STAGE + 1)
    if rest == "op":
        return f"down_blocks.{stage}.downsamplers.0.conv"
    return f"down_blocks.{stage}.{_kind(child)}.{place}.{_inner(rest)}"


def _decoder(index: int, child: int, rest: str) -> str:
    stage, place = divmod(index, RES_PER_STAGE + 1)
    if rest == "conv":
        return f"up_blocks.{stage}.upsamplers.0.conv"
    return f"up_blocks.{stage}.{_kind(child)}.{place}.{_inner(rest)}"


def _kind(child: int) -> str:
    return "resnets" if child == 0 else "attentions"


def _inner(rest: str) -> str:
    return _lookup(_RESNET, rest)


def _lookup(table: Mapping[str, str], name: str) -> str:
    return table.get(name, name)
