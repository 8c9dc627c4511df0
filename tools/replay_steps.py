"""Replay of a recorded training run: the recording's command line, its inputs, the project's own training step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import Tensor

from library.data.run_rng import RunRng
from library.families.sdxl.family import SdxlFamily
from library.models.random_weights import lora_weights
from library.models.unet import Run
from library.runs import run_setup
from library.settings.arguments import TrainArgs, UsageError, read_train_args
from library.training.diffusion import DiffusionInputs, loss_weighting, noise_latents
from library.training.noise_schedule import make_noise_schedule
from library.training.step import TrainStep
from library.training.trained import Trainable
from networks.network_base import Network
from tools.replay_base import Base, ReplayOptions, base_model
from tools.replay_recording import INPUTS, MASKS, Outcome, Recording, compare, read_recording
from tools.replay_result import Finding, failed, listed, one_line


class RefusedError(ValueError):
    """The recording's command line asks for something that is not built."""


@dataclass
class Replay:
    """A recorded run, set up to be run again."""

    recording: Recording
    args: TrainArgs
    base: Base
    network: Network
    step: TrainStep
    lr_at: Callable[[int], float]


def replay_steps(path: Path, options: ReplayOptions) -> list[Finding]:
    """Replay one recording.

    Raises:
        ValueError: the file is not a recording.
    """
    recording = read_recording(path)
    try:
        args = read_train_args(recording.argv, require_paths=False)
        compiled = args.compute.compiled if options.jit is None else options.jit
        return _replay_once(set_up(recording, args, compiled))
    except (RefusedError, UsageError) as error:
        return [Finding("", "refused", detail=one_line(error))]


def set_up(recording: Recording, args: TrainArgs, compiled: bool) -> Replay:
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
        blocks = SdxlFamily().trained_blocks(base.model)
        trainable = Trainable(network, blocks)
        optimizer = run_setup.flat_optimizer(rule, trainable, args.optimizer)
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
        compiled=compiled,
        keep=args.compute.kept_share,
    )
    return Replay(recording, args, base, network, step, lr_at)


def _replay_once(replay: Replay) -> list[Finding]:
    recording, network = replay.recording, replay.network
    trained = set(network.tensors) - set(replay.step.trainable.idle)
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
    step, count = replay.step, replay.recording.steps
    losses, norms, updates = np.full(count, np.nan), np.full(count, np.nan), 0
    before = {key: tensor.copy() for key, tensor in replay.network.tensors.items()}
    predict, inputs = prediction(replay, 0)
    _, pred, gradient = step.loss_and_grad(predict, Tensor(inputs.target_BCHW), Tensor(inputs.weights_B1HW))
    for i in range(count):
        if i:
            predict, inputs = prediction(replay, i)
        try:
            losses[i] = step.accumulate(predict, inputs.target_BCHW, inputs.weights_B1HW, i)
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
        masks_BHW=replay.recording.tensors[MASKS][index] if args.loss.masked_loss else None,
    )
    predict = SdxlFamily().training_prediction(
        replay.base.model,
        inputs,
        (batch["input_ids1"], batch["input_ids2"]),
        batch["size_ids"],
        train_text=not args.network.network_train_unet_only,
    )
    return predict, inputs
