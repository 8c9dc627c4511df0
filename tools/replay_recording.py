"""A recorded training run: reading one, and comparing what a replay gave with what was recorded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.files.safetensors_utils import SafetensorsFile
from tools.replay_result import TINY_GRADIENT, Finding, judged, missing_of, relative_error, relative_errors, worst_of

METADATA = ("argv", "checkpoint_seed", "lora_seed", "lora_keys", "grad_keys")
INPUTS = ("latents", "noise", "timesteps", "input_ids1", "input_ids2", "size_ids", "loss_weights")
MASKS = "in.alpha_masks"
"""With --masked_loss only."""
GRADIENT, FINAL = "out.grad_step0.", "out.final."


@dataclass(frozen=True)
class Recording:
    """A recorded training run. S steps, B samples."""

    argv: tuple[str, ...]
    checkpoint_seed: int
    lora_seed: int
    lora_keys: tuple[str, ...]
    """Of all tensors of the network, in the order of the recorded norms."""
    grad_keys: tuple[str, ...]
    """Of those with a gradient."""
    tensors: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.tensors["in.latents"])


def read_recording(path: Path) -> Recording:
    """Read a recording. Raises ValueError when the file is not a whole one; says what it lacks."""
    with SafetensorsFile(path) as file:
        tensors = {key: file.read(key) for key in file}
        metadata = file.metadata
    missing = missing_of(METADATA, metadata) + missing_of([f"in.{name}" for name in INPUTS], tensors)
    missing += missing_of(["out.loss", *([MASKS] if "--masked_loss" in metadata.get("argv", "") else [])], tensors)
    if missing:
        raise ValueError(f"{path}: not a whole recording of a training run: it lacks {', '.join(missing)}")
    try:
        return Recording(
            argv=tuple(json.loads(metadata["argv"])),
            checkpoint_seed=int(metadata["checkpoint_seed"]),
            lora_seed=int(metadata["lora_seed"]),
            lora_keys=tuple(json.loads(metadata["lora_keys"])),
            grad_keys=tuple(json.loads(metadata["grad_keys"])),
            tensors=tensors,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its metadata cannot be read: {error}") from error


@dataclass(frozen=True)
class Outcome:
    """What the replayed run gave; numbers of steps that were not reached are NaN."""

    losses_S: np.ndarray
    norms_S: np.ndarray
    """Total gradient norm before clipping; NaN where there was no update."""
    pred_BCHW: np.ndarray
    gradients: Mapping[str, np.ndarray]
    """Key -> gradient of the first batch."""
    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]
    """Key -> tensor of the network before and after the run."""


def compare(recording: Recording, outcome: Outcome) -> list[Finding]:
    """Every recorded output against what the replay gave."""
    expected = recording.tensors
    losses = relative_errors(outcome.losses_S, expected["out.loss"])
    findings = [judged("loss[0]", float(losses[0]))]
    if len(losses) > 1:
        steps = [f"step {i}" for i in range(1, len(losses))]
        findings.append(judged("loss[1:]", *worst_of(losses[1:], steps)))
    if "out.noise_pred_step0" in expected:
        findings.append(judged("noise_pred", relative_error(outcome.pred_BCHW, expected["out.noise_pred_step0"])))
    return findings + _compare_gradients(recording, outcome) + _compare_finals(recording, outcome)


def _compare_gradients(recording: Recording, outcome: Outcome) -> list[Finding]:
    expected, findings = recording.tensors, []
    if "out.grad_step0_l2" in expected:
        norms = [np.linalg.norm(outcome.gradients[key].astype(np.float64)) for key in recording.grad_keys]
        errors = relative_errors(norms, expected["out.grad_step0_l2"], TINY_GRADIENT)
        findings.append(judged("grad_l2", *worst_of(errors, recording.grad_keys)))
        largest = float(expected["out.grad_step0_l2"].max())
        findings += _whole_gradients(expected, outcome.gradients, largest)
    if "out.grad_norm" in expected:
        updated = np.flatnonzero(~np.isnan(outcome.norms_S))
        if len(updated):
            errors = relative_errors(outcome.norms_S[updated], expected["out.grad_norm"][updated])
            findings.append(judged("grad_norm", *worst_of(errors, [f"step {i}" for i in updated])))
    return findings


def _whole_gradients(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], largest: float
) -> list[Finding]:
    """Gradients that were recorded whole; a tiny one is compared relative to the largest norm."""
    keys = [key.removeprefix(GRADIENT) for key in expected if key.startswith(GRADIENT)]
    if not keys:
        return []
    errors = []
    for key in keys:
        wanted = expected[GRADIENT + key].astype(np.float64)
        norm = np.linalg.norm(wanted)
        errors.append(np.linalg.norm(found[key] - wanted) / (norm if norm > TINY_GRADIENT * largest else largest))
    return [judged("grad tensors", *worst_of(np.array(errors), keys))]


def _compare_finals(recording: Recording, outcome: Outcome) -> list[Finding]:
    """Change of each tensor over the run, and tensors recorded whole; the median counts."""
    expected, findings = recording.tensors, []
    if "out.final_delta_l2" in expected:
        changes = [
            np.linalg.norm((outcome.after[key] - outcome.before[key]).astype(np.float64)) for key in recording.lora_keys
        ]
        errors = relative_errors(changes, expected["out.final_delta_l2"])
        findings.append(judged("final_delta_l2", float(np.median(errors)), "median"))
    keys = [key.removeprefix(FINAL) for key in expected if key.startswith(FINAL)]
    if keys:
        error = float(np.median([relative_error(outcome.after[key], expected[FINAL + key]) for key in keys]))
        findings.append(judged("final tensors", error, "median"))
    return findings
