"""The Stable Diffusion UNet in the original (SGM) key naming.

The layout is read from the checkpoint's own shapes, so models of all widths take the same path.
Shapes: B batch, C channels, H W latent pixels, T tokens (H*W), S text tokens, D width.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from library.graphs import kernels
from library.graphs.block import Block, LayerOptions, Layers
from library.graphs.operations import concat, silu, transpose
from library.graphs.program import Apply
from library.graphs.values import Value
from library.models.weights import make_block, named_block

PART = "unet"
RESNET_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6
SINUSOID_PERIOD = 10000.0


# --- block functions ------------------------------------------------------------------------------------------------
def embed_time(sinusoid_BM: Value, vector_BV: Value, layers: Layers) -> Value:
    """Time and size conditioning to one embedding [B, 4M]."""
    dtype = layers.weights["time_embed.0.weight"].dtype
    sinusoid_BM, vector_BV = sinusoid_BM.astype(dtype), vector_BV.astype(dtype)
    time = layers.linear(silu(layers.linear(sinusoid_BM, "time_embed.0")), "time_embed.2")
    label = layers.linear(silu(layers.linear(vector_BV, "label_emb.0.0")), "label_emb.0.2")
    return time + label


def conv_in(x_BCHW: Value, layers: Layers) -> Value:
    """The first convolution; from here on in the type of the weights."""
    return layers.conv(x_BCHW.astype(layers.weights["0.weight"].dtype), "0", 1, 1)


def res_block(x_BCHW: Value, emb_BE: Value, layers: Layers) -> Value:
    """Two convolutions with the embedding added between, and a shortcut."""
    h = layers.conv(silu(layers.group_norm(x_BCHW, "in_layers.0", RESNET_EPS)), "in_layers.2", 1, 1)
    h = layers.product(kernels.add_to_channels(h, layers.linear(silu(emb_BE), "emb_layers.1")))
    h = layers.conv(silu(layers.group_norm(h, "out_layers.0", RESNET_EPS)), "out_layers.3", 1, 1)
    if "skip_connection.weight" in layers.weights:
        return layers.conv(x_BCHW, "skip_connection", 1, 0) + h
    return x_BCHW + h


def res_block_with_skip(x_BCHW: Value, skip_BCHW: Value, emb_BE: Value, layers: Layers) -> Value:
    """A res block of the decoder: the encoder's output of the same size is appended to the channels first."""
    return res_block(concat((x_BCHW, skip_BCHW), 1), emb_BE, layers)


def downsample(x_BCHW: Value, layers: Layers) -> Value:
    """Strided convolution; halves height and width."""
    return layers.conv(x_BCHW, "op", 2, 1)


def upsample(x_BCHW: Value, layers: Layers) -> Value:
    """Nearest neighbour to twice the size, then a convolution."""
    return layers.conv(kernels.upsample_nearest_2x(x_BCHW), "conv", 1, 1)


def transformer_in(x_BCHW: Value, layers: Layers) -> Value:
    """Normalise, turn pixels into tokens, project: [B, T, D]."""
    batch, channels, height, width = x_BCHW.shape
    h = layers.group_norm(x_BCHW, "norm", TRANSFORMER_NORM_EPS).reshape(batch, channels, height * width)
    rows = transpose(h, (0, 2, 1)).reshape(-1, channels)
    return layers.linear(rows, "proj_in").reshape(batch, height * width, -1)


def transformer_block(x_BTD: Value, context_BSX: Value, layers: Layers) -> Value:
    """Self-attention, attention to the text, gated feed-forward, each with a residual."""
    rows = x_BTD.reshape(-1, x_BTD.shape[-1])
    h = layers.layer_norm(rows, "norm1")
    rows = layers.product(rows + _attend(h, h, "attn1", layers))
    h = layers.layer_norm(rows, "norm2")
    rows = layers.product(rows + _attend(h, context_BSX.reshape(-1, context_BSX.shape[-1]), "attn2", layers))
    h = layers.linear(layers.layer_norm(rows, "norm3"), "ff.net.0.proj")
    rows = rows + layers.linear(layers.gated_gelu(h), "ff.net.2")
    return rows.reshape(x_BTD.shape)


def _attend(rows: Value, context: Value, name: str, layers: Layers) -> Value:
    q = layers.linear(rows, name + ".to_q")
    k = layers.linear(context, name + ".to_k")
    v = layers.linear(context, name + ".to_v")
    return layers.linear(layers.attention(q, k, v), name + ".to_out.0")


def transformer_out(tokens_BTD: Value, x_BCHW: Value, layers: Layers) -> Value:
    """Project the tokens back, turn them into pixels, add the transformer's input."""
    batch, tokens, width = tokens_BTD.shape
    h = layers.linear(tokens_BTD.reshape(-1, width), "proj_out").reshape(batch, tokens, -1)
    return transpose(h, (0, 2, 1)).reshape(x_BCHW.shape) + x_BCHW


def conv_out(x_BCHW: Value, layers: Layers) -> Value:
    """Normalise and predict [B, 4, H, W], in float32."""
    return layers.conv(silu(layers.group_norm(x_BCHW, "0", RESNET_EPS)), "2", 1, 1).astype(mstype.float32)


# --- layout -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Transformer:
    """A spatial transformer: pixels to tokens, blocks, tokens to pixels."""

    enter: Block
    blocks: tuple[Block, ...]
    leave: Block


@dataclass(frozen=True)
class Resnet:
    """A residual block; the one that opens a decoder stage also takes the skip."""

    block: Block


@dataclass(frozen=True)
class Resample:
    """A block that takes the image alone: first convolution, down- or upsampling."""

    block: Block


Layer = Transformer | Resnet | Resample


@dataclass(frozen=True)
class UNetSpec:
    """Which blocks a UNet has, in the order of the forward pass."""

    time: Block
    encoder: tuple[tuple[Layer, ...], ...]
    middle: tuple[Layer, ...]
    decoder: tuple[tuple[Layer, ...], ...]
    out: Block
    sinusoid_width: int
    """Width of the sinusoidal time embedding."""
    vector_width: int
    """Width of the pooled text plus size embeddings."""
    context_width: int
    """Width of the text tokens."""

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, in the order of the forward pass."""
        layers = [layer for stage in (*self.encoder, self.middle, *self.decoder) for layer in stage]
        return (self.time, *(block for layer in layers for block in layer_blocks(layer)), self.out)


def layer_blocks(layer: Layer) -> tuple[Block, ...]:
    """The blocks of one layer."""
    if isinstance(layer, Transformer):
        return (layer.enter, *layer.blocks, layer.leave)
    return (layer.block,)


def infer_unet_spec(shapes: Mapping[str, tuple[int, ...]], options: LayerOptions) -> UNetSpec:
    """Read the layout from a checkpoint's keys (without ``model.diffusion_model.``) and shapes.

    Raises:
        ValueError: the keys are not those of a UNet with size conditioning; says what is missing.
    """
    for key in ("time_embed.0.weight", "label_emb.0.0.weight", "input_blocks.0.0.weight", "out.2.weight"):
        if key not in shapes:
            raise ValueError(
                f"this is no UNet with size conditioning: it has no {key} (those of SD1.x and SD2.x lack label_emb)"
            )
    local = [key for key in shapes if key.startswith(("time_embed.", "label_emb."))]
    context_key = next(key for key in sorted(shapes) if key.endswith("attn2.to_k.weight"))
    return UNetSpec(
        time=named_block(PART, embed_time, "", local),
        encoder=_stages(shapes, "input_blocks", options, decoder=False),
        middle=tuple(
            _layer(shapes, f"middle_block.{i}.", options, with_skip=False) for i in _indices(shapes, "middle_block.")
        ),
        decoder=_stages(shapes, "output_blocks", options, decoder=True),
        out=make_block(PART, conv_out, "out.", shapes, options),
        sinusoid_width=shapes["time_embed.0.weight"][1],
        vector_width=shapes["label_emb.0.0.weight"][1],
        context_width=shapes[context_key][1],
    )


def _stages(
    shapes: Mapping[str, tuple[int, ...]], root: str, options: LayerOptions, decoder: bool
) -> tuple[tuple[Layer, ...], ...]:
    return tuple(
        tuple(
            _layer(shapes, f"{root}.{i}.{j}.", options, with_skip=decoder and j == 0)
            for j in _indices(shapes, f"{root}.{i}.")
        )
        for i in _indices(shapes, root + ".")
    )


def _indices(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> list[int]:
    """The numbers that stand right behind a prefix, ascending."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return sorted({int(match.group(1)) for key in shapes if (match := pattern.match(key))})


def _layer(shapes: Mapping[str, tuple[int, ...]], prefix: str, options: LayerOptions, with_skip: bool) -> Layer:
    def has(name: str) -> bool:
        return prefix + name in shapes

    if has("in_layers.2.weight"):
        return Resnet(make_block(PART, res_block_with_skip if with_skip else res_block, prefix, shapes, options))
    if has("proj_in.weight"):
        return _transformer(shapes, prefix, options)
    if has("op.weight"):
        return Resample(make_block(PART, downsample, prefix, shapes))
    if has("conv.weight"):
        return Resample(make_block(PART, upsample, prefix, shapes))
    if has("weight"):
        return Resample(make_block(PART, conv_in, prefix.removesuffix("0."), shapes))
    raise ValueError(f"no known layer at {prefix} of the UNet")


def _transformer(shapes: Mapping[str, tuple[int, ...]], prefix: str, options: LayerOptions) -> Transformer:
    inner = prefix + "transformer_blocks."
    enter = [name for name in ("norm.weight", "norm.bias", "proj_in.weight", "proj_in.bias") if prefix + name in shapes]
    leave = [name for name in ("proj_out.weight", "proj_out.bias") if prefix + name in shapes]
    return Transformer(
        enter=named_block(PART, transformer_in, prefix, enter, options),
        blocks=tuple(
            make_block(PART, transformer_block, f"{inner}{i}.", shapes, options) for i in _indices(shapes, inner)
        ),
        leave=named_block(PART, transformer_out, prefix, leave),
    )


# --- forward ----------------------------------------------------------------------------------------------------------
def unet_forward(
    spec: UNetSpec, apply: Apply, noisy_BCHW: Tensor, sinusoid_BM: Tensor, vector_BV: Tensor, context_BSX: Tensor
) -> Tensor:
    """Predict noise (or velocity) [B, 4, H, W].

    Args:
        spec: the layout.
        apply: applies a block.
        noisy_BCHW: noised latents.
        sinusoid_BM: sinusoidal embedding of the timesteps, see ``sinusoidal_embedding``.
        vector_BV: pooled text and size embeddings.
        context_BSX: text tokens.
    """
    emb = apply(spec.time, sinusoid_BM, vector_BV)
    h = noisy_BCHW
    skips = []
    for stage in spec.encoder:
        for layer in stage:
            h = _apply_layer(layer, apply, h, emb, context_BSX)
        skips.append(h)
    for layer in spec.middle:
        h = _apply_layer(layer, apply, h, emb, context_BSX)
    for stage in spec.decoder:
        first, *others = stage
        assert isinstance(first, Resnet)
        h = apply(first.block, h, skips.pop(), emb)
        for layer in others:
            h = _apply_layer(layer, apply, h, emb, context_BSX)
    return apply(spec.out, h)


def _apply_layer(layer: Layer, apply: Apply, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    if isinstance(layer, Resample):
        return apply(layer.block, h)
    if isinstance(layer, Resnet):
        return apply(layer.block, h, emb)
    tokens = apply(layer.enter, h)
    for block in layer.blocks:
        tokens = apply(block, tokens, context)
    return apply(layer.leave, tokens, h)


def sinusoidal_embedding(values: np.ndarray, width: int) -> np.ndarray:
    """[cos(x f), sin(x f)] with f = 10000**(-i / (width / 2)): values [N] to float32 [N, width].

    Used for timesteps and for each number of a picture's size.
    """
    half = width // 2
    frequencies = np.exp(-np.log(SINUSOID_PERIOD) * np.arange(half, dtype=np.float32) / half).astype(np.float32)
    angles = values.astype(np.float32)[:, None] * frequencies[None]
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
