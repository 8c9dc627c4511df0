"""Replay of a recorded training run: the recording's command line, its inputs, the project's own training step."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import Tensor

from library.data.run_rng import RunRng
from library.files.safetensors_utils import SafetensorsFile
from library.models.random_weights import lora_weights
from library.models.unet import Run
from library.runs import run_setup
from library.runs.sdxl_train_util import SdxlFamily
from library.settings.arguments import TrainArgs, UsageError, read_train_args
from library.training.diffusion import DiffusionInputs, loss_weighting, noise_latents
from library.training.noise_schedule import make_noise_schedule
from library.training.train_util import TrainStep
from library.training.trainable import Trainable
from networks.network_base import Network
from tools.replay_base import Base, ReplayOptions, base_model, missing_of, one_line
from tools.replay_result import (
    TINY_GRADIENT,
    Finding,
    failed,
    judged,
    listed,
    relative_error,
    relative_errors,
    worst_of,
)

METADATA = ("argv", "checkpoint_seed", "lora_seed", "lora_keys", "grad_keys")
INPUTS = ("latents", "noise", "timesteps", "input_ids1", "input_ids2", "size_ids", "loss_weights")
GRADIENT, FINAL = "out.grad_step0.", "out.final."


class RefusedError(ValueError):
    """The recording's command line asks for something that is not built."""


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
    missing += missing_of(["out.loss"], tensors)
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


@dataclass
class Replay:
    """A recorded run, set up to be run again."""

    recording: Recording
    args: TrainArgs
    base: Base
    network: Network
    step: TrainStep
    lr_at: Callable[[int], float]


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


def replay_steps(path: Path, options: ReplayOptions) -> list[Finding]:
    """Replay one recording.

    Raises:
        ValueError: the file is not a recording.
    """
    recording = read_recording(path)
    try:
        args = read_train_args(recording.argv, require_paths=False)
        modes = options.checkpointing or (args.compute.gradient_checkpointing,)
        compiled = args.compute.jit != "off" if options.jit is None else options.jit
        findings: list[Finding] = []
        for checkpointing in modes:
            suffix = f" (checkpointing {'on' if checkpointing else 'off'})" if len(modes) > 1 else ""
            findings += _replay_once(set_up(recording, args, compiled, checkpointing), suffix)
    except (RefusedError, UsageError) as error:
        return [Finding("", "refused", detail=one_line(error))]
    return findings


def set_up(recording: Recording, args: TrainArgs, compiled: bool, checkpointing: bool) -> Replay:
    """Everything that the recording's command line asks for, as the training script puts it together.

    Raises:
        RefusedError: it asks for something that is not built, or that a recording cannot tell.
    """
    base = base_model(recording.checkpoint_seed, args.model.te2_projection, compiled)
    rng = RunRng(0)  # of the initial values, which are replaced
    try:
        module = run_setup.import_network_module(args.network.network_module)
        fresh = replace(args.network, network_weights=None)  # the first values come from the recording's seed
        network = run_setup.create_network(module, base.targets, fresh, rng)
        rule = run_setup.optimizer_rule(args.optimizer)
        lr_at = run_setup.lr_lambda(args.lr, args.optimizer.learning_rate, args.run.max_train_steps)
        shapes = {key: tensor.shape for key, tensor in network.tensors.items()}
        network.tensors.update(lora_weights(recording.lora_seed, shapes, args.network.network_alpha))
        blocks = SdxlFamily().trained_blocks(base.model.spec)
        trainable = Trainable(network, blocks)
        optimizer = run_setup.flat_optimizer(rule, trainable, args.optimizer, compiled)
    except ValueError as error:
        raise RefusedError(one_line(error)) from error
    if run_setup.dropout_keys(trainable, rng) is not None:
        raise RefusedError("a dropout cannot be replayed: the reference's random masks are not in the recording")
    step = TrainStep(
        base.model.weights,
        blocks,
        trainable,
        optimizer,
        max_grad_norm=args.optimizer.max_grad_norm,
        accumulation_steps=args.optimizer.gradient_accumulation_steps,
        checkpointing=checkpointing,
        compiled=compiled,
    )
    return Replay(recording, args, base, network, step, lr_at)


def _replay_once(replay: Replay, suffix: str) -> list[Finding]:
    recording, network = replay.recording, replay.network
    trained = sorted(set(network.tensors) - set(replay.step.trainable.idle))
    findings = _key_findings("lora_keys", sorted(network.tensors), recording.lora_keys)
    findings += _key_findings("grad_keys", trained, recording.grad_keys)
    findings = findings or compare(recording, run(replay))
    return [Finding(f.quantity + suffix, f.status, f.error, f.tolerance, f.detail) for f in findings]


def _key_findings(quantity: str, found: Sequence[str], expected: Sequence[str]) -> list[Finding]:
    """A finding where the keys differ; without the same keys there is nothing to compare."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [f"{what}: {listed(keys)}" for what, keys in (("missing", missing), ("too many", extra)) if keys]
    return [failed(quantity, "; ".join(problems))] if problems else []


def run(replay: Replay) -> Outcome:
    """Train on the recorded batches."""
    step, count = replay.step, replay.recording.steps
    losses, norms, updates = np.full(count, np.nan), np.full(count, np.nan), 0
    before = {key: tensor.copy() for key, tensor in replay.network.tensors.items()}
    predict, inputs = prediction(replay, 0)
    _, pred, gradient = step.loss_and_grad(predict, Tensor(inputs.target_BCHW), Tensor(inputs.weights_B))
    for i in range(count):
        if i:
            predict, inputs = prediction(replay, i)
        try:
            losses[i] = step.accumulate(predict, inputs.target_BCHW, inputs.weights_B, i)
        except FloatingPointError:
            break  # the losses from here on stay NaN, which fails
        if step.is_full:
            norm = step.update(replay.lr_at(updates))
            norms[i] = np.nan if norm is None else norm
            updates += 1
    step.store()
    gradients = step.trainable.unpack(gradient.asnumpy())
    return Outcome(losses, norms, pred.asnumpy(), gradients, before, dict(replay.network.tensors))


def prediction(replay: Replay, index: int) -> tuple[Callable[[Run], Tensor], DiffusionInputs]:
    """The step's prediction and inputs for one recorded batch."""
    args = replay.args
    batch = {name: replay.recording.tensors[f"in.{name}"][index] for name in INPUTS}
    inputs = noise_latents(
        make_noise_schedule(args.loss.zero_terminal_snr),
        batch["latents"],
        batch["noise"],
        batch["timesteps"],
        batch["loss_weights"],
        loss_weighting(args.loss, args.model.v_parameterization),
    )
    predict = SdxlFamily().training_prediction(
        replay.base.model,
        inputs,
        (batch["input_ids1"], batch["input_ids2"]),
        batch["size_ids"],
        train_text=not args.network.network_train_unet_only,
    )
    return predict, inputs


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
