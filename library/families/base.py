"""What a family of models is to the rest of the house: facts, and functions from files to a training step's inputs.

A family knows its models; the loop, the caches, the saver and the tools know only what stands here. Only scripts and
tools choose one by name. Shapes: B batch, N chunks of tokens, T tokens, C channels, H W latent pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from library.data.batch import Batch, Posterior, TextArrays
from library.data.text.tokenizer import ClipTokenizer
from library.device.profile import Device
from library.graphs.block import Block
from library.graphs.layer_target import LayerTarget
from library.graphs.program import Forward, Outline
from library.models.footprint import Footprint
from library.models.vae import Vae
from library.training.diffusion import Draws
from library.training.step import StepInputs
from library.training.trained import Trained

Shape = tuple[int, ...]
Conditioning = Mapping[str, Tensor]
"""What the text encoders give to a prediction, by the family's names."""


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """Facts about a family that others need."""

    name: str
    """For people: ``SDXL``."""
    latent_scale: float
    """Latents are multiplied by this before they are noised."""
    size_step: int
    """Sides of pictures are multiples of this, in pixels."""
    latents_ending: str
    """Of the names of cache files with latents, as kohya has it."""
    text_ending: str
    """Of the names of cache files with what the text encoders give."""
    base_model_version: str
    """``ss_base_model_version`` of saved files."""
    architecture: str
    """``modelspec.architecture`` of the base model."""
    implementation: str
    """``modelspec.implementation``."""
    unet_part: str = "unet"
    """The part that predicts; all others are text encoders."""


@dataclass
class BaseWeights:
    """A base model as NumPy arrays."""

    parts: dict[str, dict[str, np.ndarray]]
    """Part -> key -> array."""
    vae: dict[str, np.ndarray]
    """VAE, in any of the namings that models.vae reads."""


@dataclass
class BaseModel:
    """A base model on the device."""

    spec: Any
    """Its layout; the family's own."""
    weights: dict[str, dict[str, Tensor]]
    """Part -> key -> tensor."""
    vae: Vae | None
    """None where only the text encoders are there."""
    forward: Forward
    """Applies its blocks without gradients."""
    device: Device

    def only(self, *parts: str) -> "BaseModel":
        """The same model with some of its parts; gives the memory of the others back."""
        kept = {block: bound for block, bound in self.forward.bound.items() if block.part in ("", *parts)}
        return replace(
            self, weights={part: self.weights[part] for part in parts}, forward=Forward(kept, self.forward.keys)
        )


class Family(Protocol):
    """One kind of models."""

    @property
    def facts(self) -> FamilyFacts:
        """What is true of all its models."""
        ...

    def tokenizers(self) -> tuple[ClipTokenizer, ...]:
        """One for each text encoder."""
        ...

    def load(self, name_or_path: str, vae: str | None) -> BaseWeights:
        """Read a base model: a .safetensors file, a diffusers folder, or a hub name; ``vae`` replaces its own.

        Raises:
            ValueError: no such model, a file that is not whole, or keys that are missing, foreign or of another shape.
        """
        ...

    def outline(self, name_or_path: str, vae: str | None) -> BaseWeights:
        """The base model checked as ``load`` does, with zeros that take no memory in the place of its values."""
        ...

    def targets(self, weights: BaseWeights) -> list[LayerTarget]:
        """Every layer that a network may adapt, in kohya's order."""
        ...

    def spec(self, weights: BaseWeights) -> Any:
        """The layout, from shapes."""
        ...

    def blocks(self, spec: Any, parts: Sequence[str]) -> tuple[Block, ...]:
        """The blocks of a step's forward pass that belong to some parts (or to none), in its order."""
        ...

    def build(self, weights: BaseWeights, device: Device, trained_by: "TrainedBy | None" = None) -> BaseModel:
        """Put a base model on the device.

        Args:
            weights: its arrays; float32 ones are used in place, and the dictionaries are emptied on the way.
            device: where to.
            trained_by: gives, for the model's blocks, what is applied with them when the model is run.
        """
        ...

    def build_text_encoders(self, weights: BaseWeights, device: Device) -> BaseModel:
        """Put the text encoders alone on the device."""
        ...

    def encode_text(
        self, model: BaseModel, token_ids: Sequence[np.ndarray], token_weights_BNT: np.ndarray | None = None
    ) -> Conditioning:
        """Conditioning of token ids, one [B, N, 77] per text encoder, without gradients."""
        ...

    def text_arrays(self, text: Conditioning) -> TextArrays:
        """Conditioning as a cache holds it, each array [B, ...]."""
        ...

    def text_shapes(self, weights: BaseWeights, tokens: int) -> tuple[tuple[str, Shape], ...]:
        """Name and shape of each of those arrays for one caption of so many content tokens."""
        ...

    def step_inputs(self, model: BaseModel, batch: Batch, draws: Draws, options: "StepOptions") -> StepInputs:
        """What a training step takes of a batch."""
        ...

    def predict(
        self,
        model: BaseModel,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        text: Conditioning,
        size_ids_B6: np.ndarray,
    ) -> np.ndarray:
        """The UNet's answer [B, C, H, W] without gradients; ``size_ids_B6`` as in Batch."""
        ...

    def forward_outlines(self, spec: Any, apply: Footprint, setup: "OutlineSetup") -> None:
        """Apply a step's forward pass on outlines in the place of tensors."""
        ...


TrainedBy = Callable[[tuple[Block, ...]], Trained]
"""The model's blocks -> what is applied with them."""


@dataclass(frozen=True)
class StepOptions:
    """What a family is to know of a run to make a step's inputs."""

    train_text: bool
    """Whether the text encoders are part of the step and get gradients."""
    vae_batch_size: int = 1
    """Pictures that the VAE encodes at once."""


@dataclass(frozen=True)
class OutlineSetup:
    """The size of a batch."""

    chunks: int
    """Chunks of 77 tokens per caption."""
    train_text: bool
    noisy: Outline
    """Of the noised latents."""


def clean_latents(family: Family, model: BaseModel, batch: Batch, draws: Draws, at_once: int) -> np.ndarray:
    """A batch's scaled latents: drawn from what the VAE, or a cache of it, says of the pictures."""
    posterior: Posterior | None = batch.latents
    if posterior is None:
        assert batch.images_BCHW is not None and model.vae is not None
        posterior = model.vae.encode(batch.images_BCHW, at_once)
    return draws.latents(batch.index, posterior, family.facts.latent_scale)


def decode_latents(family: Family, model: BaseModel, latents_BCHW: np.ndarray) -> np.ndarray:
    """Images [B, 3, 8 H, 8 W], about [-1, 1], of scaled latents."""
    assert model.vae is not None
    return model.vae.decode(latents_BCHW / np.float32(family.facts.latent_scale))
