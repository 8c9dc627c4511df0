"""Blocks: the unit that is compiled, recomputed and adapted.

A model is a sequence of block calls. A block function is pure: ``function(*inputs, layers) -> output``, where
``layers`` (``Layers``) applies the block's weights and their adapters. It is traced once for a kind of block and a
shape: equal blocks (the same function and options, weights of the same names and shapes, equal adapters) share one
compiled program, because weights are inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from library.graphs import kernels
from library.graphs import operations as op
from library.graphs.values import Value


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What the shapes of a model's weights do not say."""

    head_width: int = 0
    """Of attention; 0 where a block has none."""
    groups: int = 0
    """Of group normalisations; 0 where a block has none."""
    activation: str = ""
    """Name of the activation, where models of one layout differ in it."""


PLAIN = LayerOptions()


@dataclass(frozen=True)
class Block:
    """One place in a model where a block function is applied to the weights below a prefix."""

    part: str
    """Which model it belongs to: ``unet``, ``te1``, ``vae``, or "" for one without weights."""
    function: Callable[..., Any]
    """The pure function."""
    prefix: str = ""
    """Start of its weights' keys, with the last dot: ``input_blocks.4.1.transformer_blocks.0.``"""
    names: tuple[str, ...] = ()
    """Local names of its weights, in the order in which they are passed."""
    options: LayerOptions = PLAIN
    """What the function is to know beside its weights."""
    transposed: tuple[str, ...] = ()
    """Local names of the linear layers whose weight is held as [in, out] instead of [out, in]."""

    def held(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The block's weights out of the model's, in the order of ``names``."""
        return tuple(weights[self.prefix + name] for name in self.names)


Adapt = Callable[[Value, Value, Value, Value, int], Value]
"""What an adapter does to a layer: (its weight, its input, its output, random key, number of samples) -> adapted
output."""


@dataclass(frozen=True)
class Layers:
    """The layers of a block, as its function sees them. Where a method takes a name, it is the layer's local one."""

    weights: Mapping[str, Value]
    """Local name -> weight."""
    transposed: tuple[str, ...]
    """Layers whose weight is held as [in, out]."""
    options: LayerOptions
    adapters: Mapping[str, Adapt]
    """Layer name -> its adapter."""
    key: Value
    """Random key of this call."""
    batch: int
    """Number of samples."""
    product: Callable[[Value], Value]
    """Called with each result that took many operations, or stands for one that did; what it returns is gone on with.
    A gradient that is given what the forward pass kept puts that in the place of the computation."""

    def linear(self, rows: Value, name: str) -> Value:
        """A linear layer with its adapter, where it has one: rows [R, in] to [R, out]."""
        bias = self.weights.get(name + ".bias")
        y = kernels.dense(rows, self.weights[name + ".weight"], bias, name in self.transposed)
        return self._adapted(rows, y, name)

    def conv(self, x_BCHW: Value, name: str, stride: int, padding: int) -> Value:
        """A convolution with its adapter, where it has one."""
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return self._adapted(x_BCHW, kernels.conv2d(x_BCHW, weight, bias, stride, padding), name)

    def _adapted(self, x: Value, y: Value, name: str) -> Value:
        if name in self.adapters:
            weight = self.weights[name + ".weight"]
            weight = op.transpose(weight, (1, 0)) if name in self.transposed else weight
            y = self.adapters[name](weight, x, y, self.key, self.batch)
        return self.product(y)

    def attention(self, q: Value, k: Value, v: Value, causal: bool = False) -> Value:
        """Rows [B T, D], [B S, D], [B S, D] to rows [B T, D]; ``causal``: a token sees itself and earlier ones only."""
        return self.product(kernels.attention(q, k, v, self.batch, self.options.head_width, causal, self.product))

    def gated_gelu(self, x: Value) -> Value:
        """First half of the last axis times the GELU of the second."""
        return kernels.gated_gelu(x, self.product)

    def layer_norm(self, rows: Value, name: str) -> Value:
        """A layer normalisation."""
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return kernels.layer_norm(rows, weight, bias, self.product)

    def group_norm(self, x_BCHW: Value, name: str, eps: float) -> Value:
        """A group normalisation."""
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return kernels.group_norm(x_BCHW, weight, bias, self.options.groups, eps, self.product)
