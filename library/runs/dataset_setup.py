"""The data set of a run, by its flags."""

from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.families.base import Family
from library.settings.arguments import TrainArgs
from library.settings.cache_checks import check_cacheable
from library.settings.folder_form import run_dataset_configs


def make_dataset(args: TrainArgs, family: Family, rng: RunRng) -> TrainDataset:
    """The training data of the flags and the dataset file.

    Raises:
        ValueError: lists everything that is wrong with the settings, or with the files.
    """
    configs = run_dataset_configs(args.dataset_defaults(), **args.dataset_sources(), size_step=family.facts.size_step)
    check_cacheable(configs, args.cache)
    dataset = TrainDataset(
        configs,
        family.tokenizers(),
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
