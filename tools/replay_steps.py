"""Replay of a recorded training run: the recording's command line and batches, the project's own loop."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from library.data.batch import Batch, Posterior
from library.data.run_rng import RunRng
from library.device.profile import Device
from library.families.base import StepOptions
from library.models.random_weights import lora_weights
from library.runs.length import Length
from library.runs.loop import Follower, Position, Training, train
from library.runs.network_setup import create_network, group_of, import_network_module, part_rates
from library.runs.train_network import dropout_keys, lr_lambda
from library.settings.arguments import TrainArgs, UsageError, read_train_args
from library.settings.key_values import parse_key_values
from library.training.diffusion import DiffusionInputs, loss_weighting, noise_latents
from library.training.noise_schedule import make_noise_schedule
from library.training.optimizers.optimizer import Optimizer
from library.training.optimizers.rule import make_rule
from library.training.step import StepResult, TrainStep
from library.training.trained import Trained, trained_adapters
from networks.network_base import Network
from tools.replay_base import Base, base_model
from tools.replay_recording import MASKS, Outcome, Recording, compare, read_recording
from tools.replay_result import Finding, failed, listed, one_line


class RefusedError(ValueError):
    """The recording's command line asks for something that is not built."""


@dataclass(frozen=True)
class RecordedDraws:
    """Latents, noise and timesteps as they were recorded (``Draws``)."""

    recording: Recording
    args: TrainArgs

    def latents(self, index: int, posterior: Posterior, scale: float) -> np.ndarray:
        """The recorded ones, which are scaled already."""
        return self.recording.tensors["in.latents"][index]

    def diffusion(
        self, index: int, latents_BCHW: np.ndarray, loss_weights_B: np.ndarray, masks_BHW: np.ndarray | None
    ) -> DiffusionInputs:
        """Noised with the recorded noise at the recorded timesteps."""
        tensors, loss = self.recording.tensors, self.args.loss
        return noise_latents(
            make_noise_schedule(loss.zero_terminal_snr),
            latents_BCHW,
            tensors["in.noise"][index],
            tensors["in.timesteps"][index],
            loss_weights_B,
            loss_weighting(loss, self.args.model.v_parameterization),
            masks_BHW=masks_BHW,
        )


class Recorder(Follower):
    """Keeps what each step gave; what is not reached stays NaN."""

    def __init__(self, count: int) -> None:
        self.losses_S, self.norms_S = np.full(count, np.nan), np.full(count, np.nan)

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        """Keep the loss and, after an update, the norm."""
        self.losses_S[batch.index] = result.loss
        self.norms_S[batch.index] = np.nan if result.grad_norm is None else result.grad_norm


@dataclass
class Replay:
    """A recorded run, set up to be run again."""

    recording: Recording
    network: Network
    trained: Trained
    training: Training


def replay_steps(path: Path, jit: bool | None, device: Device) -> list[Finding]:
    """Replay one recording.

    Args:
        path: the recording.
        jit: whether blocks are compiled; None leaves it to the recording's command line.
        device: where to compute.

    Raises:
        ValueError: the file is not a recording.
    """
    recording = read_recording(path)
    try:
        args = read_train_args(recording.argv, require_paths=False)
        compiled = args.compute.compiled if jit is None else jit
        return _replay_once(set_up(recording, args, replace(device, compiled=compiled)))
    except (RefusedError, UsageError) as error:
        return [Finding("", "refused", detail=one_line(error))]


def set_up(recording: Recording, args: TrainArgs, device: Device) -> Replay:
    """Everything that the recording's command line asks for.

    Raises:
        RefusedError: it asks for something that is not built, or that a recording cannot tell.
    """
    base = base_model(recording.checkpoint_seed, args.model.te2_projection, device)
    rng = RunRng(0)  # of the initial values, which are replaced
    try:
        module = import_network_module(args.network.network_module)
        fresh = replace(args.network, network_weights=None)  # the first values come from the recording's seed
        network = create_network(module, base.targets, fresh, rng)
        rates = part_rates(args.optimizer, {layer.target.part for layer in network.layers.values()})
        optimizer_args = parse_key_values(args.optimizer.optimizer_args, flag="--optimizer_args")
        rule = make_rule(args.optimizer.optimizer_type, optimizer_args)
        shapes = {key: tensor.shape for key, tensor in network.tensors.items()}
        network.tensors.update(lora_weights(recording.lora_seed, shapes, args.network.network_alpha))
        blocks = base.family.blocks(base.model.spec, tuple(base.model.weights))
        trained = trained_adapters(network, blocks, group_of(network, rates))
    except ValueError as error:
        raise RefusedError(one_line(error)) from error
    if dropout_keys(trained, rng) is not None:
        raise RefusedError("a dropout cannot be replayed: the reference's random masks are not in the recording")
    step = TrainStep(
        base.model.weights,
        blocks,
        trained,
        Optimizer(rule, trained.tensors, device),
        device,
        max_grad_norm=args.optimizer.max_grad_norm,
        accumulation_steps=args.optimizer.gradient_accumulation_steps,
        keep=args.compute.kept_share,
        loss_type=args.loss.loss_type,
    )
    return Replay(recording, network, trained, _training(recording, args, base, step))


def _training(recording: Recording, args: TrainArgs, base: Base, step: TrainStep) -> Training:
    """The loop's input: one epoch of the recorded batches."""
    accumulated = args.optimizer.gradient_accumulation_steps
    updates = -(-recording.steps // accumulated)
    try:
        lr_factor = lr_lambda(args.lr, args.optimizer.learning_rate, args.run.max_train_steps)
    except ValueError as error:
        raise RefusedError(one_line(error)) from error
    with_masks = args.loss.masked_loss

    def batches(position: Position) -> Iterator[Batch]:
        return (recorded_batch(recording, index, with_masks) for index in range(recording.steps))

    return Training(
        batches=batches,
        length=Length(recording.steps, updates, updates, 1),
        family=base.family,
        model=base.model,
        draws=RecordedDraws(recording, args),
        step_options=StepOptions(train_text=not args.network.network_train_unet_only),
        step=step,
        lr_factor=lr_factor,
    )


def recorded_batch(recording: Recording, index: int, with_masks: bool) -> Batch:
    """One batch as the data floor would hand it over."""
    tensors = recording.tensors
    latents = tensors["in.latents"][index]
    return Batch(
        images_BCHW=None,
        latents=Posterior(latents, np.zeros(latents.shape, np.float16)),
        masks_BHW=tensors[MASKS][index] if with_masks else None,
        token_ids=(tensors["in.input_ids1"][index], tensors["in.input_ids2"][index]),
        token_weights_BNT=None,
        text=None,
        size_ids_B6=tensors["in.size_ids"][index],
        loss_weights_B=tensors["in.loss_weights"][index],
        captions=(),
        keys=(f"recorded batch {index}",) * len(latents),
        index=index,
    )


def _replay_once(replay: Replay) -> list[Finding]:
    recording, network = replay.recording, replay.network
    trained = set(network.tensors) - set(replay.trained.idle)
    findings = _key_findings("lora_keys", set(network.tensors), set(recording.lora_keys))
    findings += _key_findings("grad_keys", trained & set(recording.grad_keys), set(recording.grad_keys))
    return findings or compare(recording, run(replay))


def _key_findings(quantity: str, found: set[str], expected: set[str]) -> list[Finding]:
    """A finding where the keys differ; without the same keys there is nothing to compare."""
    differences = (("missing", sorted(expected - found)), ("too many", sorted(found - expected)))
    problems = [f"{what}: {listed(keys)}" for what, keys in differences if keys]
    return [failed(quantity, "; ".join(problems))] if problems else []


def run(replay: Replay) -> Outcome:
    """Train on the recorded batches."""
    training, network = replay.training, replay.network
    before = {key: tensor.copy() for key, tensor in network.tensors.items()}
    first = next(training.batches(Position()))
    inputs = training.family.step_inputs(training.model, first, training.draws, training.step_options)
    _, pred, gradients = training.step.gradients(inputs)
    gradients = {key: gradient.copy() for key, gradient in gradients.items()}
    recorder = Recorder(replay.recording.steps)
    with contextlib.suppress(ValueError):  # a loss is not a number: it and those behind it stay NaN, which fails
        train(training, [recorder])
    network.tensors.update(replay.trained.named())
    return Outcome(recorder.losses_S, recorder.norms_S, pred, gradients, before, dict(network.tensors))
