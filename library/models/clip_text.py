"""CLIP text encoders in the key naming of transformers (which kohya's LoRA names follow).

Shapes: B batch, T tokens (77), D width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor

from library.device import kernels
from library.device.operations import batch_matmul, gather_rows
from library.device.values import Value
from library.models.block import Block, Layers, make_block
from library.models.unet import Run

END_OF_TEXT = 49407


# --- block functions ------------------------------------------------------------------------------------------------
def embed_tokens(ids_BT: Value, layers: Layers) -> Value:
    """Token plus position embeddings [B, T, D]."""
    tokens = gather_rows(layers.weights["token_embedding.weight"], ids_BT)
    return tokens + layers.weights["position_embedding.weight"]


def clip_layer_quick_gelu(x_BTD: Value, layers: Layers) -> Value:
    """A transformer layer of CLIP-L."""
    return _clip_layer(x_BTD, kernels.quick_gelu, layers)


def clip_layer_gelu(x_BTD: Value, layers: Layers) -> Value:
    """A transformer layer of OpenCLIP bigG."""
    return _clip_layer(x_BTD, kernels.gelu, layers)


def _clip_layer(x_BTD: Value, activation: Callable[[Value], Value], layers: Layers) -> Value:
    rows = x_BTD.reshape(-1, x_BTD.shape[-1])
    h = layers.layer_norm(rows, "layer_norm1")
    q, k, v = (layers.linear(h, f"self_attn.{name}_proj") for name in "qkv")
    rows = layers.product(rows + layers.linear(layers.attention(q, k, v, causal=True), "self_attn.out_proj"))
    h = layers.linear(layers.layer_norm(rows, "layer_norm2"), "mlp.fc1")
    return (rows + layers.linear(activation(h), "mlp.fc2")).reshape(x_BTD.shape)


def pool_and_project(hidden_BTD: Value, position_BT: Value, layers: Layers) -> Value:
    """Final norm, the token marked by the one-hot rows of ``position_BT``, projection: [B, D]."""
    batch, tokens, width = hidden_BTD.shape
    normed = layers.layer_norm(hidden_BTD.reshape(-1, width), "text_model.final_layer_norm")
    rows = position_BT.astype(normed.dtype).reshape(batch, 1, tokens)
    chosen = batch_matmul(rows, normed.reshape(batch, tokens, width)).reshape(batch, width)
    return kernels.dense(chosen, layers.weights["text_projection.weight"])


# --- layout -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ClipTextSpec:
    """Which blocks a text encoder has."""

    embed: Block
    layers: tuple[Block, ...]
    """All layers of the checkpoint; an encoder without ``pool`` stops before the last one."""
    pool: Block | None

    def blocks(self) -> tuple[Block, ...]:
        """The blocks that the forward pass runs, in its order."""
        if self.pool is None:
            return (self.embed, *self.layers[:-1])
        return (self.embed, *self.layers, self.pool)


def infer_clip_text_spec(part: str, shapes: Mapping[str, tuple[int, ...]], pooled: bool) -> ClipTextSpec:
    """Read the layout of an encoder from its keys.

    Args:
        part: ``te1`` or ``te2``.
        shapes: key -> shape, in transformers' naming.
        pooled: SDXL's second encoder: GELU, and a pooled and projected output beside the hidden states.

    Raises:
        ValueError: no layers are found.
    """
    root = "text_model.encoder.layers."
    count = 1 + max((int(key[len(root) :].split(".")[0]) for key in shapes if key.startswith(root)), default=-1)
    if count == 0:
        raise ValueError("this is not a CLIP text encoder: no text_model.encoder.layers")
    function = clip_layer_gelu if pooled else clip_layer_quick_gelu
    embed = make_block(part, embed_tokens, "text_model.embeddings.", shapes)
    pool = Block(
        part,
        pool_and_project,
        "",
        ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.weight", "text_projection.weight"),
    )
    return ClipTextSpec(
        embed=replace(embed, names=tuple(n for n in embed.names if not n.startswith("position_ids"))),
        layers=tuple(make_block(part, function, f"{root}{i}.", shapes) for i in range(count)),
        pool=pool if pooled else None,
    )


# --- forward ----------------------------------------------------------------------------------------------------------
def clip_text_forward(spec: ClipTextSpec, run: Run, ids_BT: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """Penultimate hidden states [B, T, D] (before the final norm), and the pooled output [B, D] or None.

    The pooled output is taken at the first end-of-text token, or at token 0 where there is none, as SDXL does.
    """
    hidden = run(spec.embed, Tensor(ids_BT.astype(np.int32)))
    for block in spec.layers[:-1]:
        hidden = run(block, hidden)
    if spec.pool is None:
        return hidden, None
    last = run(spec.layers[-1], hidden)
    first_end = (ids_BT == END_OF_TEXT).argmax(axis=1)
    one_hot = np.eye(ids_BT.shape[1], dtype=np.float32)[first_end]
    return hidden, run(spec.pool, last, Tensor(one_hot))
