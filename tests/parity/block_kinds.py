"""One small example of every kind of block that models are made of, with an adapter beside each of its layers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.device.profile import Device
from library.graphs import kernels
from library.graphs.block import PLAIN, LayerOptions
from library.graphs.program import AdapterEntry, Kind, Outline, Program
from library.graphs.random import keep_mask
from library.graphs.values import Shape, Value
from library.models import clip_text, unet
from library.models.weights import TRANSPOSED, held_shape

C, D, E, X, M = 8, 8, 12, 6, 10
"""Channels, width of tokens, of embeddings, of text, of the sinusoids."""
OUT = 2 * C
BATCH, TOKENS, TEXT = 2, 12, 5
IMAGE = (BATCH, C, 4, 3)
VOCABULARY = 9
DROPOUT = 0.25


@dataclass(frozen=True)
class LowRank:
    """An adapter of rank 2 with a dropout between its matrices."""

    shape: Shape
    stride: int = 1
    padding: int = 0

    def shapes(self) -> dict[str, Shape]:
        """Of its tensors."""
        ones = (1,) * len(self.shape[2:])
        return {"down": (2, *self.shape[1:]), "up": (self.shape[0], 2, *ones)}

    def factors(self) -> dict[str, float]:
        """What tensors are multiplied by before they are used."""
        return {"up": 0.5}

    def apply(
        self, tensors: Mapping[str, Value], salt: int, weight: Value, x: Value, y: Value, key: Value, batch: int
    ) -> Value:
        """The adapted output."""
        down, up = tensors["down"].astype(x.dtype), tensors["up"].astype(x.dtype)
        is_conv = len(self.shape) == 4
        h = kernels.conv2d(x, down, None, self.stride, self.padding) if is_conv else kernels.dense(x, down)
        mask = keep_mask(h.size // h.shape[-1], h.shape[-1], DROPOUT, key, salt)
        h = h * mask.reshape(h.shape).astype(h.dtype)
        return y + (kernels.conv2d(h, up, None, 1, 0) if is_conv else kernels.dense(h, up))


@dataclass(frozen=True)
class Example:
    """A block function with shapes."""

    function: Callable[..., Value]
    shapes: Mapping[str, Shape]
    """Local name -> shape of each weight, as in a checkpoint."""
    inputs: tuple[Shape, ...]
    options: LayerOptions = PLAIN
    stride: int = 1

    @property
    def is_embedding(self) -> bool:
        """Whether the input are token numbers."""
        return self.function is clip_text.embed_tokens

    def kind(self, dtype: ms.Type) -> Kind:
        """Of its program, with weights of a type: all of them are trained, and the layers have adapters besides."""
        weights = tuple((name, Outline(held_shape(name, shape), str(dtype))) for name, shape in self.shapes.items())
        layers = {name.removesuffix(".weight"): shape for name, shape in self.shapes.items() if name.endswith("weight")}
        adapters = tuple(
            AdapterEntry(name, LowRank(shape, self.stride, shape[-1] // 2 if len(shape) == 4 else 0))
            for name, shape in layers.items()
            if len(shape) > 1 and "embedding" not in name and name != "text_projection"
        )
        transposed = tuple(name for name in layers if name in TRANSPOSED)
        return Kind(
            self.function,
            self.options,
            weights,
            transposed,
            adapters,
            tuple(self.shapes),
        )

    def outlines(self, dtype: ms.Type) -> tuple[Outline, ...]:
        """Of its inputs, what flows between blocks being of a type."""
        return tuple(Outline(shape, str(ms.int32 if self.is_embedding else dtype)) for shape in self.inputs)

    def tensors(self, dtype: ms.Type) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and weights, the same numbers in any type, rounded to halves so that all types have the same."""
        rng = np.random.default_rng(3)
        numbers = rng.integers(0, VOCABULARY, self.inputs[0]).astype(np.int32)
        inputs = [Tensor(numbers)] if self.is_embedding else [_drawn(rng, shape, 1.0, dtype) for shape in self.inputs]
        weights = []
        for name, shape in self.shapes.items():
            scale = 1.0 if len(shape) == 1 else 1.0 / np.sqrt(np.prod(shape[1:]))
            weights.append(_drawn(rng, held_shape(name, shape), scale, dtype))
        return inputs, weights

    def adapter_stacks(self, program: Program) -> list[Tensor]:
        """Its adapters' tensors, as the program takes them; in float32 always."""
        rng = np.random.default_rng(4)
        return [_drawn(rng, stack.whole_shape, 0.3, ms.float32) for stack in program._stacks]

    def results(self, device: Device, keep: bool = True) -> list[np.ndarray]:
        """The output, and the gradients of the inputs, the adapters and the weights along a fixed direction."""
        program = Program(self.kind(device.dtype), device)
        inputs, weights = self.tensors(device.dtype)
        others = [*self.adapter_stacks(program), Tensor(7, ms.int32), *weights]
        wanted = () if self.is_embedding else tuple(range(len(inputs)))
        out, saved = program.forward_and_save(inputs, others, wanted, keep)
        d_out = _drawn(np.random.default_rng(6), out.shape, 1.0, out.dtype)
        return [_array(x) for x in (out, *program.gradients(saved, others, d_out))]


def _drawn(rng: np.random.Generator, shape: Shape, scale: float, dtype: ms.Type) -> Tensor:
    numbers = (rng.standard_normal(shape) * scale).astype(np.float16).astype(np.float32)
    return Tensor(numbers, dtype)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.astype(ms.float32).asnumpy()  # type: ignore[no-any-return]


def _layer(name: str, *shape: int, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def _attention(name: str, context: int) -> dict[str, Shape]:
    return (
        _layer(f"{name}.to_q", D, D, bias=False)
        | _layer(f"{name}.to_k", D, context, bias=False)
        | _layer(f"{name}.to_v", D, context, bias=False)
        | _layer(f"{name}.to_out.0", D, D)
    )


def _res_block(channels: int) -> dict[str, Shape]:
    shapes = _layer("in_layers.0", channels) | _layer("in_layers.2", OUT, channels, 3, 3)
    shapes |= _layer("emb_layers.1", OUT, E) | _layer("out_layers.0", OUT) | _layer("out_layers.3", OUT, OUT, 3, 3)
    return shapes if channels == OUT else shapes | _layer("skip_connection", OUT, channels, 1, 1)


def _clip_layer(activation: str) -> Example:
    shapes = _layer("layer_norm1", D) | _layer("layer_norm2", D)
    shapes |= _layer("mlp.fc1", 4 * D, D) | _layer("mlp.fc2", D, 4 * D)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _layer(f"self_attn.{name}", D, D)
    options = LayerOptions(head_width=4, activation=activation)
    return Example(clip_text.clip_layer, shapes, ((BATCH, TEXT, D),), options)


_NORMS = {key: shape for i in (1, 2, 3) for key, shape in _layer(f"norm{i}", D).items()}
_GROUPS = LayerOptions(groups=2)
EXAMPLES: dict[str, Example] = {
    "embed_time": Example(
        unet.embed_time,
        _layer("time_embed.0", E, M) | _layer("time_embed.2", E, E)
        | _layer("label_emb.0.0", E, X) | _layer("label_emb.0.2", E, E),
        ((BATCH, M), (BATCH, X)),
    ),
    "conv_in": Example(unet.conv_in, _layer("0", C, 4, 3, 3), ((BATCH, 4, 4, 3),)),
    "res_block": Example(unet.res_block, _res_block(C), (IMAGE, (BATCH, E)), _GROUPS),
    "res_block, as wide": Example(unet.res_block, _res_block(OUT), ((BATCH, OUT, 4, 3), (BATCH, E)), _GROUPS),
    "res_block_with_skip": Example(
        unet.res_block_with_skip, _res_block(C + 4), (IMAGE, (BATCH, 4, 4, 3), (BATCH, E)), _GROUPS
    ),
    "downsample": Example(unet.downsample, _layer("op", OUT, C, 3, 3), ((BATCH, C, 4, 6),), stride=2),
    "upsample": Example(unet.upsample, _layer("conv", OUT, C, 3, 3), (IMAGE,)),
    "transformer_in": Example(unet.transformer_in, _layer("norm", C) | _layer("proj_in", D, C), (IMAGE,), _GROUPS),
    "transformer_block": Example(
        unet.transformer_block,
        _NORMS | _attention("attn1", D) | _attention("attn2", X)
        | _layer("ff.net.0.proj", 8 * D, D) | _layer("ff.net.2", D, 4 * D),
        ((BATCH, TOKENS, D), (BATCH, TEXT, X)),
        LayerOptions(head_width=4),
    ),
    "transformer_out": Example(unet.transformer_out, _layer("proj_out", C, D), ((BATCH, TOKENS, D), IMAGE)),
    "conv_out": Example(unet.conv_out, _layer("0", C) | _layer("2", 4, C, 3, 3), (IMAGE,), _GROUPS),
    "embed_tokens": Example(
        clip_text.embed_tokens,
        {"token_embedding.weight": (VOCABULARY, D), "position_embedding.weight": (TEXT, D)},
        ((BATCH, TEXT),),
    ),
    "clip_layer": _clip_layer("gelu"),
    "clip_layer, quick": _clip_layer("quick_gelu"),
    "pool_and_project": Example(
        clip_text.pool_and_project,
        _layer("text_model.final_layer_norm", D) | _layer("text_projection", X, D, bias=False),
        ((BATCH, TEXT, D), (BATCH, TEXT)),
    ),
}  # fmt: skip


def block_functions(module: ModuleType) -> set[Any]:
    """The block functions of a module: those that are given layers last."""
    functions = [thing for _, thing in inspect.getmembers(module, inspect.isfunction)]
    return {
        f for f in functions if not f.__name__.startswith("_") and [*inspect.signature(f).parameters][-1:] == ["layers"]
    }
