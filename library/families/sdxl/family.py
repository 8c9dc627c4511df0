"""The SDXL family: what training and sampling need to know about SDXL."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import Tensor

from library.data.batch import EncodedText, Posterior
from library.device.cores import settled
from library.families.sdxl import forward as sdxl
from library.families.sdxl.checkpoint import OutlineFile, SdxlWeights, load_weights, lora_targets
from library.families.sdxl.forward import SdxlSpec, TextOutputs, TextSpec
from library.graphs.block import Block
from library.graphs.layer_target import LayerTarget
from library.graphs.program import Forward, bind
from library.models.clip_text import infer_clip_text_spec
from library.models.unet import Run, infer_unet_spec
from library.models.vae import VAE_SCALE, Vae, load_vae
from library.models.weights import to_tensors
from library.settings.config_util import DatasetConfig
from library.training.diffusion import DiffusionInputs
from library.training.step import bind_all
from library.training.trained import Trainable, TrainedNetwork

logger = logging.getLogger(__name__)

BUCKET_STEP = 32
"""Bucket sides must be multiples of this: the VAE and the UNet halve the image five times."""


@dataclass
class SdxlModel:
    """A base model on the device."""

    spec: SdxlSpec
    weights: dict[str, dict[str, Tensor]]
    """Part -> key -> tensor."""
    vae: Vae
    run: Forward
    """Applies the blocks of all parts without gradients."""

    @property
    def dtype(self) -> ms.Type:
        """Type of the UNet's and text encoders' tensors."""
        return next(iter(self.weights["unet"].values())).dtype

    def without_text_encoders(self) -> "SdxlModel":
        """The same model when captions need not be encoded any more; gives their memory back."""
        kept = {block: bound for block, bound in self.run.bound.items() if block.part in ("", "unet")}
        return replace(self, weights={"unet": self.weights["unet"]}, run=Forward(kept, self.run.segments))


def build_model(
    weights: SdxlWeights, dtype: ms.Type = ms.float32, network: TrainedNetwork | None = None, compiled: bool = True
) -> SdxlModel:
    """Put a base model on the device.

    Args:
        weights: its arrays; float32 ones are used in place, and the two dictionaries are emptied on the way.
        dtype: type of the UNet's and text encoders' tensors; the VAE is float32.
        network: adapters that are applied when the model is run (sampling with an unmerged LoRA).
        compiled: compile the blocks.
    """
    spec = infer_spec(weights.parts)
    tensors = {part: to_tensors(arrays, dtype) for part, arrays in weights.parts.items()}
    vae = load_vae(weights.vae)
    return SdxlModel(spec, tensors, vae, inference_run(spec, tensors, network, compiled))


def infer_spec(parts: Mapping[str, Mapping[str, np.ndarray]]) -> SdxlSpec:
    """The layout of the three models, from their shapes."""
    text = infer_text_spec(parts)
    return SdxlSpec(text.te1, text.te2, infer_unet_spec(_shapes(parts["unet"])))


def infer_text_spec(parts: Mapping[str, Mapping[str, np.ndarray]]) -> TextSpec:
    """The layout of the text encoders, from their shapes."""
    return TextSpec(
        infer_clip_text_spec("te1", _shapes(parts["te1"]), pooled=False),
        infer_clip_text_spec("te2", _shapes(parts["te2"]), pooled=True),
    )


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


def build_text_encoders(
    weights: SdxlWeights, dtype: ms.Type = ms.float32, compiled: bool = True
) -> tuple[TextSpec, Forward]:
    """Put the text encoders alone on the device; the arguments are those of ``build_model``."""
    spec = infer_text_spec(weights.parts)
    tensors = {part: to_tensors(weights.parts[part], dtype) for part in ("te1", "te2")}
    blocks = (*spec.text_blocks(), *sdxl.join_blocks())
    return spec, Forward({block: bind(block, tensors, compiled=compiled) for block in blocks})


def inference_run(
    spec: SdxlSpec, tensors: Mapping[str, Mapping[str, Tensor]], network: TrainedNetwork | None, compiled: bool
) -> Forward:
    """Applies the model's blocks without gradients, with a network's adapters where one is given."""
    blocks = sdxl.all_blocks(spec)
    if network is None:
        return Forward({block: bind(block, tensors, compiled=compiled) for block in blocks})
    trainable = Trainable(network, blocks)
    return Forward(bind_all(tensors, blocks, trainable, compiled), trainable.split(Tensor(trainable.pack())))


def text_outputs(text: EncodedText, dtype: ms.Type) -> TextOutputs:
    """Conditioning from a cache."""
    context = np.concatenate((text.hidden1, text.hidden2), axis=-1)
    return TextOutputs(Tensor(context).astype(dtype), Tensor(text.pooled).astype(dtype))


class SdxlFamily:
    """SDXL for the training loop and the sampler."""

    def load(self, name_or_path: str, vae: str | None, te2_projection: str) -> SdxlWeights:
        """Read a base model; see ``sdxl_model_util.load_weights`` for what it takes and raises."""
        return load_weights(name_or_path, vae, te2_projection)

    def outline(self, name_or_path: str, vae: str | None) -> SdxlWeights:
        """The base model checked as ``load`` does, with zeros that take no memory in the place of its values."""
        return load_weights(name_or_path, vae, file_type=OutlineFile)

    def lora_targets(self, weights: SdxlWeights) -> list[LayerTarget]:
        """Every layer that a network may adapt."""
        return lora_targets(weights)

    def trained_blocks(self, model: SdxlModel) -> tuple[Block, ...]:
        """The blocks of a training step's forward pass, in its order."""
        return tuple(block for block in sdxl.all_blocks(model.spec) if block.part in ("", *model.weights))

    def encode_images(self, model: SdxlModel, images_BCHW: np.ndarray, at_once: int) -> Posterior:
        """What the VAE says of images in [-1, 1]; latents are [B, 4, H / 8, W / 8]. `at_once` images are encoded."""
        return model.vae.encode(images_BCHW, at_once)

    def draw_latents(self, posterior: Posterior, eps_BCHW: np.ndarray) -> np.ndarray:
        """Scaled latents, drawn with the given standard normal noise."""
        return posterior.draw(eps_BCHW) * np.float32(VAE_SCALE)

    @settled()
    def encode_text(
        self, model: SdxlModel, token_ids: Sequence[np.ndarray], token_weights_BNT: np.ndarray | None = None
    ) -> TextOutputs:
        """Conditioning of token ids, one [B, chunks, 77] per text encoder, without gradients; weights are optional."""
        return sdxl.encode_text(model.spec, model.run, (token_ids[0], token_ids[1]), token_weights_BNT)

    def check_buckets(self, configs: Sequence[DatasetConfig]) -> None:
        """Sizes must suit the models.

        Raises:
            ValueError: bucket_reso_steps is not a multiple of 32.
        """
        for config in configs:
            if config.enable_bucket and config.bucket_reso_steps % BUCKET_STEP:
                raise ValueError(
                    f"{config.source}: bucket_reso_steps = {config.bucket_reso_steps}, SDXL needs a multiple of "
                    f"{BUCKET_STEP}"
                )

    def training_prediction(
        self,
        model: SdxlModel,
        inputs: DiffusionInputs,
        token_ids: Sequence[np.ndarray],
        size_ids_B6: np.ndarray,
        train_text: bool,
        token_weights_BNT: np.ndarray | None = None,
        cached_text: EncodedText | None = None,
    ) -> Callable[[Run], Tensor]:
        """One batch's prediction as a function of how blocks are run.

        With ``train_text`` the text encoders are part of it and get gradients; else they are run here, without, unless
        their outputs are in a cache.
        """
        noisy = Tensor(inputs.noisy_BCHW)
        ids = (token_ids[0], token_ids[1])
        if cached_text is not None:
            assert not train_text, "outputs of trained text encoders are not cached"
            frozen_text: TextOutputs | None = text_outputs(cached_text, model.dtype)
        else:
            frozen_text = None if train_text else self.encode_text(model, ids, token_weights_BNT)

        def predict(run: Run) -> Tensor:
            text = frozen_text or sdxl.encode_text(model.spec, run, ids, token_weights_BNT)
            return sdxl.predict(model.spec, run, noisy, inputs.timesteps_B, text, size_ids_B6)

        return predict

    @settled()
    def predict(
        self,
        model: SdxlModel,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        text: TextOutputs,
        size_ids_B6: np.ndarray,
    ) -> np.ndarray:
        """The UNet's answer [B, 4, H, W] without gradients."""
        noisy = Tensor(np.ascontiguousarray(latents_BCHW, np.float32))
        return sdxl.predict(model.spec, model.run, noisy, timesteps_B, text, size_ids_B6).asnumpy()

    def decode(self, model: SdxlModel, latents_BCHW: np.ndarray) -> np.ndarray:
        """Images, about [-1, 1], of scaled latents."""
        return model.vae.decode(latents_BCHW / np.float32(VAE_SCALE))
