"""Drawing pictures with a model of any family: prompts to conditioning, noise to latents, latents to files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from library.data.text.tokenizer import ClipTokenizer
from library.device.profile import Device
from library.families.base import BaseModel, Conditioning, Family, decode_latents
from library.files.safetensors_utils import SafetensorsFile
from library.graphs.block import Block
from library.runs.network_setup import open_network
from library.runs.sampling import guided, sample_latents, save_picture
from library.settings.sizes import LATENT_CHANNELS, LATENT_PIXELS
from library.training.trained import Group, Trained, trained_adapters
from networks.together import combine

logger = logging.getLogger(__name__)

MAX_TOKENS = (75, 150, 225)
_APPLIED_ONLY = Group("applied only", 0.0)


@dataclass(frozen=True)
class Picture:
    """What one picture is drawn from."""

    prompt: str
    prompt2: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str
    seed: int

    def settings(self, loras: Sequence[str], model: str) -> str:
        """One text with everything needed to draw it again."""
        lines = [self.prompt, f"Negative prompt: {self.negative_prompt}"]
        if self.prompt2 != self.prompt:
            lines.append(f"Prompt 2: {self.prompt2}")
        values = f"Steps: {self.steps}, Sampler: {self.scheduler}, CFG scale: {self.guidance_scale}, Seed: {self.seed}"
        values += f", Size: {self.width}x{self.height}, Model: {model}"
        return "\n".join([*lines, values + (f", LoRA: {', '.join(loras)}" if loras else "")])


@dataclass(frozen=True)
class Studio:
    """A loaded model and what stays the same from picture to picture."""

    family: Family
    model: BaseModel
    tokenizers: tuple[ClipTokenizer, ...]
    v_parameterization: bool
    loras: tuple[str, ...]
    model_name: str
    folder: Path


def load_with_networks(
    family: Family,
    name_or_path: str,
    vae: str | None,
    networks: Sequence[tuple[Path, float]],
    device: Device,
    is_merged: bool = True,
) -> BaseModel:
    """A base model with networks of any kind, each at its strength.

    Args:
        family: of the model.
        name_or_path: the base model.
        vae: replaces the model's own.
        networks: files and strengths.
        device: where to.
        is_merged: add the networks to the weights; else they are applied beside them.

    Raises:
        ValueError: a file is missing, not whole, or does not fit.
    """
    weights = family.load(name_or_path, vae)
    targets = family.targets(weights)
    opened = [(open_network(path, targets), strength) for path, strength in networks]
    if is_merged or not opened:
        for network, strength in opened:
            network.merge_into(weights.parts, strength)
        return family.build(weights, device)
    together = combine(opened)

    def applied(blocks: tuple[Block, ...]) -> Trained:
        return trained_adapters(together, blocks, lambda key: _APPLIED_ONLY)

    return family.build(weights, device, applied)


def draw(studio: Studio, picture: Picture, index: int, noise: np.ndarray | None) -> Path:
    """Draw and save one picture.

    Args:
        studio: the model.
        picture: what to draw.
        index: number of the prompt, for the file's name.
        noise: initial noise [1, 4, H / 8, W / 8]; None draws it from the seed.

    Raises:
        ValueError: the noise has another size.
    """
    shape = (1, LATENT_CHANNELS, picture.height // LATENT_PIXELS, picture.width // LATENT_PIXELS)
    if noise is None:
        noise = np.random.Generator(np.random.Philox(picture.seed)).standard_normal(shape, dtype=np.float32)
    if noise.shape != shape:
        size = f"{picture.width} x {picture.height}"
        raise ValueError(f"--latents holds {noise.shape}, a picture of {size} needs {shape}")
    use_guidance = picture.guidance_scale > 1.0
    text = _encode(studio, picture, use_guidance)
    count = 2 if use_guidance else 1
    size_ids = np.array([picture.height, picture.width, 0, 0, picture.height, picture.width], np.float32)
    size_ids_B6 = np.tile(size_ids, (count, 1))

    def predict(latents: np.ndarray, timestep: float) -> np.ndarray:
        batch = np.concatenate([latents] * count)
        answer = studio.family.predict(studio.model, batch, np.full(count, timestep, np.float32), text, size_ids_B6)
        return guided(answer[:1], answer[1:], picture.guidance_scale) if use_guidance else answer

    with tqdm(total=picture.steps, desc=f"picture {index}, seed {picture.seed}") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        latents = sample_latents(
            predict, noise, picture.scheduler, picture.steps, picture.seed, studio.v_parameterization, progress
        )
    image = decode_latents(studio.family, studio.model, latents)[0]
    return save_picture(image, studio.folder, index, picture.seed, picture.settings(studio.loras, studio.model_name))


def _encode(studio: Studio, picture: Picture, use_guidance: bool) -> Conditioning:
    """Conditioning of the prompt, and of the negative prompt behind it; both as long as the longer one needs."""
    prompts = [picture.prompt, picture.prompt2][: len(studio.tokenizers)]
    texts = [[prompt, picture.negative_prompt] if use_guidance else [prompt] for prompt in prompts]
    longest = max(studio.tokenizers[0].count(text) for each in texts for text in each)
    limit = next((tokens for tokens in MAX_TOKENS if longest <= tokens), MAX_TOKENS[-1])
    if longest > limit:
        logger.warning("the prompt has %d tokens, those behind the first %d are not used", longest, limit)
    ids = [
        np.stack([tokenizer.ids(text, None if limit == MAX_TOKENS[0] else limit) for text in each])
        for tokenizer, each in zip(studio.tokenizers, texts, strict=True)
    ]
    return studio.family.encode_text(studio.model, ids)


def read_noise(path: Path) -> np.ndarray:
    """Initial noise [B, 4, H / 8, W / 8] from a file: .npy, or .safetensors with one tensor.

    Raises:
        ValueError: not an array of four axes.
    """
    if path.suffix == ".npy":
        noise = np.load(path, allow_pickle=False)
    else:
        with SafetensorsFile(path) as file:
            keys = file.keys()
            if len(keys) != 1:
                raise ValueError(f"--latents {path}: holds {len(keys)} tensors, one is expected")
            noise = file.read(keys[0])
    if noise.ndim != 4:
        raise ValueError(f"--latents {path}: shape {noise.shape}, expected [B, 4, H/8, W/8]")
    return noise.astype(np.float32)
