"""Every key of a single-file SDXL checkpoint and its shape, from a dozen numbers. No MindSpore.

The layout is that of Stability AI's generative-models (sgm): UNet below ``model.diffusion_model.``, CLIP ViT-L in
Hugging Face's naming and OpenCLIP bigG in its own below ``conditioner.embedders.``, the VAE below
``first_stage_model.``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from library.settings.sizes import LATENT_CHANNELS

UNET_PREFIX = "model.diffusion_model."
TEXT_1_PREFIX = "conditioner.embedders.0.transformer.text_model."
TEXT_2_PREFIX = "conditioner.embedders.1.model."
VAE_PREFIX = "first_stage_model."

Shape = tuple[int, ...]
Entry = tuple[str, Shape]

CHANNEL_MULT = (1, 2, 4)
TRANSFORMER_DEPTH = (0, 2, 10)
"""Transformer blocks per attention, at each of the UNet's three resolutions; the middle has the last."""
RES_BLOCKS = 2
SIZE_EMBEDDING = 6 * 256
"""Width of the embedded original size, crop and target size."""
VAE_CHANNEL_MULT = (1, 2, 4, 4)
VAE_RES_BLOCKS = 2
VOCABULARY = 49408
POSITIONS = 77
MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class SdxlConfig:
    """The widths in which SDXL models differ."""

    model_channels: int
    """Width of the UNet at full resolution."""
    text_1_width: int
    text_2_width: int
    vae_channels: int
    """Width of the VAE at full resolution."""
    text_1_layers: int = 12
    text_2_layers: int = 32

    @property
    def context_width(self) -> int:
        """Width of the text that the UNet attends to."""
        return self.text_1_width + self.text_2_width

    @property
    def label_width(self) -> int:
        """Width of the pooled text and sizes that label_emb takes."""
        return self.text_2_width + SIZE_EMBEDDING

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels


TINY_SDXL = SdxlConfig(model_channels=32, text_1_width=64, text_2_width=64, vae_channels=32)
FULL_SDXL = SdxlConfig(model_channels=320, text_1_width=768, text_2_width=1280, vae_channels=128)
"""SDXL base 1.0."""


def checkpoint_shapes(config: SdxlConfig) -> dict[str, Shape]:
    """Key -> shape of every tensor of a single-file checkpoint, sorted by key."""
    parts = (
        (UNET_PREFIX, unet_shapes(config)),
        (TEXT_1_PREFIX, _text_1(config.text_1_width, config.text_1_layers)),
        (TEXT_2_PREFIX, _text_2(config.text_2_width, config.text_2_layers)),
        (VAE_PREFIX, _vae(config.vae_channels)),
    )
    return dict(sorted((prefix + key, shape) for prefix, entries in parts for key, shape in entries))


def unet_shapes(config: SdxlConfig) -> Iterator[Entry]:
    """Key -> shape of the UNet's tensors, without prefix, in the order of computation."""
    widths = [config.model_channels * mult for mult in CHANNEL_MULT]
    time, context = config.time_width, config.context_width
    yield from _linear("time_embed.0", config.model_channels, time)
    yield from _linear("time_embed.2", time, time)
    yield from _linear("label_emb.0.0", config.label_width, time)
    yield from _linear("label_emb.0.2", time, time)
    yield from _conv("input_blocks.0.0", LATENT_CHANNELS, widths[0])
    skips, number = [widths[0]], 0
    for level, (width, depth) in enumerate(zip(widths, TRANSFORMER_DEPTH, strict=True)):
        for _ in range(RES_BLOCKS):
            number += 1
            yield from _res_block(f"input_blocks.{number}.0", skips[-1], width, time)
            yield from _transformer(f"input_blocks.{number}.1", width, depth, context)
            skips.append(width)
        if level < len(widths) - 1:
            number += 1
            yield from _conv(f"input_blocks.{number}.0.op", width, width)
            skips.append(width)
    width = widths[-1]
    yield from _res_block("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width, TRANSFORMER_DEPTH[-1], context)
    yield from _res_block("middle_block.2", width, width, time)
    number = 0
    for level in reversed(range(len(widths))):
        depth = TRANSFORMER_DEPTH[level]
        for block in range(RES_BLOCKS + 1):
            yield from _res_block(f"output_blocks.{number}.0", width + skips.pop(), widths[level], time)
            width = widths[level]
            yield from _transformer(f"output_blocks.{number}.1", width, depth, context)
            if level and block == RES_BLOCKS:
                yield from _conv(f"output_blocks.{number}.{2 if depth else 1}.conv", width, width)
            number += 1
    yield from _norm("out.0", width)
    yield from _conv("out.2", width, LATENT_CHANNELS)


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Entry]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, side: int = 3) -> Iterator[Entry]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[Entry]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _res_block(name: str, inputs: int, outputs: int, time: int) -> Iterator[Entry]:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", inputs, outputs)
    yield from _linear(f"{name}.emb_layers.1", time, outputs)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", inputs, outputs, side=1)


def _transformer(name: str, width: int, depth: int, context: int) -> Iterator[Entry]:
    """An attention layer of the UNet; nothing where the depth is 0."""
    if not depth:
        return
    yield from _norm(f"{name}.norm", width)
    yield from _linear(f"{name}.proj_in", width, width)
    for block in range(depth):
        here = f"{name}.transformer_blocks.{block}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield from _linear(f"{here}.{attention}.to_q", width, width, bias=False)
            yield from _linear(f"{here}.{attention}.to_k", source, width, bias=False)
            yield from _linear(f"{here}.{attention}.to_v", source, width, bias=False)
            yield from _linear(f"{here}.{attention}.to_out.0", width, width)
        yield from _linear(f"{here}.ff.net.0.proj", width, 2 * MLP_RATIO * width)
        yield from _linear(f"{here}.ff.net.2", MLP_RATIO * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{here}.{norm}", width)
    yield from _linear(f"{name}.proj_out", width, width)


def _text_1(width: int, layers: int) -> Iterator[Entry]:
    """CLIP ViT-L in the naming of Hugging Face."""
    yield "embeddings.token_embedding.weight", (VOCABULARY, width)
    yield "embeddings.position_embedding.weight", (POSITIONS, width)
    for layer in range(layers):
        here = f"encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{here}.self_attn.{projection}", width, width)
        yield from _norm(f"{here}.layer_norm1", width)
        yield from _linear(f"{here}.mlp.fc1", width, MLP_RATIO * width)
        yield from _linear(f"{here}.mlp.fc2", MLP_RATIO * width, width)
        yield from _norm(f"{here}.layer_norm2", width)
    yield from _norm("final_layer_norm", width)


def _text_2(width: int, layers: int) -> Iterator[Entry]:
    """OpenCLIP ViT-bigG: query, key and value are one matrix; text_projection is used as ``pooled @ matrix``."""
    yield "token_embedding.weight", (VOCABULARY, width)
    yield "positional_embedding", (POSITIONS, width)
    for layer in range(layers):
        here = f"transformer.resblocks.{layer}"
        yield f"{here}.attn.in_proj_weight", (3 * width, width)
        yield f"{here}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{here}.attn.out_proj", width, width)
        yield from _norm(f"{here}.ln_1", width)
        yield from _linear(f"{here}.mlp.c_fc", width, MLP_RATIO * width)
        yield from _linear(f"{here}.mlp.c_proj", MLP_RATIO * width, width)
        yield from _norm(f"{here}.ln_2", width)
    yield from _norm("ln_final", width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()


def _vae(base: int) -> Iterator[Entry]:
    widths = [base * mult for mult in VAE_CHANNEL_MULT]
    yield from _conv("encoder.conv_in", 3, base)
    inputs = base
    for level, width in enumerate(widths):
        for block in range(VAE_RES_BLOCKS):
            yield from _vae_block(f"encoder.down.{level}.block.{block}", inputs, width)
            inputs = width
        if level < len(widths) - 1:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _vae_middle("encoder", inputs)
    yield from _norm("encoder.norm_out", inputs)
    yield from _conv("encoder.conv_out", inputs, 2 * LATENT_CHANNELS)
    yield from _conv("quant_conv", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, side=1)
    yield from _conv("post_quant_conv", LATENT_CHANNELS, LATENT_CHANNELS, side=1)
    yield from _conv("decoder.conv_in", LATENT_CHANNELS, inputs)
    yield from _vae_middle("decoder", inputs)
    for level in reversed(range(len(widths))):
        for block in range(VAE_RES_BLOCKS + 1):
            yield from _vae_block(f"decoder.up.{level}.block.{block}", inputs, widths[level])
            inputs = widths[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", inputs, inputs)
    yield from _norm("decoder.norm_out", inputs)
    yield from _conv("decoder.conv_out", inputs, 3)


def _vae_block(name: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs, side=1)


def _vae_middle(half: str, width: int) -> Iterator[Entry]:
    """The middle of the VAE's encoder or decoder."""
    yield from _vae_block(f"{half}.mid.block_1", width, width)
    yield from _norm(f"{half}.mid.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{half}.mid.attn_1.{projection}", width, width, side=1)
    yield from _vae_block(f"{half}.mid.block_2", width, width)
