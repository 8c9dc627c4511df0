"""CLIP text encoders in the key naming of transformers (which kohya's LoRA names follow).

Shapes: B batch, T tokens (77), D width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from mindspore import Tensor, ops

from library.device import kernels
from library.models.block import Block, Parts, causal_attention, layer_norm, linear, make_block, weight
from library.models.unet import Run

END_OF_TEXT = 49407


# --- block functions ------------------------------------------------------------------------------------------------
def embed_tokens(ids_BT: Tensor, parts: Parts) -> Tensor:
    """Token plus position embeddings [B, T, D]."""
    tokens = ops.gather(weight("token_embedding.weight", parts), ids_BT, 0)
    return tokens + weight("position_embedding.weight", parts)


def clip_layer_quick_gelu(x_BTD: Tensor, parts: Parts) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A transformer layer of CLIP-L; keeps all products."""
    h, kept = _self_attention(x_BTD, parts)
    inner = linear(layer_norm(h, "layer_norm2", parts), "mlp.fc1", parts)
    return (h + linear(kernels.quick_gelu(inner), "mlp.fc2", parts)).reshape(x_BTD.shape), (*kept, inner)


def clip_layer_gelu(x_BTD: Tensor, parts: Parts) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A transformer layer of OpenCLIP bigG; keeps all products."""
    h, kept = _self_attention(x_BTD, parts)
    inner = linear(layer_norm(h, "layer_norm2", parts), "mlp.fc1", parts)
    return (h + linear(kernels.gelu(inner), "mlp.fc2", parts)).reshape(x_BTD.shape), (*kept, inner)


def _self_attention(x_BTD: Tensor, parts: Parts) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows of tokens with attention added, and what is kept."""
    rows = x_BTD.reshape(-1, x_BTD.shape[-1])
    h = layer_norm(rows, "layer_norm1", parts)
    q = linear(h, "self_attn.q_proj", parts)
    k = linear(h, "self_attn.k_proj", parts)
    v = linear(h, "self_attn.v_proj", parts)
    a = causal_attention(q, k, v, "self_attn", parts)
    y = linear(a, "self_attn.out_proj", parts)
    return rows + y, (q, k, v, a, y)


CLIP_LAYER_KEPT = tuple(f"self_attn{layer}" for layer in (".q_proj", ".k_proj", ".v_proj", "", ".out_proj")) + (
    "mlp.fc1",
)


def pool_and_project(hidden_BTD: Tensor, position_BT: Tensor, parts: Parts) -> Tensor:
    """Final norm, the token marked by the one-hot rows of ``position_BT``, projection: [B, D]."""
    normed = layer_norm(hidden_BTD, "text_model.final_layer_norm", parts)
    chosen = (normed * position_BT.expand_dims(-1)).sum(1)
    return kernels.dense(chosen, weight("text_projection.weight", parts))


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
    embed = make_block(part, embed_tokens, "text_model.embeddings.", shapes, 1)
    pool = Block(
        part,
        pool_and_project,
        "",
        ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.weight", "text_projection.weight"),
        2,
    )
    return ClipTextSpec(
        embed=replace(embed, names=tuple(n for n in embed.names if not n.startswith("position_ids"))),
        layers=tuple(make_block(part, function, f"{root}{i}.", shapes, 1, CLIP_LAYER_KEPT) for i in range(count)),
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
