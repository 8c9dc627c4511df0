"""CLIP text encoders in the key naming of transformers (which kohya's LoRA names follow).

Shapes: B batch, T tokens (77), D width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from mindspore import Tensor

from library.data.text.tokenizer import EOS
from library.graphs import kernels
from library.graphs.block import Block, LayerOptions, Layers
from library.graphs.operations import batch_matmul, gather_rows
from library.graphs.program import Apply
from library.graphs.values import Value
from library.models.weights import make_block, named_block

TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"


# --- block functions ------------------------------------------------------------------------------------------------
def embed_tokens(ids_BT: Value, layers: Layers) -> Value:
    """Token plus position embeddings [B, T, D]."""
    tokens = gather_rows(layers.weights["token_embedding.weight"], ids_BT)
    return tokens + layers.weights["position_embedding.weight"]


ACTIVATIONS: Mapping[str, Callable[[Value], Value]] = MappingProxyType(
    {"quick_gelu": kernels.quick_gelu, "gelu": kernels.gelu}
)
"""By their names in transformers' ``hidden_act``; an encoder's options name one."""


def clip_layer(x_BTD: Value, layers: Layers) -> Value:
    """A transformer layer."""
    activation = ACTIVATIONS[layers.options.activation]
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


def infer_clip_text_spec(
    part: str, shapes: Mapping[str, tuple[int, ...]], options: LayerOptions, pooled: bool
) -> ClipTextSpec:
    """Read the layout of an encoder from its keys.

    Args:
        part: ``te1`` or ``te2``.
        shapes: key -> shape, in transformers' naming.
        options: what the shapes do not say.
        pooled: with a pooled and projected output beside the hidden states.

    Raises:
        ValueError: no layers are found.
    """
    root = "text_model.encoder.layers."
    count = 1 + max((int(key[len(root) :].split(".")[0]) for key in shapes if key.startswith(root)), default=-1)
    if count == 0:
        raise ValueError("this is not a CLIP text encoder: no text_model.encoder.layers")
    embeddings = "text_model.embeddings."
    names = [key.removeprefix(embeddings) for key in shapes if key.startswith(embeddings) and "position_ids" not in key]
    pool = ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.weight", "text_projection.weight")
    return ClipTextSpec(
        embed=named_block(part, embed_tokens, embeddings, names),
        layers=tuple(make_block(part, clip_layer, f"{root}{i}.", shapes, options) for i in range(count)),
        pool=named_block(part, pool_and_project, "", pool) if pooled else None,
    )


# --- forward ----------------------------------------------------------------------------------------------------------
def clip_text_forward(spec: ClipTextSpec, apply: Apply, ids_BT: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """Penultimate hidden states [B, T, D] (before the final norm), and the pooled output [B, D] or None.

    The pooled output is taken at the first end-of-text token, or at token 0 where there is none.
    """
    hidden = apply(spec.embed, Tensor(ids_BT.astype(np.int32)))
    for block in spec.layers[:-1]:
        hidden = apply(block, hidden)
    if spec.pool is None:
        return hidden, None
    last = apply(spec.layers[-1], hidden)
    first_end = (ids_BT == EOS).argmax(axis=1)
    one_hot = np.eye(ids_BT.shape[1], dtype=np.float32)[first_end]
    return hidden, apply(spec.pool, last, Tensor(one_hot))
