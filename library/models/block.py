"""Blocks: the unit that is compiled, recomputed and adapted.

A model is a sequence of block calls. A block function is pure: ``function(*inputs, parts)``, where ``parts`` carries
the block's frozen weights, the adapters of its layers, a random key, and results that are already known (``Parts``).
Equal blocks (the same function, weight names and adapters) share one compiled program whatever their weights, because
weights are inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.device import kernels
from library.models.weights import TRANSPOSED


@dataclass(frozen=True)
class Block:
    """One place in a model where a block function is applied to the weights below a prefix."""

    part: str
    """Which model it belongs to: ``unet``, ``te1``, ``te2``, or "" for one without weights."""
    function: Callable[..., Any]
    """The pure function; module level, because the compiler reads its source."""
    prefix: str
    """Start of its weights' keys, with the last dot: ``input_blocks.4.1.transformer_blocks.0.``"""
    names: tuple[str, ...]
    """Local names of its weights, in the order in which they are passed."""
    arity: int
    """Number of tensors that flow in, besides the weights."""
    kept: tuple[str, ...] = ()
    """What its gradient can go on from instead of computing it again: names of products, in the order in which the
    function returns them behind its output. Without any, the function returns its output alone."""

    def frozen(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The block's weights out of the model's, in the order of ``names``."""
        return tuple(weights[self.prefix + name] for name in self.names)


def make_block(
    part: str,
    function: Callable[..., Any],
    prefix: str,
    keys: Mapping[str, object],
    arity: int,
    kept: tuple[str, ...] = (),
) -> Block:
    """A block over all keys that begin with the prefix."""
    names = tuple(sorted(key[len(prefix) :] for key in keys if key.startswith(prefix)))
    return Block(part, function, prefix, names, arity, kept)


# --- for block functions ----------------------------------------------------------------------------------------------
Parts = tuple
"""What a block function is given beside its inputs, in this order:

    names     local name of a weight -> its position in ``frozen``
    frozen    the weights
    adapters  layer name -> what its adapter computes
    theta     the adapters' tensors
    key       random key of this call
    batch     number of samples
    known     name of a product -> its position in ``kept``; empty where nothing is kept
    kept      results that need not be computed again

Names are looked up while a graph is compiled. Tensors are in tuples because a graph in which dictionaries of them are
made takes a fifth longer to compile.
"""


def weight(name: str, parts: Parts) -> Tensor:
    """A weight by its local name."""
    names, frozen = parts[0], parts[1]
    return frozen[names[name]]


def linear(rows: Tensor, name: str, parts: Parts) -> Tensor:
    """The linear layer ``name`` of a block, with its adapter where it has one: rows [R, in] to [R, out]."""
    names, frozen, adapters, theta, key, batch, _, _ = parts
    bias = None
    if name + ".bias" in names:
        bias = frozen[names[name + ".bias"]]
    y = kernels.dense(rows, frozen[names[name + ".weight"]], bias, name in TRANSPOSED)
    if name in adapters:
        y = adapters[name](rows, y, theta, key, batch)
    return _known(y, name, parts)


def conv(x_BCHW: Tensor, name: str, stride: int, padding: int, parts: Parts) -> Tensor:
    """The convolution ``name`` of a block, with its adapter where it has one."""
    names, frozen, adapters, theta, key, batch, _, _ = parts
    y = kernels.conv2d(x_BCHW, frozen[names[name + ".weight"]], frozen[names[name + ".bias"]], stride, padding)
    if name in adapters:
        y = adapters[name](x_BCHW, y, theta, key, batch)
    return _known(y, name, parts)


def attention(q: Tensor, k: Tensor, v: Tensor, name: str, parts: Parts) -> Tensor:
    """The attention ``name`` of a block: rows [B T, D], [B S, D], [B S, D] to rows [B T, D]."""
    return _known(kernels.attention(q, k, v, parts[5]), name, parts)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, name: str, parts: Parts) -> Tensor:
    """The attention ``name`` of a block, where a token sees itself and earlier ones only; all are rows [B T, D]."""
    return _known(kernels.causal_attention(q, k, v, parts[5]), name, parts)


def _known(computed: Tensor, name: str, parts: Parts) -> Tensor:
    """A result, or what was kept of it in the forward pass."""
    known, kept = parts[6], parts[7]
    if name in known:
        return kernels.known(computed, kept[known[name]])
    return computed


def layer_norm(rows: Tensor, name: str, parts: Parts) -> Tensor:
    """The layer normalisation ``name`` of a block."""
    return kernels.layer_norm(rows, weight(name + ".weight", parts), weight(name + ".bias", parts))


def group_norm(x_BCHW: Tensor, name: str, eps: float, parts: Parts) -> Tensor:
    """The group normalisation ``name`` of a block."""
    return kernels.group_norm(x_BCHW, weight(name + ".weight", parts), weight(name + ".bias", parts), eps)
