"""SDXL as pure functions: text to conditioning, noised latents to prediction.

Shapes: B batch, N chunks of 77 tokens per caption, T = 75 N + 2 joined tokens, D width.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from library.data.text.tokenizer import CHUNK
from library.families.sdxl.facts import SIZE_EMBEDDING_WIDTH
from library.graphs.block import Block, Layers
from library.graphs.operations import concat, narrow
from library.graphs.program import Apply
from library.graphs.values import Value
from library.models.clip_text import ClipTextSpec, clip_text_forward
from library.models.unet import UNetSpec, sinusoidal_embedding, unet_forward


@dataclass(frozen=True)
class TextOutputs:
    """What the text encoders give to the UNet."""

    context_BTD: Tensor
    """Hidden states of both encoders side by side."""
    pooled_BD: Tensor
    """Pooled and projected output of the second encoder."""


@dataclass(frozen=True)
class TextSpec:
    """Layout of the two text encoders."""

    te1: ClipTextSpec
    te2: ClipTextSpec

    def text_blocks(self) -> tuple[Block, ...]:
        """Blocks of both text encoders that a forward pass runs, in its order."""
        return (*self.te1.blocks(), *self.te2.blocks())


@dataclass(frozen=True)
class SdxlSpec(TextSpec):
    """Layout of the three models with trained or adapted layers."""

    unet: UNetSpec

    def unet_blocks(self) -> tuple[Block, ...]:
        """Blocks of the UNet, in the order of the forward pass."""
        return self.unet.blocks()


@functools.cache
def join_context(chunks: int) -> Block:
    """Block (hidden1 [B*N, 77, D1], hidden2 [B*N, 77, D2]) -> context [B, 75 N + 2, D1 + D2].

    Kept are the first token of the first chunk, the 75 in the middle of every chunk, and the last of the last one.
    """

    def join(hidden1: Value, hidden2: Value, layers: Layers) -> Value:
        hidden = concat((hidden1, hidden2), -1)
        if chunks == 1:
            return hidden
        width, length = hidden.shape[-1], CHUNK
        hidden = hidden.reshape(-1, chunks, length, width)
        middle = narrow(hidden, 2, 1, (CHUNK - 2)).reshape(-1, chunks * (CHUNK - 2), width)
        tokens = hidden.reshape(-1, chunks * length, width)
        return concat((narrow(tokens, 1, 0, 1), middle, narrow(tokens, 1, chunks * length - 1, 1)), 1)

    return Block("", join, "", ())


def weigh_context(context_BTD: Value, weights_BT1: Value, layers: Layers) -> Value:
    """Context with every token's hidden state multiplied by its weight."""
    return context_BTD * weights_BT1.astype(context_BTD.dtype)


WEIGH_CONTEXT = Block("", weigh_context, "", ())


def joined_weights(weights_BNT: np.ndarray) -> np.ndarray:
    """Token weights [B, N, 77] as ``join_context`` lays the tokens out: [B, 75 N + 2, 1]. The ends weigh 1."""
    middle = weights_BNT[:, :, 1:-1].reshape(len(weights_BNT), -1)
    return np.pad(middle, ((0, 0), (1, 1)), constant_values=1.0)[..., None]


@functools.cache
def join_vector(chunks: int) -> Block:
    """Block (pooled [B*N, D], size embeddings [B, E]) -> vector [B, D + E]; pooled is the first chunk's."""

    def join(pooled: Value, size_embeddings: Value, layers: Layers) -> Value:
        batch, width = size_embeddings.shape[0], pooled.shape[1]
        first = narrow(pooled.reshape(batch, chunks, width), 1, 0, 1).reshape(batch, width)
        return concat((first, size_embeddings.astype(pooled.dtype)), 1)

    return Block("", join, "", ())


def encode_text(
    spec: TextSpec, apply: Apply, token_ids: Sequence[np.ndarray], token_weights_BNT: np.ndarray | None = None
) -> TextOutputs:
    """Token ids of both encoders, each [B, N, 77], to conditioning; ``pooled_BD`` still has all chunks [B*N, D].

    Token weights multiply the hidden states of both encoders; the pooled output knows nothing of them, as in
    kohya's SdxlTextEncodingStrategy.
    """
    batch, chunks, length = token_ids[0].shape
    ids1, ids2 = (ids.reshape(batch * chunks, length) for ids in token_ids)
    hidden1, _ = clip_text_forward(spec.te1, apply, ids1)
    hidden2, pooled = clip_text_forward(spec.te2, apply, ids2)
    assert pooled is not None
    context = apply(join_context(chunks), hidden1, hidden2)
    if token_weights_BNT is not None:
        context = apply(WEIGH_CONTEXT, context, Tensor(joined_weights(token_weights_BNT)))
    return TextOutputs(context, pooled)


def size_embeddings(size_ids_B6: np.ndarray) -> np.ndarray:
    """Sinusoidal embeddings of (original h, w, crop top, left, target h, w): [B, 6 * 256]."""
    batch = size_ids_B6.shape[0]
    return sinusoidal_embedding(size_ids_B6.reshape(-1), SIZE_EMBEDDING_WIDTH).reshape(batch, -1)


def predict(
    spec: SdxlSpec,
    apply: Apply,
    noisy_BCHW: Tensor,
    timesteps_B: np.ndarray,
    text: TextOutputs,
    size_ids_B6: np.ndarray,
) -> Tensor:
    """Noise or velocity [B, 4, H, W] at the given timesteps (0 to 999)."""
    sizes = Tensor(size_embeddings(size_ids_B6))
    chunks = text.pooled_BD.shape[0] // sizes.shape[0]
    vector = apply(join_vector(chunks), text.pooled_BD, sizes)
    sinusoid = Tensor(sinusoidal_embedding(timesteps_B, spec.unet.sinusoid_width))
    return unet_forward(spec.unet, apply, noisy_BCHW, sinusoid, vector, text.context_BTD)


MAX_CHUNKS = 3
"""225 tokens."""


def all_blocks(spec: SdxlSpec) -> tuple[Block, ...]:
    """Every block that a forward pass of the three models may run."""
    return (*spec.text_blocks(), *spec.unet_blocks(), *join_blocks())


def join_blocks() -> tuple[Block, ...]:
    """The blocks without weights between the models."""
    joins: list[Callable[[int], Block]] = [join_context, join_vector]
    return (WEIGH_CONTEXT, *(join(chunks) for join in joins for chunks in range(1, MAX_CHUNKS + 1)))
