"""Blocks: the unit that is compiled, recomputed and adapted.

A model is a sequence of block calls. A block function is pure: ``function(*inputs, parts)``, where ``parts`` carries
the block's frozen weights under their local names, the adapters of its layers, a random key, and results that are
already known. Equal blocks (the same function, weight names and adapters) share one compiled program whatever their
weights, because weights are inputs.
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


def linear(x: Tensor, name: str, parts: tuple) -> Tensor:
    """The linear layer ``name`` of a block, with its adapter where it has one."""
    weights, adapters, key, _ = parts
    bias = None
    if name + ".bias" in weights:
        bias = weights[name + ".bias"]
    y = kernels.dense(x, weights[name + ".weight"], bias, name in TRANSPOSED)
    if name in adapters:
        y = adapters[name](x, y, weights, key)
    return _known(y, name, parts)


def conv(x_BCHW: Tensor, name: str, stride: int, padding: int, parts: tuple) -> Tensor:
    """The convolution ``name`` of a block, with its adapter where it has one."""
    weights, adapters, key, _ = parts
    y = kernels.conv2d(x_BCHW, weights[name + ".weight"], weights[name + ".bias"], stride, padding)
    if name in adapters:
        y = adapters[name](x_BCHW, y, weights, key)
    return _known(y, name, parts)


def attention(q_BTD: Tensor, k_BSD: Tensor, v_BSD: Tensor, name: str, parts: tuple) -> Tensor:
    """The attention ``name`` of a block."""
    return _known(kernels.attention(q_BTD, k_BSD, v_BSD), name, parts)


def causal_attention(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, name: str, parts: tuple) -> Tensor:
    """The attention ``name`` of a block, where a token sees itself and earlier ones only."""
    return _known(kernels.causal_attention(q_BTD, k_BTD, v_BTD), name, parts)


def _known(computed: Tensor, name: str, parts: tuple) -> Tensor:
    """A result, or what was kept of it in the forward pass."""
    kept = parts[3]
    if name in kept:
        return kernels.known(computed, kept[name])
    return computed


def layer_norm(x: Tensor, name: str, parts: tuple) -> Tensor:
    """The layer normalisation ``name`` of a block."""
    weights = parts[0]
    return kernels.layer_norm(x, weights[name + ".weight"], weights[name + ".bias"])


def group_norm(x_BCHW: Tensor, name: str, eps: float, parts: tuple) -> Tensor:
    """The group normalisation ``name`` of a block."""
    weights = parts[0]
    return kernels.group_norm(x_BCHW, weights[name + ".weight"], weights[name + ".bias"], eps)
