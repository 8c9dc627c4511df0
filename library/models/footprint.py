"""How many values a forward pass leaves behind for its gradient, from shapes alone: nothing is computed.

The model's own forward functions are run on outlines in the place of tensors, so that what is counted is what is run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from library.models import clip_text, unet
from library.models.block import Block
from library.models.sdxl_spec import Shape

Shapes = Mapping[str, Mapping[str, Shape]]
"""Part -> key -> shape of a weight, as in a checkpoint."""


@dataclass(frozen=True)
class Outline:
    """A tensor without values."""

    shape: Shape

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class BlockValues:
    """Numbers of values around one block."""

    output: int
    kept: int
    """Results of its products, for a gradient that does not compute them again."""


@dataclass
class Footprint:
    """Applies blocks to outlines (a ``unet.Run``) and counts; one entry of ``blocks`` per call."""

    shapes: Shapes
    blocks: list[BlockValues] = field(default_factory=list)

    def __call__(self, block: Block, *inputs: Outline) -> Outline:
        """The outline of a block's output."""
        weights = _Local(block, self.shapes.get(block.part, {}))
        output = Outline(_OUTPUT.get(block.function, _joined)(weights, *inputs))
        self.blocks.append(
            BlockValues(
                output=output.size,
                kept=sum(_kept(name, weights, output, inputs) for name in block.kept),
            )
        )
        return output


@dataclass(frozen=True)
class _Local:
    """Shapes of a block's weights by their local names."""

    block: Block
    shapes: Mapping[str, Shape]

    def __getitem__(self, name: str) -> Shape:
        return self.shapes[self.block.prefix + name]

    def __contains__(self, name: str) -> bool:
        return name in self.block.names

    def width(self, layer: str) -> int:
        """Output channels of a layer."""
        return self[layer + ".weight"][0]


def _image(layer: str, numerator: int = 1, denominator: int = 1) -> Callable[..., Shape]:
    """A convolution's output, whose sides are those of the input times a ratio."""

    def shape(weights: _Local, x_BCHW: Outline, *_: Outline) -> Shape:
        batch, _, height, width = x_BCHW.shape
        sides = (side * numerator // denominator for side in (height, width))
        return batch, weights.width(layer), *sides

    return shape


def _vector(layer: str) -> Callable[..., Shape]:
    return lambda weights, x_BD, *_: (x_BD.shape[0], weights.width(layer))


def _tokens_of_image(weights: _Local, x_BCHW: Outline) -> Shape:
    batch, _, height, width = x_BCHW.shape
    return batch, height * width, weights.width("proj_in")


def _as_first(weights: _Local, x: Outline, *_: Outline) -> Shape:
    return x.shape


def _as_second(weights: _Local, _: Outline, y: Outline) -> Shape:
    return y.shape


def _embedded(weights: _Local, ids_BT: Outline) -> Shape:
    return *ids_BT.shape, weights["token_embedding.weight"][1]


def _joined(weights: _Local, a: Outline, b: Outline) -> Shape:
    """Two tensors side by side (joins of the two encoders' outputs; several chunks count as they come in)."""
    return *b.shape[:-1], a.shape[-1] + b.shape[-1]


_OUTPUT: Mapping[Callable[..., object], Callable[..., Shape]] = {
    unet.embed_time: _vector("time_embed.2"),
    unet.conv_in: _image("0"),
    unet.res_block: _image("in_layers.2"),
    unet.res_block_with_skip: _image("in_layers.2"),
    unet.downsample: _image("op", denominator=2),
    unet.upsample: _image("conv", numerator=2),
    unet.transformer_in: _tokens_of_image,
    unet.transformer_block: _as_first,
    unet.transformer_out: _as_second,
    unet.conv_out: _image("2"),
    clip_text.embed_tokens: _embedded,
    clip_text.clip_layer_quick_gelu: _as_first,
    clip_text.clip_layer_gelu: _as_first,
    clip_text.pool_and_project: _vector("text_projection"),
}


def _kept(name: str, weights: _Local, output: Outline, inputs: tuple[Outline, ...]) -> int:
    """Values of one kept result: a linear layer's, a convolution's, or an attention's (as large as its queries)."""
    if len(output.shape) == 4:
        return output.size // output.shape[1] * weights.width(name)
    of_text = name.startswith("attn2.to_") and name.endswith((".to_k", ".to_v"))
    rows = inputs[1] if of_text else output
    width = weights.width(name) if name + ".weight" in weights else output.shape[-1]
    return rows.size // rows.shape[-1] * width
