"""Names and sizes of a VAE: the original's keys, diffusers' keys, and the layout that a set of weights describes.

No MindSpore here. The original's names are those of latent-diffusion's AutoencoderKL, without ``first_stage_model.``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

CHECKPOINT_PREFIX = "first_stage_model."
_TRAINING_ONLY = ("loss.", "model_ema.")
"""What the VAE's own training leaves in some VAE files."""

Shape = tuple[int, ...]


class HasShape(Protocol):
    """An array, or anything that knows the shape it will have."""

    @property
    def shape(self) -> Shape:
        """Sizes of the axes."""
        ...


@dataclass(frozen=True, kw_only=True)
class VaeSpec:
    """Layout of a VAE, read from its weights."""

    widths: tuple[int, ...]
    """Channels at each resolution, finest first: (128, 256, 512, 512) for SDXL; each resolution halves the last."""
    res_blocks: int
    """Residual blocks per resolution in the encoder; the decoder has one more."""
    image_channels: int
    latent_channels: int

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.widths) - 1)


def original_vae_keys(keys: Iterable[str]) -> dict[str, str]:
    """Original name -> the key under which it is found, for each of the keys that belongs to the VAE.

    Understood are the original's names, with or without ``first_stage_model.`` (then the rest of the checkpoint is
    passed over), and diffusers' names, old (``query``) and new (``to_q``). An unknown name stays as it is.
    """
    found = list(keys)
    if any(key.startswith(CHECKPOINT_PREFIX) for key in found):
        named = {key.removeprefix(CHECKPOINT_PREFIX): key for key in found if key.startswith(CHECKPOINT_PREFIX)}
    else:
        named = {key: key for key in found}
    stages = 1 + max((int(m[1]) for m in map(_UP_STAGE.match, named) if m), default=-1)
    return {_original(name, stages): key for name, key in named.items() if not name.startswith(_TRAINING_ONLY)}


def diffusers_vae_key(name: str, stages: int) -> str:
    """Diffusers' name of an original name: ``decoder.up.3.block.0.conv1.weight`` -> ``decoder.up_blocks.0.resnets...``.

    The stages are the VAE's resolutions; diffusers counts those of the decoder from the other end.
    """
    return _renamed(name, _TO_DIFFUSERS, stages)


def infer_vae_spec(weights: Mapping[str, HasShape]) -> VaeSpec:
    """The layout that arrays under original names have.

    Raises:
        ValueError: these are not the weights of a VAE; says what was looked for.
    """
    widths: list[int] = []
    while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in weights:
        widths.append(weights[name].shape[0])
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    absent = [name for name in (*ends, "encoder.down.0.block.0.conv1.weight") if name not in weights]
    if absent:
        raise ValueError(
            f"not a VAE: it has no {', '.join(absent)} (nor the same below {CHECKPOINT_PREFIX} or under diffusers' "
            f"names); {_examples(weights)}"
        )
    blocks = 0
    while f"encoder.down.0.block.{blocks}.conv1.weight" in weights:
        blocks += 1
    return VaeSpec(
        widths=tuple(widths),
        res_blocks=blocks,
        image_channels=weights[ends[0]].shape[1],
        latent_channels=weights[ends[1]].shape[1],
    )


def _examples(weights: Mapping[str, HasShape]) -> str:
    if not weights:
        return "it has no tensors"
    return f"it has {len(weights)} tensors: {', '.join(sorted(weights)[:3])}{', ...' if len(weights) > 3 else ''}"


Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), result) for pattern, result in pairs)


_UP_STAGE = re.compile(r"decoder\.up(?:_blocks)?\.(\d+)\.")
_TO_DIFFUSERS = _rules(
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.~\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.~\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
_TO_ORIGINAL = _rules(
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.~\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.~\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.(?:to_out\.0|proj_attn)\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.(?:to_)?([qkv])(?:uery|ey|alue)?\.", r".mid.attn_1.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
"""A ~ before a number: counted from the other end."""


def _original(name: str, stages: int) -> str:
    return _renamed(name, _TO_ORIGINAL, stages)


def _renamed(name: str, rules: tuple[Rule, ...], stages: int) -> str:
    for pattern, result in rules:
        name = pattern.sub(result, name)
    return re.sub(r"~(\d+)", lambda match: str(stages - 1 - int(match[1])), name)
