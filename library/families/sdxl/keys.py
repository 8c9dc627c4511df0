"""Where each weight of SDXL's UNet and text encoders stands in a file. No MindSpore.

Inside the program the UNet has the original names, the text encoders those of transformers. A single-file checkpoint
has the same, below prefixes, but for text encoder 2, which it keeps in OpenCLIP's layout.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from library.families.sdxl.diffusers_keys import diffusers_unet_key
from library.families.sdxl.shapes import TEXT_1_PREFIX, TEXT_2_PREFIX, UNET_PREFIX

PARTS = ("unet", "te1", "te2")
TEXT_MODEL = "text_model."
_OPEN_CLIP_TOP = MappingProxyType(
    {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "text_projection": "text_projection.weight",
    }
)
_OPEN_CLIP_LAYER = MappingProxyType(
    {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
)
_RESBLOCKS = "transformer.resblocks."
_UNUSED = ("logit_scale", "embeddings.position_ids")
"""Tensors of the text encoders that training and sampling have no use for; files may lack them."""

Place = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Destination:
    """Where a tensor of a file goes."""

    part: str
    """``unet``, ``te1`` or ``te2``."""
    key: str
    """Its name inside the program."""
    place: Place = staticmethod(lambda array: array)
    """What of the file's tensor it is: the whole, a third of it, its transpose."""


def single_file_destinations(
    shapes: Mapping[str, tuple[int, ...]], transpose_projection: bool
) -> Iterator[tuple[str, tuple[Destination, ...]]]:
    """(key of a single-file checkpoint, where it goes) for the UNet and text encoder keys among ``shapes``.

    Args:
        shapes: key -> shape.
        transpose_projection: a single file stores text_projection as P of ``hidden @ P`` (OpenCLIP), and a linear layer
            computes ``hidden @ W.T``, so its weight is the transpose of P. False copies P unchanged, as kohya does.
    """
    for key in shapes:
        if key.endswith(_UNUSED):
            continue
        if key.startswith(UNET_PREFIX):
            yield key, (Destination("unet", key.removeprefix(UNET_PREFIX)),)
        elif key.startswith(TEXT_1_PREFIX):
            yield key, (Destination("te1", TEXT_MODEL + key.removeprefix(TEXT_1_PREFIX)),)
        elif key.startswith(TEXT_2_PREFIX):
            yield key, tuple(_open_clip(key.removeprefix(TEXT_2_PREFIX), transpose_projection))


def _open_clip(key: str, transpose_projection: bool) -> Iterator[Destination]:
    if key == "text_projection" and transpose_projection:
        yield Destination("te2", _OPEN_CLIP_TOP[key], lambda array: np.ascontiguousarray(array.T))
    elif key in _OPEN_CLIP_TOP:
        yield Destination("te2", _OPEN_CLIP_TOP[key])
    elif key.startswith(_RESBLOCKS):
        number, _, rest = key.removeprefix(_RESBLOCKS).partition(".")
        layer = f"text_model.encoder.layers.{number}."
        if rest.startswith("attn.in_proj_"):
            leaf = rest.removeprefix("attn.in_proj_")
            for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
                yield Destination("te2", f"{layer}self_attn.{name}.{leaf}", _third(third))
        else:
            module, _, leaf = rest.rpartition(".")
            yield Destination("te2", f"{layer}{_OPEN_CLIP_LAYER.get(module, module)}.{leaf}")
    else:
        yield Destination("te2", key)


def _third(index: int) -> Place:
    return lambda array: array[index * (len(array) // 3) : (index + 1) * (len(array) // 3)]


def diffusers_names(part: str, keys: Mapping[str, object]) -> dict[str, str]:
    """Program's key -> key in diffusers' folder of that part; the text encoders have the same names."""
    return {key: diffusers_unet_key(key) if part == "unet" else key for key in keys}
