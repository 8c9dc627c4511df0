"""Blocks: the unit that is compiled, recomputed and adapted.

A model is a sequence of block calls. A block function is pure: ``function(*inputs, parts)``, where ``parts`` carries
the block's frozen weights under their local names, the adapters of its layers, and a random key. Equal blocks (the same
function, weight names and adapters) share one compiled program whatever their weights, because weights are inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mindspore import Tensor

from library.device import kernels


@dataclass(frozen=True)
class Block:
    """One place in a model where a block function is applied to the weights below a prefix."""

    part: str
    """Which model it belongs to: ``unet``, ``te1``, ``te2``, or "" for one without weights."""
    function: Callable[..., Tensor]
    """The pure function; module level, because the compiler reads its source."""
    prefix: str
    """Start of its weights' keys, with the last dot: ``input_blocks.4.1.transformer_blocks.0.``"""
    names: tuple[str, ...]
    """Local names of its weights, in the order in which they are passed."""
    arity: int
    """Number of tensors that flow in, besides the weights."""

    def frozen(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The block's weights out of the model's, in the order of ``names``."""
        return tuple(weights[self.prefix + name] for name in self.names)


def make_block(
    part: str, function: Callable[..., Tensor], prefix: str, keys: Mapping[str, object], arity: int
) -> Block:
    """A block over all keys that begin with the prefix."""
    names = tuple(sorted(key[len(prefix) :] for key in keys if key.startswith(prefix)))
    return Block(part, function, prefix, names, arity)


def linear(x: Tensor, name: str, parts: tuple) -> Tensor:
    """The linear layer ``name`` of a block, with its adapter where it has one."""
    weights, adapters, key = parts
    if name + ".bias" in weights:
        y = kernels.dense(x, weights[name + ".weight"], weights[name + ".bias"])
    else:
        y = kernels.dense(x, weights[name + ".weight"])
    if name in adapters:
        y = adapters[name](x, y, weights, key)
    return y


def conv(x_BCHW: Tensor, name: str, stride: int, padding: int, parts: tuple) -> Tensor:
    """The convolution ``name`` of a block, with its adapter where it has one."""
    weights, adapters, key = parts
    y = kernels.conv2d(x_BCHW, weights[name + ".weight"], weights[name + ".bias"], stride, padding)
    if name in adapters:
        y = adapters[name](x_BCHW, y, weights, key)
    return y


def layer_norm(x: Tensor, name: str, parts: tuple) -> Tensor:
    """The layer normalisation ``name`` of a block."""
    weights = parts[0]
    return kernels.layer_norm(x, weights[name + ".weight"], weights[name + ".bias"])


def group_norm(x_BCHW: Tensor, name: str, eps: float, parts: tuple) -> Tensor:
    """The group normalisation ``name`` of a block."""
    weights = parts[0]
    return kernels.group_norm(x_BCHW, weights[name + ".weight"], weights[name + ".bias"], eps)
