"""The VAE's largest layers a strip of rows at a time, for a CPU: the same numbers in a quarter of the memory.

mindone's blocks hold about ten times their output while they run. At 1024 px that is 12 GB, and MindSpore's CPU memory
pool never gives them back. Here what is large lives in NumPy arrays, and MindSpore sees strips only. On an NPU, and
for small pictures, mindone's own blocks run as they are.

Shapes: B batch, C channels, H W height and width of the activations.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, mint, nn

from library.device.mint_cpu import is_cpu

_WHOLE_BYTES = 2**26
"""Activations up to this size (64 MB; SDXL's reach it at 360 px) are computed at once, larger ones in such strips."""


class ResBlockInStrips(nn.Cell):
    """mindone's ResnetBlock2D, in strips where the activations are large."""

    def __init__(self, block: nn.Cell) -> None:
        super().__init__()
        self.block = block

    def construct(self, input_tensor: Tensor, temb: None) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]; a VAE has no time embedding."""
        block = self.block
        if not _is_large(input_tensor.shape):
            return block(input_tensor, temb)
        x = input_tensor.asnumpy()
        hidden = conv_in_strips(_group_norm(x, block.norm1), block.conv1, mint.nn.functional.silu)
        y = conv_in_strips(_group_norm(hidden, block.norm2), block.conv2, mint.nn.functional.silu)
        _add_in_strips(y, x, block.conv_shortcut)
        return Tensor.from_numpy(y)


class UpsampleInStrips(nn.Cell):
    """mindone's Upsample2D (nearest neighbour, then a convolution), in strips where its result is large."""

    def __init__(self, upsample: nn.Cell) -> None:
        super().__init__()
        self.upsample = upsample

    def construct(self, hidden_states: Tensor, output_size: None = None) -> Tensor:
        """[B, C, H, W] to [B, C', 2 H, 2 W]; a VAE asks for no other size."""
        batch, channels, height, width = hidden_states.shape
        if not _is_large((batch, channels, 2 * height, 2 * width)):
            return self.upsample(hidden_states, output_size)
        return Tensor.from_numpy(conv_in_strips(hidden_states.asnumpy(), self.upsample.conv, _double, growth=2))


class DownsampleInStrips(nn.Cell):
    """mindone's Downsample2D (a zero row below, a zero column at the right, a convolution of stride 2), in strips."""

    def __init__(self, downsample: nn.Cell) -> None:
        super().__init__()
        self.downsample = downsample

    def construct(self, hidden_states: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / 2, W / 2]."""
        if not _is_large(hidden_states.shape):
            return self.downsample(hidden_states)
        x = hidden_states.asnumpy()
        batch, channels, height, width = x.shape
        rows = _rows(batch, channels, 2 * width)
        # Three rows make one, so a strip takes one more than two per row; the zero row is read at the very end only.
        ends = ((2 * first, 2 * (first + rows) + 1) for first in range(0, height // 2, rows))
        strips = [self.downsample(_strip(x, first, last)).asnumpy() for first, last in ends]
        return Tensor.from_numpy(np.concatenate(strips, axis=2))


class ConvInStrips(nn.Cell):
    """A 3 x 3 convolution of stride 1 with a padding of 1, in strips where its result is large."""

    def __init__(self, conv: nn.Cell) -> None:
        super().__init__()
        self.conv = conv

    def construct(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        batch, _, height, width = x_BCHW.shape
        if not _is_large((batch, self.conv.weight.shape[0], height, width)):
            return self.conv(x_BCHW)
        return Tensor.from_numpy(conv_in_strips(x_BCHW.asnumpy(), self.conv, lambda strip: strip))


def use_strips(model: nn.Cell) -> None:
    """Wrap the large layers of a mindone AutoencoderKL; load its weights before, not after."""
    encoder, decoder = model.encoder, model.decoder
    encoder.conv_in = ConvInStrips(encoder.conv_in)
    for block in (*encoder.down_blocks, encoder.mid_block, *decoder.up_blocks, decoder.mid_block):
        for index, resnet in enumerate(block.resnets):
            block.resnets[index] = ResBlockInStrips(resnet)
    for block in encoder.down_blocks:
        if block.downsamplers is not None:
            block.downsamplers[0] = DownsampleInStrips(block.downsamplers[0])
    for block in decoder.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers[0] = UpsampleInStrips(block.upsamplers[0])


def conv_in_strips(
    x_BCHW: np.ndarray, conv: nn.Cell, prepare: Callable[[Tensor], Tensor], growth: int = 1
) -> np.ndarray:
    """conv(prepare(x)), a strip of rows at a time.

    Args:
        x_BCHW: the input.
        conv: a 3 x 3 convolution of stride 1 with a padding of 1.
        prepare: works on each row by itself, and makes ``growth`` x ``growth`` pixels of one.
        growth: rows of the result per row of the input.
    """
    batch, channels, height, width = x_BCHW.shape
    y_BCHW = np.empty((batch, conv.weight.shape[0], growth * height, growth * width), np.float32)
    rows = _rows(batch, max(channels, conv.weight.shape[0]), width * growth**2)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        above = min(first, 1)  # one row more on both sides; the results for those are wrong and dropped
        y = conv(prepare(_strip(x_BCHW, first - above, last + 1))).asnumpy()
        y_BCHW[:, :, growth * first : growth * last] = y[:, :, growth * above : growth * (above + last - first)]
    return y_BCHW


def _add_in_strips(y_BCHW: np.ndarray, x_BCHW: np.ndarray, shortcut: nn.Cell | None) -> None:
    """Add x, or the shortcut's pointwise convolution of it, to y in place."""
    if shortcut is None:
        y_BCHW += x_BCHW
        return
    batch, channels, height, width = x_BCHW.shape
    rows = _rows(batch, channels, width)
    for first in range(0, height, rows):
        y_BCHW[:, :, first : first + rows] += shortcut(_strip(x_BCHW, first, first + rows)).asnumpy()


def _group_norm(x_BCHW: np.ndarray, norm: nn.Cell) -> np.ndarray:
    """Group normalisation, a few groups of channels at a time."""
    batch, channels, height, width = x_BCHW.shape
    per_group = channels // norm.num_groups
    groups = min(norm.num_groups, max(1, _WHOLE_BYTES // (4 * batch * per_group * height * width)))
    y_BCHW = np.empty_like(x_BCHW)
    for first in range(0, norm.num_groups, groups):
        count = min(groups, norm.num_groups - first)
        part = slice(first * per_group, (first + count) * per_group)
        x = Tensor.from_numpy(np.ascontiguousarray(x_BCHW[:, part]))
        y = mint.nn.functional.group_norm(x, count, norm.weight[part], norm.bias[part], norm.eps)
        y_BCHW[:, part] = y.asnumpy()
    return y_BCHW


def _strip(x_BCHW: np.ndarray, first: int, last: int) -> Tensor:
    return Tensor.from_numpy(np.ascontiguousarray(x_BCHW[:, :, first:last]))


def _rows(batch: int, channels: int, width: int) -> int:
    return max(1, _WHOLE_BYTES // (4 * batch * channels * width))


def _is_large(shape: tuple[int, ...]) -> bool:
    return is_cpu() and 4 * int(np.prod(shape)) > _WHOLE_BYTES


def _double(x_BCHW: Tensor) -> Tensor:
    height, width = x_BCHW.shape[2:]
    return mint.nn.functional.interpolate(x_BCHW, size=(2 * height, 2 * width), mode="nearest")
