"""Stable Diffusion XL, as the rest of the house sees it (families.base.Family)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.data.batch import Batch, TextArrays
from library.data.text.tokenizer import CHUNK, ClipTokenizer
from library.device.cores import settled
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
from library.families.sdxl import forward
from library.families.sdxl.checkpoint import OutlineFile, load_weights
from library.families.sdxl.facts import (
    GROUPS,
    HEAD_WIDTH,
    HIDDEN_1,
    HIDDEN_2,
    LATENT_SCALE,
    POOLED,
    SIZE_NUMBERS,
    SIZE_STEP,
)
from library.families.sdxl.forward import SdxlSpec, TextOutputs, TextSpec
from library.families.sdxl.targets import lora_targets
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.files.safetensors_utils import SafetensorsFile
from library.graphs.block import Block, LayerOptions
from library.graphs.layer_target import LayerTarget
from library.graphs.program import Apply, Forward, bind
from library.models.clip_text import TOKEN_EMBEDDING, infer_clip_text_spec
from library.models.footprint import Footprint
from library.models.unet import infer_unet_spec
from library.models.vae import load_vae
from library.models.weights import to_tensors
from library.training.diffusion import Draws
from library.training.step import StepInputs

UNET_OPTIONS = LayerOptions(head_width=HEAD_WIDTH, groups=GROUPS)
TEXT_1_OPTIONS = LayerOptions(head_width=HEAD_WIDTH, activation="quick_gelu")
"""CLIP ViT-L."""
TEXT_2_OPTIONS = LayerOptions(head_width=HEAD_WIDTH, activation="gelu")
"""OpenCLIP ViT-bigG."""
CONTEXT, POOLED_TEXT = "context", "pooled"
"""Names of conditioning: hidden states of both encoders side by side [B, T, D], pooled output of the second."""


@dataclass(frozen=True)
class SdxlFamily:
    """SDXL; for the methods see ``Family``."""

    te2_projection: str = "correct"
    """``correct`` transposes a single file's text_projection, ``kohya`` does not."""
    facts: FamilyFacts = FamilyFacts(
        name="SDXL",
        latent_scale=LATENT_SCALE,
        size_step=SIZE_STEP,
        latents_ending="_sdxl.npz",
        text_ending="_te_outputs.npz",
        base_model_version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        implementation="https://github.com/Stability-AI/generative-models",
    )

    def tokenizers(self) -> tuple[ClipTokenizer, ...]:
        """See Family."""
        return sdxl_tokenizers()

    def load(
        self, name_or_path: str, vae: str | None, file_type: type[SafetensorsFile] = SafetensorsFile
    ) -> BaseWeights:
        """See Family; ``file_type`` may be one that reads less (see ``load_weights``)."""
        return load_weights(name_or_path, vae, self.te2_projection, file_type=file_type)

    def outline(self, name_or_path: str, vae: str | None) -> BaseWeights:
        """See Family."""
        return load_weights(name_or_path, vae, self.te2_projection, file_type=OutlineFile)

    def targets(self, weights: BaseWeights) -> list[LayerTarget]:
        """See Family."""
        return lora_targets(weights)

    def spec(self, weights: BaseWeights) -> SdxlSpec:
        """See Family."""
        text = text_spec(weights)
        return SdxlSpec(text.te1, text.te2, infer_unet_spec(_shapes(weights.parts["unet"]), UNET_OPTIONS))

    def blocks(self, spec: SdxlSpec, parts: Sequence[str]) -> tuple[Block, ...]:
        """See Family."""
        return tuple(block for block in forward.all_blocks(spec) if block.part in ("", *parts))

    def build(self, weights: BaseWeights, device: Device, trained_by: TrainedBy | None = None) -> BaseModel:
        """See Family."""
        spec = self.spec(weights)
        blocks = forward.all_blocks(spec)
        tensors = {part: to_tensors(arrays, device.dtype) for part, arrays in weights.parts.items()}
        vae = load_vae(weights.vae, device)
        if trained_by is None:
            bound = {block: bind(block, tensors, device) for block in blocks}
        else:
            bound = trained_by(blocks).bind(tensors, blocks, device)
        return BaseModel(spec, tensors, vae, Forward(bound), device)

    def build_text_encoders(self, weights: BaseWeights, device: Device) -> BaseModel:
        """See Family."""
        spec = text_spec(weights)
        tensors = {part: to_tensors(weights.parts[part], device.dtype) for part in ("te1", "te2")}
        blocks = (*spec.text_blocks(), *forward.join_blocks())
        applied = Forward({block: bind(block, tensors, device) for block in blocks})
        return BaseModel(spec, tensors, None, applied, device)

    def encode_text(
        self, model: BaseModel, token_ids: Sequence[np.ndarray], token_weights_BNT: np.ndarray | None = None
    ) -> Conditioning:
        """See Family."""
        with settled(model.device.profile):
            return _conditioning(forward.encode_text(model.spec, model.forward, token_ids, token_weights_BNT))

    def text_arrays(self, text: Conditioning) -> TextArrays:
        """See Family: float16 where the text encoders compute in it, else float32."""
        context, pooled = (_half_or_float(text[name]) for name in (CONTEXT, POOLED_TEXT))
        width2 = pooled.shape[-1]
        # kohya keeps the pooled output of the first chunk, the only one that is used.
        first = pooled.reshape(len(context), -1, width2)[:, 0]
        return {HIDDEN_1: context[..., :-width2], HIDDEN_2: context[..., -width2:], POOLED: first}

    def text_shapes(self, weights: BaseWeights, tokens: int) -> tuple[tuple[str, Shape], ...]:
        """See Family."""
        width1, width2 = (weights.parts[part][TOKEN_EMBEDDING].shape[1] for part in ("te1", "te2"))
        length = tokens + 2
        return (HIDDEN_1, (length, width1)), (HIDDEN_2, (length, width2)), (POOLED, (width2,))

    def step_inputs(self, model: BaseModel, batch: Batch, draws: Draws, options: StepOptions) -> StepInputs:
        """See Family."""
        latents = clean_latents(self, model, batch, draws, options.vae_batch_size)
        inputs = draws.diffusion(batch.index, latents, batch.loss_weights_B, batch.masks_BHW)
        noisy, weights_BNT = Tensor(inputs.noisy_BCHW), batch.token_weights_BNT
        if batch.text is not None:
            assert not options.train_text, "outputs of trained text encoders are not cached"
            frozen: TextOutputs | None = _from_arrays(batch.text, model.device.dtype)
        elif options.train_text:
            frozen = None
        else:
            frozen = _text_outputs(self.encode_text(model, batch.token_ids, weights_BNT))

        def predict(apply: Apply) -> Tensor:
            text = frozen or forward.encode_text(model.spec, apply, batch.token_ids, weights_BNT)
            return forward.predict(model.spec, apply, noisy, inputs.timesteps_B, text, batch.size_ids_B6)

        return StepInputs(predict, inputs.target_BCHW, inputs.weights_B1HW, batch.index)

    def predict(
        self,
        model: BaseModel,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        text: Conditioning,
        size_ids_B6: np.ndarray,
    ) -> np.ndarray:
        """See Family."""
        noisy = Tensor(np.ascontiguousarray(latents_BCHW, np.float32))
        with settled(model.device.profile):
            return forward.predict(
                model.spec, model.forward, noisy, timesteps_B, _text_outputs(text), size_ids_B6
            ).asnumpy()

    def forward_outlines(self, spec: SdxlSpec, apply: Footprint, setup: OutlineSetup) -> None:
        """See Family."""
        batch = setup.noisy.shape[0]
        ids = np.zeros((batch, setup.chunks, CHUNK), np.int64)
        text = forward.encode_text(spec, apply, (ids, ids))
        if not setup.train_text:
            apply.forget()
        timesteps, sizes = np.zeros(batch), np.zeros((batch, SIZE_NUMBERS))
        forward.predict(spec, apply, setup.noisy, timesteps, text, sizes)


def text_spec(weights: BaseWeights) -> TextSpec:
    """The layout of the text encoders, from their shapes."""
    return TextSpec(
        infer_clip_text_spec("te1", _shapes(weights.parts["te1"]), TEXT_1_OPTIONS, pooled=False),
        infer_clip_text_spec("te2", _shapes(weights.parts["te2"]), TEXT_2_OPTIONS, pooled=True),
    )


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    return {key: array.shape for key, array in arrays.items()}


def _conditioning(text: TextOutputs) -> Conditioning:
    return {CONTEXT: text.context_BTD, POOLED_TEXT: text.pooled_BD}


def _text_outputs(text: Conditioning) -> TextOutputs:
    return TextOutputs(text[CONTEXT], text[POOLED_TEXT])


def _from_arrays(text: TextArrays, dtype: ms.Type) -> TextOutputs:
    """Conditioning from a cache."""
    context = np.concatenate((text[HIDDEN_1], text[HIDDEN_2]), axis=-1)
    return TextOutputs(Tensor(context).astype(dtype), Tensor(text[POOLED]).astype(dtype))


def _half_or_float(tensor: Any) -> np.ndarray:
    array: np.ndarray = (tensor if tensor.dtype == ms.float16 else tensor.astype(ms.float32)).asnumpy()
    return array
