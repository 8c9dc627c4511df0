"""How pictures and latents pass the layers of a VAE, in strips of rows. Shapes: B batch, C channels, H W."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.graphs.block import Block
from library.graphs.program import Forward
from library.models.strips import (
    GroupNorm,
    Strips,
    cut,
    emptied,
    joined,
    joined_array,
    neighbourhoods,
    regroup,
    rows_per_strip,
)
from library.models.vae_layout import ACTIVATE, ADD, MOMENTS, Attention, Half, NormConv, ResBlock, VaeLayout


class VaeForward:
    """Applies the layers.

    Args:
        layout: the layers.
        run: applies a block.
        norms: name -> group normalisation.
        dtype: type of the activations.
        max_activation: values of a strip.
        max_scores: attention scores that are computed at once.
    """

    def __init__(
        self,
        layout: VaeLayout,
        run: Forward,
        norms: Mapping[str, GroupNorm],
        dtype: ms.Type,
        max_activation: int,
        max_scores: int,
    ) -> None:
        self.layout = layout
        self._run, self._norms, self._dtype = run, norms, dtype
        self._max_activation, self._max_scores = max_activation, max_scores

    def encode(self, images_BCHW: np.ndarray) -> np.ndarray:
        """Mean and log variance, one behind the other along the channels [B, 2 C, H / 8, W / 8]."""
        half = self.layout.encoder
        batch, _, height, width = images_BCHW.shape
        strips = cut(images_BCHW, self._rows(batch, half.levels[0].channels, height, width), self._dtype)
        strips = self._conv(half.conv_in, strips)
        for i, level in enumerate(half.levels):
            for block in level.blocks:
                strips = self._res_block(block, strips)
            if level.resample:
                strips = self._downsample(level.resample, strips)
                height, width = height // 2, width // 2
                strips = regroup(strips, self._rows(batch, half.levels[i + 1].channels, height, width))
        strips = self._norm_conv(half.out, self._middle(half, strips))
        return joined_array([self._run(self.layout.quant, strip) for strip in strips])

    def decode(self, latents_BCHW: np.ndarray) -> np.ndarray:
        """Images [B, C, 8 H, 8 W]."""
        half = self.layout.decoder
        batch, _, height, width = latents_BCHW.shape
        strips = cut(latents_BCHW, self._rows(batch, half.levels[0].channels, height, width), self._dtype)
        strips = [self._run(self.layout.post_quant, strip) for strip in strips]
        strips = self._middle(half, self._conv(half.conv_in, strips))
        for i, level in enumerate(half.levels):
            for block in level.blocks:
                strips = self._res_block(block, strips)
            if level.resample:
                height, width = 2 * height, 2 * width
                rows = self._rows(batch, half.levels[i + 1].channels, height, width)
                strips = self._upsample(level.resample, regroup(strips, rows // 2))
        return joined_array(self._norm_conv(half.out, strips))

    def _rows(self, batch: int, channels: int, height: int, width: int) -> int:
        return rows_per_strip(height, batch * channels * width, self._max_activation)

    # --- layers: each empties the list of strips that it is given -----------------------------------------------------
    def _middle(self, half: Half, strips: Strips) -> Strips:
        before, attention, behind = half.middle
        return self._res_block(behind, self._attention(attention, self._res_block(before, strips)))

    def _res_block(self, block: ResBlock, strips: Strips) -> Strips:
        h = self._norm_conv(block.second, self._norm_conv(block.first, strips, keep=True))
        added = ADD if block.shortcut is None else block.shortcut
        return [self._run(added, *pair) for pair in zip(emptied(h), emptied(strips), strict=True)]

    def _norm_conv(self, layer: NormConv, strips: Strips, keep: bool = False) -> Strips:
        norm = self._norm(layer.norm, strips)
        activated = (self._run(ACTIVATE, strip, norm) for strip in (strips if keep else emptied(strips)))
        return [self._run(layer.conv, *at) for at in neighbourhoods(activated)]

    def _norm(self, name: str, strips: Strips) -> Tensor:
        moments = [self._run(MOMENTS, strip).asnumpy() for strip in strips]
        return self._norms[name].of_channels([strip.shape[2] for strip in strips], moments)

    def _conv(self, block: Block, strips: Strips) -> Strips:
        return [self._run(block, *at) for at in neighbourhoods(emptied(strips))]

    _upsample = _conv

    def _downsample(self, block: Block, strips: Strips) -> Strips:
        return [self._run(block, at.strip, at.below) for at in neighbourhoods(emptied(strips))]

    def _attention(self, layer: Attention, strips: Strips) -> Strips:
        norm = self._norm(layer.norm, strips)
        rows = strips[0].shape[2]
        keys, values = (joined([self._run(b, x, norm) for x in strips]) for b in (layer.keys, layer.values))
        batch, _, height, width = keys.shape
        strips = regroup(strips, max(1, self._max_scores // (batch * height * width * width)))
        return regroup([self._run(layer.attend, x, norm, keys, values) for x in emptied(strips)], rows)
