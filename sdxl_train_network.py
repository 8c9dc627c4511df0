"""Train a network (a LoRA) for Stable Diffusion XL; the command line is that of kohya's script of the same name."""

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from library.device.large_pages import restart_with_large_pages
from library.runs.interrupt import INTERRUPTED
from library.settings.arguments import TrainArgs, parse_train_args
from library.settings.counted import counted
from library.settings.log_setup import setup_logging

if TYPE_CHECKING:  # imported late, so that --help and a wrong flag answer at once
    import numpy as np

    from library.data.batch import Batch
    from library.data.dataset import TrainDataset
    from library.data.run_rng import RunRng
    from library.device.setup import Device
    from library.families.sdxl.family import SdxlFamily, SdxlModel
    from library.runs.run_setup import Length
    from library.runs.saver import Saver
    from library.training.noise_schedule import NoiseSchedule
    from library.training.optimizers import AdamW
    from library.training.step import TrainStep

logger = logging.getLogger("sdxl_train_network")


@dataclass(frozen=True)
class Run:
    """Everything that the loop needs."""

    args: TrainArgs
    rng: "RunRng"
    dataset: "TrainDataset"
    length: "Length"
    family: "SdxlFamily"
    model: "SdxlModel"
    schedule: "NoiseSchedule"
    step: "TrainStep"
    lr_at: Callable[[int], float]
    saver: "Saver"


@dataclass(frozen=True)
class Data:
    """What is known once the data have been looked through."""

    seed: int
    rng: "RunRng"
    family: "SdxlFamily"
    network_module: ModuleType
    rule: "AdamW"
    device: "Device"
    dataset: "TrainDataset"
    length: "Length"
    lr_at: Callable[[int], float]


def train(run: Run) -> Path:
    """The training loop; returns the last file written.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the run after a whole step, which was saved; says where.
    """
    from tqdm import tqdm

    from library.runs.interrupt import FirstInterrupt
    from library.runs.loss_average import LossAverage
    from library.runs.saver import Progress
    from library.runs.shape_log import ShapeLog

    length, average, done = run.length, LossAverage(), 0
    bounds = (length.total_steps, length.total_epochs)
    shapes = ShapeLog(run.dataset)
    with tqdm(total=length.total_steps, desc="steps", smoothing=0) as bar, FirstInterrupt() as interrupt:
        for epoch in range(1, length.total_epochs + 1):
            for position, batch in enumerate(batches_of(run, epoch)):
                with shapes.step(batch):
                    loss = accumulate(run, batch)
                average.add(position, loss)
                if run.step.is_full or position + 1 == length.batches_per_epoch:
                    run.step.update(run.lr_at(done))
                    done += 1
                    bar.set_postfix(loss=f"{loss:.4f}", avr_loss=f"{average.value:.4f}", refresh=False)
                    bar.update()
                    run.saver.save_if_step_due(Progress(epoch, done, *bounds))
                    if interrupt.asked and done < length.total_steps:
                        path = run.saver.save_step(Progress(epoch, done, *bounds))
                        raise KeyboardInterrupt(f"after {counted(done, 'step')} of {length.total_steps}, saved {path}")
                if done == length.total_steps:
                    break
            run.saver.save_if_epoch_due(Progress(epoch, done, *bounds))
    last = run.saver.save_last(Progress(length.total_epochs, done, *bounds))
    logger.info("%s done, average loss %.4f, saved %s", counted(done, "step"), average.value, last)
    return last


def batches_of(run: Run, epoch: int) -> Iterator["Batch"]:
    """The batches of an epoch (from 1)."""
    return run.dataset.batches(
        epoch,
        (epoch - 1) * run.length.batches_per_epoch,
        max_train_steps=run.length.total_steps,
        batches_per_step=run.args.optimizer.gradient_accumulation_steps,
    )


def accumulate(run: Run, batch: "Batch") -> float:
    """One batch forward and backward; its gradient is added to the step's. Returns the loss.

    Raises:
        ValueError: the loss is not a number; names the batch's images.
    """
    from library.training.diffusion import draw_diffusion_inputs

    family, model = run.family, run.model
    posterior = batch.latents
    if posterior is None:
        assert batch.images_BCHW is not None
        posterior = family.encode_images(model, batch.images_BCHW, run.args.cache.vae_batch_size)
    eps = run.rng.numpy("latents", batch.index).standard_normal(posterior.mean.shape, dtype="float32")
    latents = family.draw_latents(posterior, eps)
    inputs = draw_diffusion_inputs(
        run.schedule,
        run.rng,
        batch.index,
        latents,
        batch.loss_weights_B,
        run.args.loss,
        run.args.model.v_parameterization,
        batch.masks_BHW,
    )
    train_text = not run.args.network.network_train_unet_only
    predict = family.training_prediction(
        model,
        inputs,
        batch.token_ids,
        batch.size_ids_B6,
        train_text,
        token_weights_BNT=batch.token_weights_BNT,
        cached_text=batch.text,
    )
    try:
        return run.step.accumulate(predict, inputs.target_BCHW, inputs.weights_B1HW, batch.index)
    except FloatingPointError as error:
        raise ValueError(
            f"batch {batch.index}: {error}, training stops and files saved before stay as they are. Its images: "
            f"{', '.join(batch.keys)}. Lower --learning_rate, or look at these images"
        ) from error


def read_data(args: TrainArgs) -> Data:
    """Look through the data; what is quickly checked comes first.

    Raises:
        ValueError: lists everything that is wrong with the data, or says what was asked for and cannot be done.
    """
    from library.data.run_rng import RunRng
    from library.device.setup import init_device
    from library.families.sdxl.family import SdxlFamily
    from library.runs import run_setup

    seed = random.SystemRandom().randrange(2**32) if args.run.seed is None else args.run.seed
    rng = RunRng(seed)
    family = SdxlFamily()
    module = run_setup.import_network_module(args.network.network_module)
    rule = run_setup.optimizer_rule(args.optimizer)
    device = init_device(args.compute.device, args.compute.flash_attn, args.compute.mixed_precision)
    dataset = run_setup.make_dataset(args, family, rng)
    length = run_setup.run_length(dataset.batches_per_epoch, args.optimizer, args.run)
    lr_at = run_setup.lr_lambda(args.lr, args.optimizer.learning_rate, length.total_steps)
    return Data(seed, rng, family, module, rule, device, dataset, length, lr_at)


def show(args: TrainArgs, data: Data) -> bool:
    """Show what will be trained and the memory that it takes; says whether to go on to training.

    Raises:
        ValueError: the base model cannot be had, or a file cannot be written.
    """
    from library.device.memory import available_memory
    from library.runs.data_preview import show_data
    from library.runs.memory_estimate import log_memory
    from library.runs.run_setup import length_line, memory_of_run

    lines = [length_line(data.length, data.seed)]
    goes_on = show_data(data.dataset, lines, data.length.total_steps, args.run, Path(args.save.output_dir))
    if goes_on or args.run.dry_run:
        setup = memory_of_run(args, data.device, data.family, data.network_module, data.dataset, data.rng)
        log_memory(setup, available_memory(data.device), always=args.run.dry_run)
    if args.run.dry_run:
        logger.info("--dry_run: nothing is trained")
    return goes_on


def prepare(args: TrainArgs, data: Data) -> Run:
    """Read and check the rest; nothing is computed before all that was asked for is known to be possible.

    Raises:
        ValueError: something that was asked for cannot be done; the message says what and where.
    """
    from library.runs import run_setup
    from library.runs.caching import build_cached_model
    from library.runs.saver import Saver
    from library.training.noise_schedule import make_noise_schedule
    from library.training.step import TrainStep
    from library.training.trained import Trainable

    rng, family, length = data.rng, data.family, data.length
    weights = family.load(args.model.pretrained_model_name_or_path, args.model.vae, args.model.te2_projection)
    network = run_setup.create_network(data.network_module, family.lora_targets(weights), args.network, rng)
    step: TrainStep

    def current_state() -> Mapping[str, "np.ndarray"]:
        step.store()
        return network.state_dict()

    metadata = run_setup.metadata_maker(args, data.dataset, length, data.seed, data.rule.describe())
    saver = Saver(args.save, current_state, metadata, args.run.seed is not None, length.total_epochs)
    saver.check_place(sum(tensor.size for tensor in network.tensors.values()))

    model = build_cached_model(weights, data.dataset, args.cache, data.device.compute_dtype, args.compute.compiled)
    blocks = family.trained_blocks(model)
    trainable = Trainable(network, blocks)
    step = TrainStep(
        model.weights,
        blocks,
        trainable,
        run_setup.flat_optimizer(data.rule, trainable, args.optimizer),
        max_grad_norm=args.optimizer.max_grad_norm,
        accumulation_steps=args.optimizer.gradient_accumulation_steps,
        compiled=args.compute.compiled,
        block_keys=run_setup.dropout_keys(trainable, rng),
        keep=args.compute.kept_share,
    )
    schedule = make_noise_schedule(args.loss.zero_terminal_snr)
    logger.info("\n".join(run_setup.summary(network, trainable, data.device.name)))
    return Run(args, rng, data.dataset, length, family, model, schedule, step, data.lr_at, saver)


def main() -> None:
    """Parse the command line and train; an error is one message and exit code 1."""
    args = parse_train_args()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings speak to its own developers; its errors are shown
    setup_logging(args.run)
    for notice in args.notices:
        logger.info(notice)
    try:
        data = read_data(args)
        if show(args, data):
            train(prepare(args, data))
    except ValueError as error:
        logger.debug("where it came from", exc_info=True)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\ninterrupted {interrupt}".rstrip() + "\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    restart_with_large_pages()
    main()
