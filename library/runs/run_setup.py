"""Parts that a training script puts together before its loop: network, learning rates, schedule, metadata."""

import importlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mindspore import Tensor

from library.data.dataset import TrainDataset
from library.data.report.dataset_metadata import dataset_metadata, folder_form_metadata
from library.data.run_rng import RunRng
from library.data.text.tokenizer import sdxl_tokenizers
from library.device.setup import Device
from library.families.sdxl.family import SdxlFamily, infer_spec
from library.families.sdxl.forward import all_blocks
from library.files.file_dates import file_date
from library.files.metadata import RunFacts, base_file_metadata, build_metadata
from library.files.sai_model_spec import build_model_spec
from library.graphs.layer_target import LayerTarget
from library.graphs.random import key_tensor
from library.runs.memory_estimate import MemorySetup, memory_setup
from library.settings.arguments import TrainArgs
from library.settings.cache_checks import check_cacheable
from library.settings.counted import counted
from library.settings.flag_groups import LrArgs, NetworkArgs, OptimizerArgs, RunArgs
from library.settings.folder_form import run_dataset_configs
from library.settings.key_values import parse_key_values
from library.training.lr_schedules import LrOptions, make_lr_lambda
from library.training.optimizers import AdamW, FlatOptimizer, make_optimizer
from library.training.trained import Trainable
from networks.network_base import Network, read_network_file

logger = logging.getLogger(__name__)

VERSION = "mindspore-sd-scripts/0.1.0"
"""Written where kohya writes its commit, and to modelspec.implementation_version."""
NETWORK_PACKAGE = "networks."


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    """Optimizer steps."""
    total_epochs: int


def run_length(batches_per_epoch: int, optimizer: OptimizerArgs, run: RunArgs) -> Length:
    """Steps and epochs of a run; epochs, where given, decide. An epoch's last group of batches may be short."""
    per_epoch = math.ceil(batches_per_epoch / optimizer.gradient_accumulation_steps)
    total = per_epoch * run.max_train_epochs if run.max_train_epochs else run.max_train_steps
    return Length(batches_per_epoch, per_epoch, total, math.ceil(total / per_epoch))


def make_dataset(args: TrainArgs, family: SdxlFamily, rng: RunRng) -> TrainDataset:
    """The training data of the flags and the dataset file.

    Raises:
        ValueError: lists everything that is wrong with the settings, or with the files.
    """
    configs = run_dataset_configs(args.dataset_defaults(), **args.dataset_sources())
    family.check_buckets(configs)
    check_cacheable(configs, args.cache)
    dataset = TrainDataset(
        configs,
        sdxl_tokenizers(),
        rng,
        workers=args.dataset.max_data_loader_n_workers,
        skip_bad_images=args.dataset.skip_bad_images,
        weighted_captions=args.dataset.weighted_captions,
    )
    if args.loss.masked_loss and not dataset.has_masks:
        raise ValueError(
            "--masked_loss: no image has a mask. Give subsets a conditioning_data_dir or alpha_mask = true in the file "
            "of --dataset_config, or --alpha_mask; or leave the flag out"
        )
    return dataset


def import_network_module(name: str) -> ModuleType:
    """The module of --network_module.

    Raises:
        ValueError: there is no such module, or it is no network type.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--network_module {name}: {error}. Built so far: networks.lora") from error
    if not name.startswith(NETWORK_PACKAGE) or "create_network" not in vars(module):
        raise ValueError(f"--network_module {name} is not a network type (it has no create_network). Use networks.lora")
    return module


def chosen_targets(targets: Sequence[LayerTarget], options: NetworkArgs) -> list[LayerTarget]:
    """The layers whose network is trained, by --network_train_unet_only and --network_train_text_encoder_only."""
    if options.network_train_unet_only:
        return [target for target in targets if target.part == "unet"]
    if options.network_train_text_encoder_only:
        return [target for target in targets if target.part != "unet"]
    return list(targets)


def create_network(module: ModuleType, targets: Sequence[LayerTarget], options: NetworkArgs, rng: RunRng) -> Network:
    """A network by the flags, on from --network_weights where given.

    Raises:
        ValueError: a network argument is wrong, or the weights do not fit the network.
    """
    network: Network = module.create_network(
        chosen_targets(targets, options),
        network_dim=options.network_dim,
        network_alpha=options.network_alpha,
        network_dropout=options.network_dropout,
        network_args=parse_key_values(options.network_args, literal=False, flag="--network_args"),
        generator_of=lambda name: rng.numpy("network init", name),
    )
    if options.network_weights:
        network.load(read_network_file(Path(options.network_weights)), options.network_weights)
    return network


def optimizer_rule(options: OptimizerArgs) -> AdamW:
    """The update rule of --optimizer_type and --optimizer_args.

    Raises:
        ValueError: it is not built, or an argument is not one of its.
    """
    return make_optimizer(options.optimizer_type, parse_key_values(options.optimizer_args, flag="--optimizer_args"))


def flat_optimizer(rule: AdamW, trainable: Trainable, options: OptimizerArgs) -> FlatOptimizer:
    """The rule with its state and learning rates for what is trained."""
    return FlatOptimizer(rule, learning_rates(trainable, options))


def length_line(length: Length, seed: int) -> str:
    """Line for the log: how long the run is."""
    return (
        f"{counted(length.total_steps, 'step')} in {counted(length.total_epochs, 'epoch')} of "
        f"{counted(length.batches_per_epoch, 'batch', 'batches')}, seed {seed}"
    )


def summary(network: Network, trainable: Trainable, device: str) -> list[str]:
    """Lines for the log: what is trained, where."""
    parts = ", ".join(f"{part} {network.count(part)}" for part in ("te1", "te2", "unet") if network.count(part))
    lines = [
        f"network: {len(network.layers)} layers ({parts}), {trainable.size:,} values are trained on {device}",
    ]
    if trainable.idle:
        lines.append(
            f"{len(trainable.idle)} tensors get no gradient and stay as they are (the last layer of text encoder 1: "
            "SDXL reads the one before)"
        )
    return lines


def memory_of_run(
    args: TrainArgs, device: Device, family: SdxlFamily, module: ModuleType, dataset: TrainDataset, rng: RunRng
) -> MemorySetup:
    """What the run's memory depends on, without reading the base model's values.

    Raises:
        ValueError: the base model or the network cannot be had.
    """
    weights = family.outline(args.model.pretrained_model_name_or_path, args.model.vae)
    spec = infer_spec(weights.parts)
    network = create_network(module, family.lora_targets(weights), args.network, rng)
    return memory_setup(args, dataset, weights, spec, Trainable(network, all_blocks(spec)), device.value_bytes)


def learning_rates(trainable: Trainable, options: OptimizerArgs) -> list[tuple[int, float]]:
    """How many trained values in a row have the same base learning rate, and which.

    Raises:
        ValueError: every rate is 0, so nothing would be trained.
    """
    unet = options.learning_rate if options.unet_lr is None else options.unet_lr
    text = options.text_encoder_learning_rate
    text = options.learning_rate if text is None else text
    rate_of = {"unet": unet, "te1": text, "te2": text}
    runs = trainable.runs(rate_of)
    if not any(rate for _, rate in runs):
        raise ValueError("every learning rate is 0: nothing would be trained. Set --learning_rate, or --unet_lr")
    return runs


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


def dropout_keys(trainable: Trainable, rng: RunRng) -> Callable[[int], tuple[Tensor, ...]] | None:
    """Batch number -> one random key per segment; None when no adapter has a dropout."""
    adapters = [adapter for segment in trainable.segments for _, adapter in segment.adapters]
    if all(adapter == adapter.without_dropout() for adapter in adapters):
        return None
    prefixes = [segment.block.part + segment.block.prefix + segment.keys[0] for segment in trainable.segments]

    def keys(index: int) -> tuple[Tensor, ...]:
        return tuple(key_tensor(rng.key("dropout", index, prefix)) for prefix in prefixes)

    return keys


def metadata_maker(
    args: TrainArgs, dataset: TrainDataset, length: Length, seed: int, optimizer: str
) -> Callable[[], Mapping[str, str]]:
    """Starts hashing the base model's files in the background; the returned function waits for it."""
    options: dict[str, object] = {}
    for group in (args.model, args.dataset, args.network, args.optimizer, args.lr, args.loss, args.compute, args.run):
        options |= vars(group)
    options |= vars(args.save) | vars(args.metadata) | {"seed": seed, "cache_latents": args.cache.latents}
    if args.dataset.resolution is None:
        options["resolution"] = max((d.config.resolution for d in dataset.datasets), key=math.prod)
    date = file_date(args.run.seed is not None)
    facts = RunFacts(
        num_train_images=dataset.num_train_images,
        num_validation_images=dataset.num_validation_images,
        num_reg_images=dataset.num_reg_images,
        num_batches_per_epoch=length.batches_per_epoch,
        num_epochs=length.total_epochs,
        optimizer=optimizer,
        version=VERSION,
    )
    if args.dataset.dataset_config:
        pictures = dataset_metadata(dataset)
    else:
        pictures = folder_form_metadata(dataset, args.optimizer.gradient_accumulation_steps)
    pool = ThreadPoolExecutor(1)
    hashes = pool.submit(base_file_metadata, args.model.pretrained_model_name_or_path, args.model.vae)
    pool.shutdown(wait=False)

    def make() -> Mapping[str, str]:
        metadata = build_metadata(options, facts, pictures, hashes.result(), date)
        return {**metadata, **build_model_spec(options, date, VERSION)}

    return make
