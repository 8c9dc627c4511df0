"""What the VAE's layers compute, as block functions over strips of rows (``library/models/strips.py``).

For inference only: nothing here has a gradient. Shapes: B batch, C channels, H W height and width, R rows of a strip,
N = B C, T pixels. A ``norm_2N`` is what ``GroupNorm.of_channels`` gives.
"""

from mindspore import dtype as mstype

from library.graphs import kernels
from library.graphs import operations as op
from library.graphs.block import Layers
from library.graphs.values import Value

BESIDE = (0, 0, 1, 1)
"""Zeros around a strip that has its neighbours' rows: a column at the left and one at the right."""


def conv(x_BCRW: Value, above_BC1W: Value, below_BC1W: Value, layers: Layers) -> Value:
    """3 x 3 convolution of a strip, given the row above it and the row below it."""
    return _conv3x3(op.concat((above_BC1W, x_BCRW, below_BC1W), 2), layers)


def pointwise(x_BCRW: Value, layers: Layers) -> Value:
    """1 x 1 convolution."""
    return _conv1x1(x_BCRW, layers)


def activate(x_BCRW: Value, norm_2N: Value, layers: Layers) -> Value:
    """Normalise, SiLU."""
    return op.silu(_normalized(x_BCRW, norm_2N))


def downsample(x_BCRW: Value, below_BC1W: Value, layers: Layers) -> Value:
    """3 x 3 convolution of stride 2, with a zero row below the picture and a zero column at its right only."""
    y = op.conv2d(op.concat((x_BCRW, below_BC1W), 2), layers.weights["weight"], 2, (0, 0, 0, 1))
    return op.bias_add(y, layers.weights["bias"])


def upsample(x_BCRW: Value, above_BC1W: Value, below_BC1W: Value, layers: Layers) -> Value:
    """Nearest neighbour to twice the size, then a 3 x 3 convolution: [B, C, 2 R, 2 W]."""
    above, x, below = (kernels.upsample_nearest_2x(part) for part in (above_BC1W, x_BCRW, below_BC1W))
    return _conv3x3(op.concat((op.narrow(above, 2, 1, 1), x, op.narrow(below, 2, 0, 1)), 2), layers)


def add(x_BCRW: Value, y_BCRW: Value, layers: Layers) -> Value:
    """The sum of two strips."""
    return x_BCRW + y_BCRW


def add_shortcut(y_BCRW: Value, x_BCRW: Value, layers: Layers) -> Value:
    """A strip and the 1 x 1 convolution of another with other channels."""
    return y_BCRW + _conv1x1(x_BCRW, layers)


def project(x_BCRW: Value, norm_2N: Value, layers: Layers) -> Value:
    """Keys or values of attention: normalise, 1 x 1 convolution."""
    return _conv1x1(_normalized(x_BCRW, norm_2N), layers)


def attend(x_BCRW: Value, norm_2N: Value, keys_BCHW: Value, values_BCHW: Value, layers: Layers) -> Value:
    """Attention of a strip's pixels to all pixels, projected and added to the strip.

    One head as wide as there are channels, which fused attention does not serve. Channels stay in front of pixels, so
    that nothing is transposed.
    """
    batch, channels = x_BCRW.shape[:2]
    q = _conv1x1(_normalized(x_BCRW, norm_2N), layers, "q.") * channels**-0.5
    q, k, v = (x.reshape(batch, channels, -1) for x in (q, keys_BCHW, values_BCHW))
    p = op.softmax(op.batch_matmul_tn(q, k).astype(mstype.float32)).astype(v.dtype)
    y = op.batch_matmul_nt(v, p).reshape(x_BCRW.shape)
    return x_BCRW + _conv1x1(y, layers, "proj_out.")


def moments(x_BCRW: Value, layers: Layers) -> Value:
    """Mean, and mean squared distance from it, of each group of each image: float32 [B groups, 2]."""
    return kernels.row_moments(x_BCRW.reshape(x_BCRW.shape[0] * layers.options.groups, -1))


def _normalized(x_BCRW: Value, norm_2N: Value) -> Value:
    scale, shift = (op.narrow(norm_2N, 0, i, 1).reshape(-1) for i in (0, 1))
    return kernels.scale_channels(x_BCRW, scale, shift)


def _conv3x3(x_BCRW: Value, layers: Layers) -> Value:
    """Of rows that have their neighbours: the result has two rows less."""
    return op.bias_add(op.conv2d(x_BCRW, layers.weights["weight"], 1, BESIDE), layers.weights["bias"])


def _conv1x1(x_BCRW: Value, layers: Layers, name: str = "") -> Value:
    return op.bias_add(op.conv2d(x_BCRW, layers.weights[name + "weight"], 1, 0), layers.weights[name + "bias"])
