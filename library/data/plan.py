"""What will be trained, in numbers and as text, before it starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from library.data.bucketed import BucketedDataset
from library.data.buckets import Size
from library.data.captions import add_prefix_and_suffix
from library.data.scan import subset_name
from library.data.tokenizer import token_limit

NAMED = 5
"""Files that are named in a line; of the rest the number is told."""


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
    samples: int
    batches: int


@dataclass(frozen=True)
class DatasetPlan:
    """One [[datasets]] entry."""

    source: str
    resolution: Size
    batch_size: int
    enable_bucket: bool
    subsets: tuple[SubsetPlan, ...]
    buckets: tuple[BucketPlan, ...]


@dataclass(frozen=True)
class CutCaption:
    """A caption longer than the token limit: its image, its number of tokens, and the limit."""

    path: str
    tokens: int
    limit: int


@dataclass(frozen=True)
class Plan:
    """Everything the data side knows before the first step."""

    datasets: tuple[DatasetPlan, ...]
    batches_per_epoch: int
    cut_captions: tuple[CutCaption, ...]
    """Captions of which the model sees only the beginning."""
    missing_captions: tuple[str, ...]
    """Images that train with an empty caption."""
    notes: tuple[str, ...]
    """What was left out; logged when the data set was made."""

    def lines(self) -> list[str]:
        """The plan as lines of text for the console."""
        text = [line for dataset in self.datasets for line in _dataset_lines(dataset)]
        text.append(f"{self.batches_per_epoch} batches per epoch")
        if self.missing_captions:
            text.append(f"{len(self.missing_captions)} images have no caption: {_named(self.missing_captions)}")
        if self.cut_captions:
            cut = [f"{caption.path} ({caption.tokens} tokens)" for caption in self.cut_captions]
            limits = " or ".join(str(limit) for limit in sorted({caption.limit for caption in self.cut_captions}))
            text.append(
                f"{len(cut)} captions are longer than {limits} tokens, and what is beyond is not trained "
                f"(--max_token_length allows up to 225): {_named(cut)}"
            )
        return text


def make_plan(datasets: Sequence[BucketedDataset], notes: Sequence[str], count: Callable[[str], int] | None) -> Plan:
    """The plan of all data sets; `count` gives a caption's number of tokens (None: captions are not measured)."""
    return Plan(
        datasets=tuple(_dataset_plan(dataset) for dataset in datasets),
        batches_per_epoch=sum(len(dataset.batch_list()) for dataset in datasets),
        cut_captions=tuple(cut for dataset in datasets for cut in _cut_captions(dataset, count)) if count else (),
        missing_captions=tuple(
            str(path) for dataset in datasets for scan in dataset.scans for path in scan.uncaptioned
        ),
        notes=tuple(notes),
    )


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
    buckets = (
        BucketPlan(bucket.resolution, len(bucket.samples), -(-len(bucket.samples) // config.batch_size))
        for bucket in dataset.buckets
    )
    return DatasetPlan(
        config.source, config.resolution, config.batch_size, config.enable_bucket, tuple(subsets), tuple(buckets)
    )


def _cut_captions(dataset: BucketedDataset, count: Callable[[str], int]) -> list[CutCaption]:
    limit = token_limit(dataset.config.max_token_length)
    cut = []
    for image in dataset.images:
        lines = add_prefix_and_suffix(image.caption, image.subset).split("\n")
        drawn = lines if image.subset.enable_wildcard else lines[:1]
        tokens = max(count(line) for line in drawn)
        if tokens > limit:
            cut.append(CutCaption(str(image.path), tokens, limit))
    return cut


def _dataset_lines(plan: DatasetPlan) -> list[str]:
    width, height = plan.resolution
    buckets = "buckets" if plan.enable_bucket else "no buckets"
    lines = [f"{plan.source or 'dataset'}: {width} x {height}, batch size {plan.batch_size}, {buckets}"]
    for subset in plan.subsets:
        kind = "regularisation images" if subset.is_reg else "images"
        repeats = f"{subset.images} {kind} x {subset.num_repeats} repeats"
        lines.append(f"  {subset.name}: {repeats} -> {subset.samples} samples per epoch")
    for bucket in plan.buckets:
        size = f"{bucket.resolution[0]} x {bucket.resolution[1]}"
        lines.append(f"    {size:>11}: {bucket.samples} samples, {bucket.batches} batches")
    return lines


def _named(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
