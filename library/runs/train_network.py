"""A run that trains a network, from flags to files, for any family."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from mindspore import Tensor

from library.data.batch import Batch
from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.device.memory import available_memory
from library.device.profile import Device
from library.device.setup import init_device
from library.families.base import Family, StepOptions
from library.graphs.block import Block
from library.graphs.random import key_tensor
from library.runs.caching import build_cached_model
from library.runs.data_preview import show_data
from library.runs.dataset_setup import make_dataset
from library.runs.interrupt import FirstInterrupt
from library.runs.length import Length, length_line, run_length
from library.runs.loop import Follower, Position, Training, train
from library.runs.memory_estimate import log_memory, memory_setup
from library.runs.network_setup import create_network, group_of, import_network_module, part_rates
from library.runs.progress_bar import ProgressBar
from library.runs.run_metadata import metadata_maker
from library.runs.saver import Saver
from library.runs.shape_log import ShapeLog
from library.settings.arguments import TrainArgs
from library.settings.counted import counted
from library.settings.flag_groups import LrArgs
from library.settings.key_values import parse_key_values
from library.training.diffusion import RandomDraws
from library.training.lr_schedules import LrOptions, make_lr_lambda
from library.training.noise_schedule import make_noise_schedule
from library.training.optimizers.optimizer import Optimizer
from library.training.optimizers.rule import Rule, make_rule
from library.training.step import TrainStep
from library.training.trained import Trained, trained_adapters
from networks.network_base import Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is known once the flags were checked and the data looked through."""

    args: TrainArgs
    family: Family
    seed: int
    rng: RunRng
    network_module: ModuleType
    rule: Rule
    device: Device
    dataset: TrainDataset
    length: Length
    lr_factor: Callable[[int], float]


def train_network(args: TrainArgs, family: Family, followers: Sequence[Follower] = ()) -> None:
    """Look at the data, show what will be trained, and train it.

    Args:
        args: the flags.
        family: of the base model.
        followers: told of the run's progress beside those that every run has.

    Raises:
        ValueError: something that was asked for cannot be done; the message says what and where.
        KeyboardInterrupt: Ctrl-C ended the run after a whole step, which was saved; says where.
    """
    plan = make_plan(args, family)
    if not show(plan):
        return
    training, saver = prepare(plan)
    total = plan.length.total_steps
    with FirstInterrupt() as interrupt, ProgressBar(total) as bar:
        position = train(training, [ShapeLog(plan.dataset), bar, saver, *followers], lambda: interrupt.asked)
    if position.step < total:
        path = saver.save_step(position)
        raise KeyboardInterrupt(f"after {counted(position.step, 'step')} of {total}, saved {path}")
    done = counted(position.step, "step")
    logger.info("%s done, average loss %.4f, saved %s", done, bar.average.value, saver.last)


def make_plan(args: TrainArgs, family: Family) -> Plan:
    """Look through the data; what is quickly checked comes first.

    Raises:
        ValueError: lists everything that is wrong with the data, or says what was asked for and cannot be done.
    """
    seed = random.SystemRandom().randrange(2**32) if args.run.seed is None else args.run.seed
    rng = RunRng(seed)
    module = import_network_module(args.network.network_module)
    optimizer_args = parse_key_values(args.optimizer.optimizer_args, flag="--optimizer_args")
    rule = make_rule(args.optimizer.optimizer_type, optimizer_args)
    compute = args.compute
    device = init_device(compute.device, compute.flash_attn, compute.mixed_precision, compute.compiled)
    dataset = make_dataset(args, family, rng)
    length = run_length(dataset.batches_per_epoch, args.optimizer, args.run)
    lr_factor = lr_lambda(args.lr, args.optimizer.learning_rate, length.total_steps)
    return Plan(args, family, seed, rng, module, rule, device, dataset, length, lr_factor)


def show(plan: Plan) -> bool:
    """Show what will be trained and the memory that it takes; says whether to go on to training.

    Raises:
        ValueError: the base model cannot be had, or a file cannot be written.
    """
    args, run = plan.args, plan.args.run
    lines = [length_line(plan.length, plan.seed)]
    goes_on = show_data(plan.dataset, lines, plan.length.total_steps, run, Path(args.save.output_dir))
    if goes_on or run.dry_run:
        weights = plan.family.outline(args.model.pretrained_model_name_or_path, args.model.vae)
        network = create_network(plan.network_module, plan.family.targets(weights), args.network, plan.rng)
        spec = plan.family.spec(weights)
        trained = _trained(plan, network, plan.family.blocks(spec, tuple(weights.parts)))
        setup = memory_setup(args, plan.family, plan.dataset, weights, trained, plan.rule, plan.device)
        log_memory(setup, available_memory(plan.device), always=run.dry_run)
    if run.dry_run:
        logger.info("--dry_run: nothing is trained")
    return goes_on


def prepare(plan: Plan) -> tuple[Training, Saver]:
    """Read and check the rest; nothing is computed before all that was asked for is known to be possible.

    Raises:
        ValueError: something that was asked for cannot be done; the message says what and where.
    """
    args, family, length, device = plan.args, plan.family, plan.length, plan.device
    weights = family.load(args.model.pretrained_model_name_or_path, args.model.vae)
    network = create_network(plan.network_module, family.targets(weights), args.network, plan.rng)
    trained = _trained(plan, network, family.blocks(family.spec(weights), tuple(weights.parts)))

    def current_state() -> Mapping[str, np.ndarray]:
        network.tensors.update(trained.named())
        return network.state_dict()

    metadata = metadata_maker(args, family.facts, plan.dataset, length, plan.seed, plan.rule.describe())
    saver = Saver(args.save, current_state, metadata, args.run.seed is not None, length)
    saver.check_place(sum(tensor.size for tensor in network.tensors.values()))

    model = build_cached_model(family, weights, plan.dataset, args.cache, device)
    step = TrainStep(
        model.weights,
        family.blocks(model.spec, tuple(model.weights)),
        trained,
        Optimizer(plan.rule, trained.tensors, device),
        device,
        max_grad_norm=args.optimizer.max_grad_norm,
        accumulation_steps=args.optimizer.gradient_accumulation_steps,
        block_keys=dropout_keys(trained, plan.rng),
        keep=args.compute.kept_share,
        loss_type=args.loss.loss_type,
    )
    logger.info("\n".join(summary(network, trained, device.profile.name)))
    schedule = make_noise_schedule(args.loss.zero_terminal_snr)
    return Training(
        batches=batches_of(plan),
        length=length,
        family=family,
        model=model,
        draws=RandomDraws(plan.rng, schedule, args.loss, args.model.v_parameterization),
        step_options=StepOptions(not args.network.network_train_unet_only, args.cache.vae_batch_size),
        step=step,
        lr_factor=plan.lr_factor,
    ), saver


def _trained(plan: Plan, network: Network, blocks: Sequence[Block]) -> Trained:
    """A network's tensors with their learning rates."""
    parts = {layer.target.part for layer in network.layers.values()}
    return trained_adapters(network, blocks, group_of(network, part_rates(plan.args.optimizer, parts)))


def batches_of(plan: Plan) -> Callable[[Position], Iterator[Batch]]:
    """Position -> the batches of its epoch, from there on."""

    def batches(position: Position) -> Iterator[Batch]:
        return plan.dataset.batches(
            position.epoch,
            (position.epoch - 1) * plan.length.batches_per_epoch,
            position.batch,
            max_train_steps=plan.length.total_steps,
            batches_per_step=plan.args.optimizer.gradient_accumulation_steps,
        )

    return batches


def lr_lambda(options: LrArgs, learning_rate: float, total_steps: int) -> Callable[[int], float]:
    """The schedule's factor by optimizer step (0 is the first).

    Raises:
        ValueError: the schedule's flags do not fit together.
    """
    return make_lr_lambda(
        LrOptions(
            scheduler=options.lr_scheduler,
            total_steps=total_steps,
            warmup_steps=options.lr_warmup_steps,
            decay_steps=options.lr_decay_steps,
            num_cycles=options.lr_scheduler_num_cycles,
            power=options.lr_scheduler_power,
            timescale=options.lr_scheduler_timescale,
            min_lr_ratio=options.lr_scheduler_min_lr_ratio,
            learning_rate=learning_rate,
            scheduler_args=parse_key_values(options.lr_scheduler_args, flag="--lr_scheduler_args"),
        )
    )


def dropout_keys(trained: Trained, rng: RunRng) -> Callable[[int], Mapping[Block, Tensor]] | None:
    """Batch number -> random key of each block with adapters; None when no adapter has a dropout."""
    adapters = [entry.adapter for block in trained.blocks.values() for entry in block.adapters]
    if all(adapter == adapter.without_dropout() for adapter in adapters):
        return None

    def keys(index: int) -> Mapping[Block, Tensor]:
        return {
            block: key_tensor(rng.key("dropout", index, block.part + block.prefix + mine.tensors[0].names[0]))
            for block, mine in trained.blocks.items()
        }

    return keys


def summary(network: Network, trained: Trained, device: str) -> list[str]:
    """Lines for the log: what is trained, where."""
    parts = dict.fromkeys(layer.target.part for layer in network.layers.values())
    counts = ", ".join(f"{part} {network.count(part)}" for part in parts)
    lines = [f"network: {len(network.layers)} layers ({counts}), {trained.size:,} values are trained on {device}"]
    rates = ", ".join(f"{group.name} {group.lr:g}" for group in trained.groups)
    lines.append(f"learning rates: {rates}")
    if trained.idle:
        lines.append(
            f"{len(trained.idle)} tensors get no gradient and stay as they are, since no step reads their layers: "
            f"{trained.idle[0]}, ..."
        )
    return lines
