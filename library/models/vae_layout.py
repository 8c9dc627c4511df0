"""Which layers a VAE has, in the order in which pictures and latents pass them, and the shapes of their weights."""

from collections.abc import Iterator
from dataclasses import dataclass

from library.graphs.block import Block, LayerOptions
from library.models import vae_blocks
from library.models.vae_keys import Shape, VaeSpec
from library.models.weights import named_block

PART = "vae"
GROUPS = 32
"""Of every group normalisation."""
NORM_EPS = 1e-6
CONV = ("weight", "bias")
MOMENTS = Block(PART, vae_blocks.moments, options=LayerOptions(groups=GROUPS))
ACTIVATE = Block(PART, vae_blocks.activate)
ADD = Block(PART, vae_blocks.add)


@dataclass(frozen=True)
class NormConv:
    """Group normalisation, SiLU, 3 x 3 convolution."""

    norm: str
    """Name of the normalisation."""
    conv: Block


@dataclass(frozen=True)
class ResBlock:
    """Two normalised convolutions, and what they are added to."""

    first: NormConv
    second: NormConv
    shortcut: Block | None
    """Where the channels change."""


@dataclass(frozen=True)
class Attention:
    """Attention among the pixels, in one head."""

    norm: str
    keys: Block
    values: Block
    attend: Block


@dataclass(frozen=True)
class Level:
    """The layers of one resolution."""

    blocks: tuple[ResBlock, ...]
    channels: int
    """Most channels that pictures have here."""
    resample: Block | None
    """Leads to the next resolution; None at the last."""


@dataclass(frozen=True)
class Half:
    """Encoder or decoder."""

    conv_in: Block
    levels: tuple[Level, ...]
    middle: tuple[ResBlock, Attention, ResBlock]
    out: NormConv


@dataclass(frozen=True)
class VaeLayout:
    """All layers."""

    encoder: Half
    quant: Block
    post_quant: Block
    decoder: Half

    def blocks(self) -> tuple[Block, ...]:
        """Every block, in no order that matters."""
        return (MOMENTS, ACTIVATE, ADD, self.quant, self.post_quant, *_blocks(self.encoder), *_blocks(self.decoder))


def vae_layout(spec: VaeSpec) -> VaeLayout:
    """The layers of a VAE."""
    return VaeLayout(_encoder(spec), _pointwise("quant_conv."), _pointwise("post_quant_conv."), _decoder(spec))


def _encoder(spec: VaeSpec) -> Half:
    inputs, levels = spec.widths[0], []
    for i, width in enumerate(spec.widths):
        name = f"encoder.down.{i}."
        blocks = _res_blocks(name, inputs, width, spec.res_blocks)
        last = i == len(spec.widths) - 1
        down = None if last else named_block(PART, vae_blocks.downsample, name + "downsample.conv.", CONV)
        levels.append(Level(blocks, max(inputs, width), down))
        inputs = width
    return _half("encoder.", levels)


def _decoder(spec: VaeSpec) -> Half:
    inputs, levels = spec.widths[-1], []
    for i, width in reversed(tuple(enumerate(spec.widths))):
        name = f"decoder.up.{i}."
        blocks = _res_blocks(name, inputs, width, spec.res_blocks + 1)
        up = named_block(PART, vae_blocks.upsample, name + "upsample.conv.", CONV) if i else None
        levels.append(Level(blocks, max(inputs, width), up))
        inputs = width
    return _half("decoder.", levels)


def _half(name: str, levels: list[Level]) -> Half:
    attention = name + "mid.attn_1."
    middle = (
        _res_block(name + "mid.block_1.", changes=False),
        Attention(
            attention + "norm",
            named_block(PART, vae_blocks.project, attention + "k.", CONV),
            named_block(PART, vae_blocks.project, attention + "v.", CONV),
            named_block(
                PART, vae_blocks.attend, attention, [f"{layer}.{kind}" for layer in ("q", "proj_out") for kind in CONV]
            ),
        ),
        _res_block(name + "mid.block_2.", changes=False),
    )
    conv_in = named_block(PART, vae_blocks.conv, name + "conv_in.", CONV)
    return Half(conv_in, tuple(levels), middle, _norm_conv(name + "norm_out", name + "conv_out."))


def _res_blocks(name: str, inputs: int, width: int, count: int) -> tuple[ResBlock, ...]:
    return tuple(_res_block(f"{name}block.{i}.", changes=i == 0 and inputs != width) for i in range(count))


def _res_block(name: str, changes: bool) -> ResBlock:
    shortcut = named_block(PART, vae_blocks.add_shortcut, name + "nin_shortcut.", CONV) if changes else None
    first, second = (_norm_conv(f"{name}norm{i}", f"{name}conv{i}.") for i in (1, 2))
    return ResBlock(first, second, shortcut)


def _norm_conv(norm: str, conv: str) -> NormConv:
    return NormConv(norm, named_block(PART, vae_blocks.conv, conv, CONV))


def _pointwise(prefix: str) -> Block:
    return named_block(PART, vae_blocks.pointwise, prefix, CONV)


def _blocks(half: Half) -> Iterator[Block]:
    yield half.conv_in
    before, attention, behind = half.middle
    for block in (*(block for level in half.levels for block in level.blocks), before, behind):
        yield block.first.conv
        yield block.second.conv
        if block.shortcut:
            yield block.shortcut
    yield from (level.resample for level in half.levels if level.resample)
    yield from (attention.keys, attention.values, attention.attend, half.out.conv)


# --- shapes -----------------------------------------------------------------------------------------------------------
def vae_shapes(spec: VaeSpec) -> dict[str, Shape]:
    """Original name -> shape of every weight."""
    latents, widest = spec.latent_channels, spec.widths[-1]
    shapes: dict[str, Shape] = {}
    shapes |= _conv_shapes("quant_conv", 2 * latents, 2 * latents, 1)
    shapes |= _conv_shapes("post_quant_conv", latents, latents, 1)
    shapes |= _conv_shapes("encoder.conv_in", spec.image_channels, spec.widths[0], 3)
    shapes |= _conv_shapes("encoder.conv_out", widest, 2 * latents, 3)
    shapes |= _conv_shapes("decoder.conv_in", latents, widest, 3)
    shapes |= _conv_shapes("decoder.conv_out", spec.widths[0], spec.image_channels, 3)
    shapes |= _norm_shapes("encoder.norm_out", widest) | _norm_shapes("decoder.norm_out", spec.widths[0])
    encoder_in, decoder_in = (spec.widths[0], *spec.widths[:-1]), (*spec.widths[1:], widest)
    for i, width in enumerate(spec.widths):
        for j in range(spec.res_blocks):
            shapes |= _res_shapes(f"encoder.down.{i}.block.{j}", width if j else encoder_in[i], width)
        for j in range(spec.res_blocks + 1):
            shapes |= _res_shapes(f"decoder.up.{i}.block.{j}", width if j else decoder_in[i], width)
        if i < len(spec.widths) - 1:
            shapes |= _conv_shapes(f"encoder.down.{i}.downsample.conv", width, width, 3)
        if i:
            shapes |= _conv_shapes(f"decoder.up.{i}.upsample.conv", width, width, 3)
    for half in ("encoder", "decoder"):
        for j in (1, 2):
            shapes |= _res_shapes(f"{half}.mid.block_{j}", widest, widest)
        shapes |= _norm_shapes(f"{half}.mid.attn_1.norm", widest)
        for layer in ("q", "k", "v", "proj_out"):
            shapes |= _conv_shapes(f"{half}.mid.attn_1.{layer}", widest, widest, 1)
    return shapes


def _res_shapes(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    shapes = _norm_shapes(name + ".norm1", inputs) | _conv_shapes(name + ".conv1", inputs, outputs, 3)
    shapes |= _norm_shapes(name + ".norm2", outputs) | _conv_shapes(name + ".conv2", outputs, outputs, 3)
    return shapes | (_conv_shapes(name + ".nin_shortcut", inputs, outputs, 1) if inputs != outputs else {})


def _norm_shapes(name: str, channels: int) -> dict[str, Shape]:
    return {name + ".weight": (channels,), name + ".bias": (channels,)}


def _conv_shapes(name: str, inputs: int, outputs: int, side: int) -> dict[str, Shape]:
    return {name + ".weight": (outputs, inputs, side, side), name + ".bias": (outputs,)}
