"""What a saved network's metadata tells about its training data: the keys of kohya's train_network.py."""

from library.data.bucketed import BucketedDataset
from library.data.buckets import round_limits
from library.data.dataset import TrainDataset
from library.data.scan.scan import SubsetScan, subset_name


def dataset_metadata(train_data: TrainDataset) -> dict[str, object]:
    """The data side's `ss_*` entries of a run with a dataset file, as plain values.

    The caller writes lists and dicts as JSON. Keys: the counts, ss_datasets (list), ss_tag_frequency and
    ss_dataset_dirs (dicts); with images left out by --skip_bad_images also ss_skipped_images (list of file names).
    """
    frequencies: dict[str, dict[str, int]] = {}
    for dataset in train_data.datasets:
        for name, frequency in _tag_frequency(dataset).items():
            frequencies.setdefault(name, frequency)
    return {
        **_counts(train_data),
        "ss_datasets": [_dataset_entry(dataset) for dataset in train_data.datasets],
        "ss_tag_frequency": frequencies,
        "ss_dataset_dirs": _dirs(train_data, is_reg=False),
    }


def folder_form_metadata(train_data: TrainDataset, accumulation_steps: int) -> dict[str, object]:
    """The same for a run without a dataset file, which has one data set and whose entries are flat.

    `accumulation_steps`: batches to one optimizer step; they count into ss_total_batch_size.
    """
    (dataset,) = train_data.datasets
    config = dataset.config
    low, high = round_limits(config.min_bucket_reso, config.max_bucket_reso, config.bucket_reso_steps)
    subset = config.subsets[0]  # all have what the command line says
    return {
        **_counts(train_data),
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size * accumulation_steps,
        "ss_resolution": config.resolution,
        "ss_color_aug": subset.color_aug,
        "ss_flip_aug": subset.flip_aug,
        "ss_random_crop": subset.random_crop,
        "ss_shuffle_caption": subset.shuffle_caption,
        "ss_enable_bucket": config.enable_bucket,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": low if config.enable_bucket else None,
        "ss_max_bucket_reso": high if config.enable_bucket else None,
        "ss_keep_tokens": subset.keep_tokens,
        "ss_dataset_dirs": _dirs(train_data, is_reg=False),
        "ss_reg_dataset_dirs": _dirs(train_data, is_reg=True),
        "ss_tag_frequency": _tag_frequency(dataset),
        "ss_bucket_info": bucket_info(dataset) or "null",
    }


def _counts(train_data: TrainDataset) -> dict[str, object]:
    skipped = [path.name for path in train_data.skipped_images]
    return ({"ss_skipped_images": skipped} if skipped else {}) | {
        "ss_num_train_images": train_data.num_train_images,
        "ss_num_reg_images": train_data.num_reg_images,
        "ss_num_batches_per_epoch": train_data.batches_per_epoch,
    }


def _dirs(train_data: TrainDataset, *, is_reg: bool) -> dict[str, dict[str, int]]:
    """Repeats and number of images per folder or metadata file; a name that comes again gets a number."""
    dirs: dict[str, dict[str, int]] = {}
    for dataset in train_data.datasets:
        for scan in dataset.scans:
            if scan.config.is_reg == is_reg:
                name = _free_name(subset_name(scan.config), dirs)
                dirs[name] = {"n_repeats": scan.config.num_repeats, "img_count": len(scan.images)}
    return dirs


def bucket_info(dataset: BucketedDataset) -> dict[str, object] | None:
    """Sizes and sample counts of the buckets, and the mean aspect error; None without buckets."""
    if not dataset.config.enable_bucket:
        return None
    buckets = {
        str(number): {"resolution": list(bucket.resolution), "count": len(bucket.samples)}
        for number, bucket in enumerate(dataset.buckets)
    }
    return {"buckets": buckets, "mean_img_ar_error": dataset.mean_ar_error}


def _tag_frequency(dataset: BucketedDataset) -> dict[str, dict[str, int]]:
    """Tag counts per folder or metadata file; the counts of equal names are added."""
    frequencies: dict[str, dict[str, int]] = {}
    for scan in dataset.scans:
        counts = frequencies.setdefault(subset_name(scan.config), {})
        for tag, count in scan.tags.items():
            counts[tag] = counts.get(tag, 0) + count
    return frequencies


def _free_name(name: str, taken: dict[str, dict[str, int]]) -> str:
    """The name, or `name (2)`, `name (3)` and so on when it is taken."""
    number = 2
    free = name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free


def _dataset_entry(dataset: BucketedDataset) -> dict[str, object]:
    config = dataset.config
    low, high = round_limits(config.min_bucket_reso, config.max_bucket_reso, config.bucket_reso_steps)
    return {
        "is_dreambooth": config.kind != "finetuning",
        "batch_size_per_device": config.batch_size,
        "num_train_images": dataset.num_train_images,
        "num_reg_images": dataset.num_reg_images,
        "resolution": list(config.resolution),
        "enable_bucket": config.enable_bucket,
        "min_bucket_reso": low if config.enable_bucket else None,
        "max_bucket_reso": high if config.enable_bucket else None,
        "tag_frequency": _tag_frequency(dataset),
        "bucket_info": bucket_info(dataset),
        "resize_interpolation": config.resize_interpolation,
        "subsets": [_subset_entry(scan, config.kind != "finetuning") for scan in dataset.scans],
    }


def _subset_entry(scan: SubsetScan, is_dreambooth: bool) -> dict[str, object]:
    config = scan.config
    entry: dict[str, object] = {
        "img_count": len(scan.images),
        "num_repeats": config.num_repeats,
        "color_aug": config.color_aug,
        "flip_aug": config.flip_aug,
        "random_crop": config.random_crop,
        "shuffle_caption": config.shuffle_caption,
        "keep_tokens": config.keep_tokens,
        "keep_tokens_separator": config.keep_tokens_separator,
        "secondary_separator": config.secondary_separator,
        "enable_wildcard": config.enable_wildcard,
        "caption_prefix": config.caption_prefix,
        "caption_suffix": config.caption_suffix,
        "resize_interpolation": config.resize_interpolation,
    }
    if is_dreambooth:
        return entry | {
            "image_dir": subset_name(config),
            "class_tokens": config.class_tokens,
            "is_reg": config.is_reg,
        }
    return entry | {"metadata_file": subset_name(config)}
