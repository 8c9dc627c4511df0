"""What tools/cache_latents.py and tools/cache_text_encoder_outputs.py share: their command line and the data set."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.device.profile import Device
from library.device.setup import init_device
from library.families.sdxl.family import SdxlFamily
from library.runs.dataset_setup import make_dataset
from library.runs.interrupt import INTERRUPTED
from library.settings.arguments import TrainArgs, parse_train_args
from library.settings.flag_groups import CacheArgs
from library.settings.log_setup import setup_logging

logger = logging.getLogger("cache")

# Text outputs are those of untrained text encoders, so a training run's command line may lack this flag here.
ALWAYS = ("--network_train_unet_only",)

Work = Callable[[TrainArgs, TrainDataset, Device], None]


def read_options(argv: Sequence[str] | None, what: str, cache: CacheArgs) -> TrainArgs:
    """The flags of a training run, kohya's tools' own, and the cache that the tool makes.

    Args:
        argv: the command line; None takes the process's.
        what: the tool's purpose, for --help.
        cache: the caches to fill; how many images at once and whether files are checked comes from the command line.
    """
    own = argparse.ArgumentParser(
        description=f"{what} Takes all flags of sdxl_train_network.py; those of model, data set and cache count.",
        allow_abbrev=False,
    )
    own.add_argument("--sdxl", action="store_true", help="the only kind of model here; may be left out")
    own.add_argument("--skip_existing", action="store_true", help="no effect: what is there and fits is kept")
    _, rest = own.parse_known_args(argv)
    args = parse_train_args([*rest, *ALWAYS], require_paths=False)
    checked = replace(cache, vae_batch_size=args.cache.vae_batch_size, skip_cache_check=args.cache.skip_cache_check)
    return replace(args, cache=checked)


def run_tool(args: TrainArgs, work: Work) -> int:
    """Read the data set, set the device up and do the work; returns the exit status."""
    setup_logging(args.run)
    try:
        if not args.model.pretrained_model_name_or_path:
            raise ValueError("--pretrained_model_name_or_path is required")
        compute = args.compute
        device = init_device(compute.device, compute.flash_attn, compute.mixed_precision, compute.compiled)
        # Images held back are cached as well, so it does not matter which seed draws them.
        work(args, make_dataset(args, SdxlFamily(), RunRng(0)), device)
    except ValueError as error:
        logger.debug("where it came from", exc_info=True)
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: what was made stays, the same command goes on\n")
        return INTERRUPTED
    return 0
