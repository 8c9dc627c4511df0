"""Replay of recorded model outputs (text encoders, VAE, UNet, a sampled picture), plain and with a LoRA."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.device.profile import Device
from library.families.base import BaseModel, Conditioning, decode_latents
from library.families.sdxl import forward as sdxl
from library.families.sdxl.facts import HIDDEN_1, HIDDEN_2, POOLED
from library.families.sdxl.family import SdxlFamily
from library.files.safetensors_utils import SafetensorsFile
from library.graphs.block import Block
from library.runs.network_setup import open_network
from library.runs.sampler_sigma import Euler
from library.runs.sampling import guided, sample_latents
from library.training.noise_schedule import make_noise_schedule
from library.training.trained import Group, Trained, trained_adapters
from networks.together import combine
from tools.replay_base import base_model
from tools.replay_result import Finding, judged, missing_of, relative_error
from tools.tiny_source import tiny_base

FAMILY = SdxlFamily()
UNTRAINED = Group("applied only", 0.0)
SAMPLER = "EulerDiscrete"
"""Start of the recorded sampler's name; the only one that is recorded."""
INPUTS_OF = {
    "text.hidden1": ("text.input_ids1", "text.input_ids2"),
    "text.hidden2": ("text.input_ids1", "text.input_ids2"),
    "text.pool2": ("text.input_ids1", "text.input_ids2"),
    "vae.mean": ("vae.image",),
    "vae.logvar": ("vae.image",),
    "vae.decoded": ("vae.latents",),
    "unet.size_embeddings": ("unet.size_ids",),
    "unet.noise_pred": ("text.input_ids1", "text.input_ids2", "unet.sample", "unet.timesteps", "unet.size_ids"),
    "sample.sigmas": (),
    "sample.timesteps": (),
    "sample.latents": ("text.input_ids1", "text.input_ids2", "unet.size_ids", "sample.noise"),
    "sample.image": ("text.input_ids1", "text.input_ids2", "unet.size_ids", "sample.noise"),
}
"""Output -> what it is computed from."""
KINDS = {
    "unet.size_embeddings": "size_embeddings",
    "unet.noise_pred": "noise_pred",
    "sample.sigmas": "schedule",
    "sample.timesteps": "schedule",
    "sample.latents": "sampled",
    "sample.image": "sampled",
}
"""Output -> tolerance, where its first word does not say it."""


@dataclass(frozen=True)
class ModelsRecording:
    """Inputs and outputs of the models."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    def setting(self, name: str) -> str:
        """An entry of the metadata. Raises ValueError when there is none."""
        if name not in self.metadata:
            raise ValueError(f"{self.path}: not a whole recording of models: its metadata have no {name}")
        return self.metadata[name]

    @property
    def checkpoint_seed(self) -> int:
        """Seed of the tiny SDXL. Raises ValueError when it is missing."""
        return int(self.setting("checkpoint_seed"))


def read_models(path: Path) -> ModelsRecording:
    """Read a recording of models. Raises ValueError when it is not a safetensors file."""
    with SafetensorsFile(path) as file:
        return ModelsRecording(path, {key: file.read(key) for key in file}, file.metadata)


def replay_models(path: Path, device: Device) -> list[Finding]:
    """Replay every output in the file.

    Raises:
        ValueError: inputs that an output needs are not there.
    """
    recording = read_models(path)
    model = base_model(recording.checkpoint_seed, "correct", device).model
    return _findings(model, recording, recording.tensors)


def replay_effect(path: Path, models: Path, lora_file: Path, device: Device) -> list[Finding]:
    """Replay the outputs of an effect file with the LoRA merged, and again with it beside the weights.

    Raises:
        ValueError: a file is not what it should be.
    """
    recording, effect = read_models(models), read_models(path)
    weights = tiny_base(recording.checkpoint_seed)
    network = open_network(lora_file, FAMILY.targets(weights))
    multiplier = float(effect.tensors["multiplier"])
    network.merge_into(weights.parts, multiplier)
    findings = _findings(FAMILY.build(weights, device), recording, effect.tensors, " (merged)")
    together = combine([(network, multiplier)])

    def beside(blocks: tuple[Block, ...]) -> Trained:
        return trained_adapters(together, blocks, lambda key: UNTRAINED)

    model = FAMILY.build(tiny_base(recording.checkpoint_seed), device, beside)
    return findings + _findings(model, recording, effect.tensors, " (not merged)")


def _findings(
    model: BaseModel, recording: ModelsRecording, expected: Mapping[str, np.ndarray], suffix: str = ""
) -> list[Finding]:
    wanted = [name for name in INPUTS_OF if name in expected]
    missing = sorted({m for name in wanted for m in missing_of(INPUTS_OF[name], recording.tensors)})
    if not wanted or missing:
        lacks = ", ".join(missing) or "outputs"
        raise ValueError(f"{recording.path}: not a whole recording of models: it lacks {lacks}")
    findings = []
    for name, found in _outputs(model, recording, wanted):
        kind = KINDS.get(name, name.partition(".")[0])
        findings.append(judged(name + suffix, relative_error(found, expected[name]), kind=kind))
    return findings


def _outputs(model: BaseModel, recording: ModelsRecording, wanted: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The wanted outputs, group by group."""
    groups = {
        "text": lambda: _text_outputs(model, recording),
        "vae": lambda: _vae_outputs(model, recording),
        "unet": lambda: _unet_outputs(model, recording, wanted),
        "sample": lambda: _sample_outputs(model, recording),
    }
    for group, compute in groups.items():
        names = [name for name in wanted if name.startswith(group + ".")]
        outputs = compute() if names else {}
        yield from ((name, outputs[name]) for name in names)


def _encode(model: BaseModel, recording: ModelsRecording, rows: Sequence[int] | None = None) -> Conditioning:
    """Conditioning of recorded token ids: of all, or of some rows."""
    ids1, ids2 = (recording.tensors[name] for name in INPUTS_OF["text.hidden1"])
    return FAMILY.encode_text(model, (ids1, ids2) if rows is None else (ids1[rows], ids2[rows]))


def _text_outputs(model: BaseModel, recording: ModelsRecording) -> dict[str, np.ndarray]:
    arrays = FAMILY.text_arrays(_encode(model, recording))
    return {"text.hidden1": arrays[HIDDEN_1], "text.hidden2": arrays[HIDDEN_2], "text.pool2": arrays[POOLED]}


def _vae_outputs(model: BaseModel, recording: ModelsRecording) -> dict[str, np.ndarray]:
    tensors, outputs = recording.tensors, {}
    assert model.vae is not None
    if "vae.image" in tensors:
        outputs["vae.mean"], outputs["vae.logvar"] = model.vae.encode_moments(tensors["vae.image"])
    if "vae.latents" in tensors:
        outputs["vae.decoded"] = model.vae.decode(tensors["vae.latents"])
    return outputs


def _unet_outputs(model: BaseModel, recording: ModelsRecording, wanted: list[str]) -> dict[str, np.ndarray]:
    tensors = recording.tensors
    outputs = {"unet.size_embeddings": sdxl.size_embeddings(tensors["unet.size_ids"])}
    if "unet.noise_pred" in wanted:
        text, sizes = _encode(model, recording), tensors["unet.size_ids"]
        prediction = FAMILY.predict(model, tensors["unet.sample"], tensors["unet.timesteps"], text, sizes)
        outputs["unet.noise_pred"] = prediction
    return outputs


def _sample_outputs(model: BaseModel, recording: ModelsRecording) -> dict[str, np.ndarray]:
    """A guided run: row 0 of the text is the prompt, row 1 the negative prompt, row 0 of the sizes serves both."""
    if not recording.setting("scheduler").startswith(SAMPLER):
        raise ValueError(f"{recording.path}: sampled by {recording.setting('scheduler')}; {SAMPLER} can be replayed")
    steps, scale = int(recording.setting("steps")), float(recording.setting("guidance_scale"))
    sampler = Euler(make_noise_schedule(), steps, v_prediction=False)
    outputs = {"sample.sigmas": sampler.sigmas, "sample.timesteps": sampler.timesteps}
    if "sample.noise" not in recording.tensors:
        return outputs
    noise = recording.tensors["sample.noise"]
    count = len(noise)
    rows = [0] * count + [1] * count
    text = _encode(model, recording, rows)
    sizes = recording.tensors["unet.size_ids"][[0] * len(rows)]

    def predict(latents: np.ndarray, timestep: float) -> np.ndarray:
        times = np.full(len(rows), timestep, np.float32)
        answer = FAMILY.predict(model, np.concatenate([latents, latents]), times, text, sizes)
        return guided(answer[:count], answer[count:], scale)

    outputs["sample.latents"] = sample_latents(predict, noise, "euler", steps, seed=0)
    outputs["sample.image"] = decode_latents(FAMILY, model, outputs["sample.latents"])
    return outputs
