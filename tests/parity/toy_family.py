"""A family of models that is not Stable Diffusion: a denoiser of three kinds of small blocks, one text encoder of a
table and a layer, an autoencoder that averages squares of pixels. Nothing of it is known to the library.

Shapes: B batch, T tokens, D width of the words, C channels, H W latent pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from library.data.batch import Batch, Posterior, TextArrays
from library.data.text.tokenizer import BOS, CHUNK, ClipTokenizer
from library.device.profile import Device
from library.families.base import (
    BaseModel,
    BaseWeights,
    Conditioning,
    FamilyFacts,
    OutlineSetup,
    Shape,
    StepOptions,
    TrainedBy,
    clean_latents,
)
from library.files.safetensors_utils import SafetensorsFile, save_file
from library.graphs import kernels
from library.graphs import operations as op
from library.graphs.block import Block, LayerOptions, Layers
from library.graphs.layer_target import LayerTarget
from library.graphs.program import Apply, Forward, bind
from library.graphs.values import Value
from library.models.footprint import Footprint
from library.models.random_weights import random_weight
from library.models.weights import make_block, to_tensors
from library.training.diffusion import Draws
from library.training.step import StepInputs

DENOISER, WORDS = "denoiser", "te"
"""The parts."""
CHANNELS, WIDTH, TIMES, GROUPS = 8, 6, 4, 2
CONTEXT = "words"
"""Name of the only conditioning."""
LATENT_SCALE = 0.5
VOCABULARY = BOS + 2
SHAPES: Mapping[str, Mapping[str, Shape]] = {
    DENOISER: {
        "enter.conv.weight": (CHANNELS, 4, 3, 3),
        "enter.conv.bias": (CHANNELS,),
        "enter.time.weight": (CHANNELS, TIMES),
        "enter.time.bias": (CHANNELS,),
        **{f"mix.{i}.{name}.weight": (CHANNELS, WIDTH) for i in (0, 1) for name in ("mlp.fc1", "gate")},
        "leave.norm.weight": (CHANNELS,),
        "leave.norm.bias": (CHANNELS,),
        "leave.conv.weight": (4, CHANNELS, 3, 3),
        "leave.conv.bias": (4,),
    },
    WORDS: {
        "word.embedding.weight": (VOCABULARY, WIDTH),
        "word.proj.weight": (WIDTH, WIDTH),
        "spare.proj.weight": (WIDTH, WIDTH),
    },
}
"""Part -> key -> shape. The weights of ``mlp.fc1`` are held turned, as its name asks for (models.weights).
Nothing reads ``spare``."""
STAGES = {"enter": ("down", 0), "mix": ("mid", 1), "leave": ("up", 3)}
"""Stage, and number of its first block."""


# --- block functions --------------------------------------------------------------------------------------------------
def enter(x_BCHW: Value, times_BM: Value, layers: Layers) -> Value:
    """Latents and time to channels."""
    h = layers.conv(x_BCHW.astype(layers.weights["conv.weight"].dtype), "conv", 1, 1)
    return layers.product(kernels.add_to_channels(h, layers.linear(times_BM.astype(h.dtype), "time")))


def mix(x_BCHW: Value, words_BTD: Value, layers: Layers) -> Value:
    """The mean word, through two layers whose product is added to the channels."""
    mean_BD = op.mean(words_BTD, (1,))
    shift = layers.linear(mean_BD, "mlp.fc1") * op.sigmoid(layers.linear(mean_BD, "gate"))
    return op.silu(kernels.add_to_channels(x_BCHW, shift))


def leave(x_BCHW: Value, layers: Layers) -> Value:
    """Channels to the prediction."""
    return layers.conv(op.silu(layers.group_norm(x_BCHW, "norm", 1e-5)), "conv", 1, 1).astype(mstype.float32)


def embed(ids_BT: Value, layers: Layers) -> Value:
    """Token ids to words [B, T, D]."""
    rows = op.gather_rows(layers.weights["embedding.weight"], ids_BT)
    return layers.linear(rows.reshape(-1, WIDTH), "proj").reshape(*ids_BT.shape, WIDTH)


# --- the family -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ToySpec:
    """Which blocks there are."""

    word: Block
    enter: Block
    mixes: tuple[Block, ...]
    leave: Block

    def blocks(self) -> tuple[Block, ...]:
        """In the order of the forward pass."""
        return (self.word, self.enter, *self.mixes, self.leave)


class ToyVae:
    """Latents are three colours and their mean, of squares of 8 x 8 pixels, each times a gain."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.gain_C = weights["gain"]

    def encode(self, images_BCHW: np.ndarray, at_once: int) -> Posterior:
        """See models.vae.Vae."""
        batch, _, height, width = images_BCHW.shape
        colours = images_BCHW.reshape(batch, 3, height // 8, 8, width // 8, 8).mean((3, 5))
        mean = np.concatenate((colours, colours.mean(1, keepdims=True)), 1) * self.gain_C.reshape(1, 4, 1, 1)
        return Posterior(mean.astype(np.float32), np.full(mean.shape, 0.25, np.float16))

    def decode(self, latents_BCHW: np.ndarray) -> np.ndarray:
        """See models.vae.Vae."""
        colours = latents_BCHW[:, :3] / self.gain_C[:3].reshape(1, 3, 1, 1)
        return colours.repeat(8, 2).repeat(8, 3)


@dataclass(frozen=True)
class ToyFamily:
    """For the methods see ``Family``."""

    facts: FamilyFacts = FamilyFacts(
        name="Toy",
        latent_scale=LATENT_SCALE,
        size_step=8,
        latents_ending="_toy.npz",
        text_ending="_toy_words.npz",
        base_model_version="toy_v7",
        architecture="toy-denoiser",
        implementation="the tests",
        unet_part=DENOISER,
    )

    def tokenizers(self) -> tuple[ClipTokenizer, ...]:
        """One."""
        return (ClipTokenizer(pad_token_id=0),)

    def load(self, name_or_path: str, vae: str | None) -> BaseWeights:
        """From a file of ``save_toy``."""
        with SafetensorsFile(Path(name_or_path)) as file:
            arrays = {key: file.read(key, np.float32) for key in file}
        parts: dict[str, dict[str, np.ndarray]] = {DENOISER: {}, WORDS: {}, "vae": {}}
        for key, array in arrays.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = array
        return BaseWeights({part: parts[part] for part in (WORDS, DENOISER)}, parts["vae"])

    def outline(self, name_or_path: str, vae: str | None) -> BaseWeights:
        """It is small."""
        return self.load(name_or_path, vae)

    def targets(self, weights: BaseWeights) -> list[LayerTarget]:
        """All linear layers; convolutions are extended."""
        found = []
        for part, arrays in weights.parts.items():
            for key, array in arrays.items():
                layer, is_conv = key.removesuffix(".weight"), array.ndim == 4
                if array.ndim < 2 or "embedding" in key:
                    continue
                stage, first = STAGES.get(layer.split(".")[0], ("", 0))
                index = int(layer.split(".")[1]) if stage == "mid" else 0
                name = f"lora_{part}_{layer.replace('.', '_')}"
                place: dict[str, Any] = {"stage": stage, "stage_index": index, "block": first + index}
                found.append(LayerTarget(part, layer, name, array.shape, 1, int(is_conv), **place, extended=is_conv))
        return found

    def spec(self, weights: BaseWeights) -> ToySpec:
        """The layout."""
        keys, groups = weights.parts[DENOISER], LayerOptions(groups=GROUPS)
        return ToySpec(
            word=make_block(WORDS, embed, "word.", weights.parts[WORDS]),
            enter=make_block(DENOISER, enter, "enter.", keys),
            mixes=tuple(make_block(DENOISER, mix, f"mix.{i}.", keys) for i in (0, 1)),
            leave=make_block(DENOISER, leave, "leave.", keys, groups),
        )

    def blocks(self, spec: ToySpec, parts: Sequence[str]) -> tuple[Block, ...]:
        """Those of some parts."""
        return tuple(block for block in spec.blocks() if block.part in ("", *parts))

    def build(self, weights: BaseWeights, device: Device, trained_by: TrainedBy | None = None) -> BaseModel:
        """On the device."""
        spec = self.spec(weights)
        tensors = {part: to_tensors(arrays, device.dtype) for part, arrays in weights.parts.items()}
        blocks = spec.blocks()
        bound = {block: bind(block, tensors, device) for block in blocks}
        if trained_by is not None:
            bound = trained_by(blocks).bind(tensors, blocks, device)
        return BaseModel(spec, tensors, ToyVae(weights.vae), Forward(bound), device)  # type: ignore[arg-type]

    def build_text_encoders(self, weights: BaseWeights, device: Device) -> BaseModel:
        """The text encoder alone."""
        return self.build(weights, device).only(WORDS)

    def encode_text(
        self, model: BaseModel, token_ids: Sequence[np.ndarray], token_weights_BNT: np.ndarray | None = None
    ) -> Conditioning:
        """Words of ids [B, 1, 77]."""
        return {CONTEXT: _words(model.spec, model.forward, token_ids)}

    def text_arrays(self, text: Conditioning) -> TextArrays:
        """The words as they are."""
        return {CONTEXT: text[CONTEXT].asnumpy()}

    def text_shapes(self, weights: BaseWeights, tokens: int) -> tuple[tuple[str, Shape], ...]:
        """Of one caption."""
        return ((CONTEXT, (tokens + 2, WIDTH)),)

    def step_inputs(self, model: BaseModel, batch: Batch, draws: Draws, options: StepOptions) -> StepInputs:
        """See Family."""
        latents = clean_latents(self, model, batch, draws, options.vae_batch_size)
        inputs = draws.diffusion(batch.index, latents, batch.loss_weights_B, batch.masks_BHW)
        noisy = Tensor(inputs.noisy_BCHW)
        words: Tensor | None = None
        if batch.text is not None:
            words = Tensor(batch.text[CONTEXT])
        elif not options.train_text:
            words = self.encode_text(model, batch.token_ids)[CONTEXT]

        def predict(apply: Apply) -> Tensor:
            mine = _words(model.spec, apply, batch.token_ids) if words is None else words
            return _denoise(model.spec, apply, noisy, inputs.timesteps_B, mine)

        return StepInputs(predict, inputs.target_BCHW, inputs.weights_B1HW, batch.index)

    def predict(
        self,
        model: BaseModel,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        text: Conditioning,
        size_ids_B6: np.ndarray,
    ) -> np.ndarray:
        """See Family; sizes play no part."""
        noisy = Tensor(np.ascontiguousarray(latents_BCHW, np.float32))
        return _denoise(model.spec, model.forward, noisy, timesteps_B, text[CONTEXT]).asnumpy()  # type: ignore[no-any-return]

    def forward_outlines(self, spec: ToySpec, apply: Footprint, setup: OutlineSetup) -> None:
        """See Family."""
        batch = setup.noisy.shape[0]
        words = _words(spec, apply, (np.zeros((batch, setup.chunks, CHUNK), np.int64),))
        if not setup.train_text:
            apply.forget()
        _denoise(spec, apply, setup.noisy, np.zeros(batch), words)


def time_features(timesteps_B: np.ndarray) -> np.ndarray:
    """float32 [B, M]."""
    turns = np.arange(1, TIMES + 1) * timesteps_B.reshape(-1, 1) / 1000
    return np.sin(turns).astype(np.float32)


def _words(spec: ToySpec, apply: Any, token_ids: Sequence[np.ndarray]) -> Any:
    (ids,) = token_ids
    return apply(spec.word, Tensor(ids.reshape(len(ids), -1).astype(np.int32)))


def _denoise(spec: ToySpec, apply: Any, noisy: Any, timesteps_B: np.ndarray, words: Any) -> Any:
    x = apply(spec.enter, noisy, Tensor(time_features(timesteps_B)))
    for block in spec.mixes:
        x = apply(block, x, words)
    return apply(spec.leave, x)


def toy_weights(seed: int) -> BaseWeights:
    """Weights by rule."""
    parts = {
        part: {key: random_weight(seed, key, shape) for key, shape in SHAPES[part].items()}
        for part in (WORDS, DENOISER)
    }
    parts[WORDS]["word.embedding.weight"] *= 20.0  # of the size of the others: else captions hardly matter
    return BaseWeights(parts, {"gain": np.float32([1.0, 1.5, 2.0, 0.5])})


def save_toy(path: Path, seed: int = 1) -> Path:
    """Write a base model."""
    weights = toy_weights(seed)
    arrays = {f"{part}.{key}": array for part, named in weights.parts.items() for key, array in named.items()}
    save_file(arrays | {f"vae.{key}": array for key, array in weights.vae.items()}, path, {})
    return path


# --- the same in NumPy ------------------------------------------------------------------------------------------------
def numpy_words(weights: BaseWeights, ids_BT: np.ndarray) -> np.ndarray:
    """Words [B, T, D], in float64."""
    mine = {key: array.astype(np.float64) for key, array in weights.parts[WORDS].items()}
    return mine["word.embedding.weight"][ids_BT] @ mine["word.proj.weight"].T


def numpy_prediction(
    weights: BaseWeights,
    noisy_BCHW: np.ndarray,
    timesteps_B: np.ndarray,
    words_BTD: np.ndarray,
    mixes: Sequence[int] = (0, 1),
) -> np.ndarray:
    """What the denoiser answers, in float64 and without any of the library; ``mixes``: those blocks in their order."""
    w = {key: array.astype(np.float64) for key, array in weights.parts[DENOISER].items()}
    x = _numpy_conv(noisy_BCHW.astype(np.float64), w["enter.conv.weight"], w["enter.conv.bias"])
    x += (time_features(timesteps_B) @ w["enter.time.weight"].T + w["enter.time.bias"])[:, :, None, None]
    mean = words_BTD.mean(1)
    for i in mixes:
        gate = 1 / (1 + np.exp(-mean @ w[f"mix.{i}.gate.weight"].T))
        x = _numpy_silu(x + (mean @ w[f"mix.{i}.mlp.fc1.weight"].T * gate)[:, :, None, None])
    groups = x.reshape(len(x), GROUPS, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    normed = groups.reshape(x.shape) * w["leave.norm.weight"][:, None, None] + w["leave.norm.bias"][:, None, None]
    return _numpy_conv(_numpy_silu(normed), w["leave.conv.weight"], w["leave.conv.bias"])


def _numpy_silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _numpy_conv(x_BCHW: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3 x 3, padded by 1."""
    height, width = x_BCHW.shape[2:]
    padded = np.pad(x_BCHW, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros((len(x_BCHW), len(weight), height, width))
    for i in range(3):
        for j in range(3):
            total += np.einsum("bchw,oc->bohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return total + bias[:, None, None]
