"""The texts that go into every file of a run."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from library.data.dataset import TrainDataset
from library.data.report.dataset_metadata import dataset_metadata, folder_form_metadata
from library.families.base import FamilyFacts
from library.files.file_dates import file_date
from library.files.metadata import RunFacts, base_file_metadata, build_metadata
from library.files.sai_model_spec import build_model_spec
from library.runs.length import Length
from library.settings.arguments import TrainArgs

VERSION = "mindspore-sd-scripts/0.1.0"
"""Written where kohya writes its commit, and to modelspec.implementation_version."""


def metadata_maker(
    args: TrainArgs, family: FamilyFacts, dataset: TrainDataset, length: Length, seed: int, optimizer: str
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
        base_model_version=family.base_model_version,
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
        spec = build_model_spec(options, date, VERSION, family.architecture, family.implementation)
        return {**metadata, **spec}

    return make
