"""What will be trained, in numbers, before it starts; `plan_text` writes them for people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from library.data.bucketed import BucketedDataset, PlacedImage
from library.data.buckets import Size
from library.data.scan.scan import subset_name
from library.data.text.captions import add_prefix_and_suffix
from library.data.text.tokenizer import token_limit


@dataclass(frozen=True)
class SubsetPlan:
    """One subset: `samples` is what an epoch shows of its images."""

    name: str
    images: int
    num_repeats: int
    samples: int
    is_reg: bool


@dataclass(frozen=True)
class BucketPlan:
    """One bucket: samples of this (width, height) and their batches per epoch."""

    resolution: Size
    images: int
    """Different images."""
    samples: int
    batches: int
    short_batch: int
    """Samples in the bucket's last batch where they are fewer than the batch size, else 0."""
    crop_share: float
    """Mean share of the resized images' pixels that is cut off, 0 to 1."""
    enlarged: int
    """Images that have fewer pixels on a side than they are resized to."""


@dataclass(frozen=True)
class DatasetPlan:
    """One [[datasets]] entry."""

    source: str
    resolution: Size
    batch_size: int
    enable_bucket: bool
    subsets: tuple[SubsetPlan, ...]
    buckets: tuple[BucketPlan, ...]


@dataclass(frozen=True, slots=True)
class CaptionLength:
    """The tokens of an image's caption, and how many of them the model sees at most."""

    path: str
    tokens: int
    limit: int


@dataclass(frozen=True)
class Plan:
    """Everything the data side knows before the first step."""

    datasets: tuple[DatasetPlan, ...]
    images: int
    """Different image files."""
    batches_per_epoch: int
    caption_lengths: tuple[CaptionLength, ...]
    """Every trained image's; the longest line where a line is drawn. Empty when captions are not measured."""
    missing_captions: tuple[str, ...]
    """Images that train with an empty caption."""
    notes: tuple[str, ...]
    """What was left out; logged when the data set was made."""

    @property
    def cut_captions(self) -> tuple[CaptionLength, ...]:
        """Captions of which the model sees only the beginning."""
        return tuple(dict.fromkeys(length for length in self.caption_lengths if length.tokens > length.limit))


def make_plan(datasets: Sequence[BucketedDataset], notes: Sequence[str], count: Callable[[str], int] | None) -> Plan:
    """The plan of all data sets; `count` gives a caption's number of tokens (None: captions are not measured)."""
    lengths = (length for dataset in datasets for length in _caption_lengths(dataset, count)) if count else ()
    return Plan(
        datasets=tuple(_dataset_plan(dataset) for dataset in datasets),
        images=len({image.path for dataset in datasets for image in dataset.images}),
        batches_per_epoch=sum(len(dataset.batch_list()) for dataset in datasets),
        caption_lengths=tuple(lengths),
        missing_captions=tuple(
            dict.fromkeys(str(path) for dataset in datasets for scan in dataset.scans for path in scan.uncaptioned)
        ),
        notes=tuple(notes),
    )


def is_enlarged(image: PlacedImage) -> bool:
    """Whether the image has to grow to fill its bucket."""
    return image.placement.resized[0] > image.size[0] or image.placement.resized[1] > image.size[1]


def _dataset_plan(dataset: BucketedDataset) -> DatasetPlan:
    config = dataset.config
    samples = [0] * len(dataset.scans)
    for image in dataset.images:
        samples[image.subset_number] += image.repeats
    subsets = (
        SubsetPlan(
            name=subset_name(scan.config),
            images=len(scan.images),
            num_repeats=scan.config.num_repeats,
            samples=samples[number],
            is_reg=scan.config.is_reg,
        )
        for number, scan in enumerate(dataset.scans)
    )
    return DatasetPlan(
        config.source,
        config.resolution,
        config.batch_size,
        config.enable_bucket,
        tuple(subsets),
        _bucket_plans(dataset),
    )


def _bucket_plans(dataset: BucketedDataset) -> tuple[BucketPlan, ...]:
    images, batch_size = dataset.images, dataset.config.batch_size
    kept = np.array([_area(image.placement.bucket) / _area(image.placement.resized) for image in images])
    enlarged = np.array([is_enlarged(image) for image in images], bool)
    plans = []
    for bucket in dataset.buckets:
        shown = dataset.sample_image[bucket.samples]
        different = np.unique(shown)
        plans.append(
            BucketPlan(
                resolution=bucket.resolution,
                images=len(different),
                samples=len(shown),
                batches=-(-len(shown) // batch_size),
                short_batch=len(shown) % batch_size,
                crop_share=float(1 - kept[shown].mean()),
                enlarged=int(enlarged[different].sum()),
            )
        )
    return tuple(plans)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _caption_lengths(dataset: BucketedDataset, count: Callable[[str], int]) -> list[CaptionLength]:
    limit = token_limit(dataset.config.max_token_length)
    lengths = []
    for image in dataset.images:
        lines = add_prefix_and_suffix(image.caption, image.subset).split("\n")
        drawn = lines if image.subset.enable_wildcard else lines[:1]
        lengths.append(CaptionLength(str(image.path), max(map(count, drawn)), limit))
    return lengths
