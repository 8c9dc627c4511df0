"""The VAE's large convolutions from top to bottom in strips: the same numbers in a quarter of the memory.

mindone's blocks hold about ten times their output while they run. At 1024 px that is 12 GB, which MindSpore's CPU memory
pool then keeps for good. These take over mindone's layers and hold about three times the output.
"""

from collections.abc import Callable

from mindspore import Tensor, mint, nn, ops

_STRIP_BYTES = 2**27
"""Size of a convolution's input in one strip (128 MB); smaller pictures are one strip."""


class ResBlockInStrips(nn.Cell):
    """A residual block made of the layers of mindone's ResnetBlock2D."""

    def __init__(self, block: nn.Cell) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut

    def construct(self, input_tensor: Tensor, temb: None) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]; a VAE has no time embedding."""
        hidden = conv_in_strips(self.norm1(input_tensor), self.conv1, mint.nn.functional.silu)
        hidden = conv_in_strips(self.norm2(hidden), self.conv2, mint.nn.functional.silu)
        return hidden + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


class UpsampleInStrips(nn.Cell):
    """Doubling by nearest neighbour and a convolution, made of the layer of mindone's Upsample2D."""

    def __init__(self, upsample: nn.Cell) -> None:
        super().__init__()
        self.conv = upsample.conv

    def construct(self, hidden_states: Tensor, output_size: None = None) -> Tensor:
        """[B, C, H, W] to [B, C', 2 H, 2 W]; a VAE asks for no other size."""
        return conv_in_strips(hidden_states, self.conv, _double, growth=2)


def use_strips(model: nn.Cell) -> None:
    """Replace the residual blocks and upsamplers of a mindone AutoencoderKL; load its weights before, not after."""
    halves = (model.encoder, model.decoder)
    for block in (*model.encoder.down_blocks, *model.decoder.up_blocks, *(half.mid_block for half in halves)):
        for index, resnet in enumerate(block.resnets):
            block.resnets[index] = ResBlockInStrips(resnet)
    for block in model.decoder.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers[0] = UpsampleInStrips(block.upsamplers[0])


def conv_in_strips(
    x_BCHW: Tensor, conv: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor], growth: int = 1
) -> Tensor:
    """conv(prepare(x)), a strip of rows at a time.

    Args:
        x_BCHW: the input.
        conv: a 3 x 3 convolution of stride 1 with a padding of 1.
        prepare: works on each row by itself, and makes ``growth`` rows of one.
        growth: rows of the result per row of the input.
    """
    batch, channels, height, width = x_BCHW.shape
    rows = max(1, _STRIP_BYTES // (4 * batch * channels * width * growth**2))
    if rows >= height:
        return conv(prepare(x_BCHW))
    strips = []
    for first in range(0, height, rows):
        count = min(rows, height - first)
        above = min(first, 1)  # a row more on both sides, whose own result is wrong and dropped
        y = conv(prepare(x_BCHW[:, :, first - above : first + count + 1]))
        strips.append(y[:, :, growth * above : growth * (above + count)])
    return ops.cat(strips, 2)


def _double(x_BCHW: Tensor) -> Tensor:
    height, width = x_BCHW.shape[2:]
    return mint.nn.functional.interpolate(x_BCHW, size=(2 * height, 2 * width), mode="nearest")
