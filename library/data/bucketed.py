"""One data set laid out for training: which image goes to which bucket, and how often."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.data.buckets import BucketSelector, Placement, Size, batch_list, round_limits
from library.data.images.augment import Face, face_in_name
from library.data.images.image_util import MAX_PIXELS
from library.data.scan.scan import Findings, SubsetScan, some
from library.settings.config_util import DatasetConfig, SubsetConfig
from library.settings.counted import counted


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image with everything that is settled about it before the first epoch."""

    path: Path
    caption: str
    subset: SubsetConfig
    subset_number: int
    """Place of the subset among those trained, from 0."""
    size: Size
    """Upright width and height in pixels."""
    placement: Placement
    conditioning_size: Size
    """Width and height told to the model as the original size, in pixels."""
    repeats: int
    """Samples of this image in one epoch."""
    mask: Path | None = None
    """The image that weighs its loss; with the subset's alpha_mask the image itself does."""
    face: Face | None = None
    """What its crops are drawn around; each sample then has a placement of its own."""

    @property
    def has_mask(self) -> bool:
        """Whether its loss is weighed by a mask."""
        return self.mask is not None or self.subset.alpha_mask

    @property
    def mask_in_alpha(self) -> bool:
        """Whether that mask is the image's own transparency."""
        return self.mask is None and self.subset.alpha_mask


@dataclass(frozen=True)
class Bucket:
    """The samples of one size."""

    resolution: Size
    samples: np.ndarray
    """int64: sample numbers within the data set."""


@dataclass(frozen=True)
class BucketedDataset:
    """A data set ready to be drawn from. Sample n shows image `sample_image[n]`."""

    config: DatasetConfig
    scans: tuple[SubsetScan, ...]
    images: tuple[PlacedImage, ...]
    sample_image: np.ndarray
    """int64 [samples]: index into `images`."""
    buckets: tuple[Bucket, ...]
    """Sorted by resolution."""
    num_train_images: int
    """Training images times their repeats."""
    num_reg_images: int
    """Regularisation images times their repeats, before they are balanced."""
    mean_ar_error: float
    """Mean over images of |aspect ratio of the bucket - that of the image|."""

    def batch_list(self) -> list[tuple[int, int]]:
        """All batches of an epoch as (bucket, number within the bucket)."""
        return batch_list([len(bucket.samples) for bucket in self.buckets], self.config.batch_size)


def build_bucketed(
    config: DatasetConfig, scans: Sequence[SubsetScan], sizes: dict[Path, Size], findings: Findings
) -> BucketedDataset:
    """Place and count the images of a data set; `sizes` are their upright pixel sizes.

    Images without a size are passed over (the reason is in `findings` already); images that fit no bucket and
    impossible sizes are added to `findings.problems`.
    """
    if not config.enable_bucket and any(side % config.size_step for side in config.resolution):
        findings.problems.append(
            f"{config.source}: resolution {config.resolution[0]} x {config.resolution[1]} has to be a multiple of "
            f"{config.size_step} on both sides when enable_bucket is off"
        )
    balanced = _repeats(scans, findings, config)
    selector = _selector(config)
    images: list[PlacedImage] = []
    for number, (scan, repeats) in enumerate(zip(scans, balanced, strict=True)):
        for image, count in zip(scan.images, repeats, strict=True):
            size = sizes.get(image.path)
            if size is None or count == 0:
                continue
            face = _face(config, scan.config, image.path, size)
            try:
                placement, told = _place(config, scan.config, selector, size, face)
                _check_enlarged(size, placement.resized)
            except ValueError as error:
                findings.problems.append(f"{image.path}: {error}")
                continue
            images.append(
                PlacedImage(
                    path=image.path,
                    caption=image.caption,
                    subset=scan.config,
                    subset_number=number,
                    size=size,
                    placement=placement,
                    conditioning_size=told,
                    repeats=count,
                    mask=image.mask,
                    face=face,
                )
            )
    _note_unused_face_range(config, scans, images, findings)
    sample_image = np.repeat(np.arange(len(images)), [image.repeats for image in images]).astype(np.int64)
    return BucketedDataset(
        config=config,
        scans=tuple(scans),
        images=tuple(images),
        sample_image=sample_image,
        buckets=_buckets(images, sample_image),
        num_train_images=_count(scans, is_reg=False),
        num_reg_images=_count(scans, is_reg=True),
        mean_ar_error=float(np.mean([abs(image.placement.ar_error) for image in images])) if images else 0.0,
    )


def _selector(config: DatasetConfig) -> BucketSelector:
    low, high = round_limits(config.min_bucket_reso, config.max_bucket_reso, config.bucket_reso_steps)
    return BucketSelector(
        config.resolution,
        enabled=config.enable_bucket,
        min_side=low,
        max_side=high,
        steps=config.bucket_reso_steps,
        no_upscale=config.bucket_no_upscale,
    )


def _covers(size: Size, target: Size) -> bool:
    return size[0] >= target[0] and size[1] >= target[1]


def _face(config: DatasetConfig, subset: SubsetConfig, path: Path, size: Size) -> Face | None:
    """The face that crops are drawn around: without buckets, in an image that is large enough, as kohya has it."""
    if subset.face_crop_aug_range is None or config.enable_bucket or not _covers(size, config.resolution):
        return None
    return face_in_name(path)


def _note_unused_face_range(
    config: DatasetConfig, scans: Sequence[SubsetScan], images: Sequence[PlacedImage], findings: Findings
) -> None:
    """Say for how many images face_crop_aug_range does nothing."""
    for number, scan in enumerate(scans):
        without = [image.path.name for image in images if image.subset_number == number and image.face is None]
        if scan.config.face_crop_aug_range is None or not without:
            continue
        why = (
            "enable_bucket is on"
            if config.enable_bucket
            else ("their names do not end in _centerx_centery_width_height, or they are smaller than the resolution")
        )
        findings.notes.append(
            f"{scan.config.source}: face_crop_aug_range has no effect on {counted(len(without), 'image')}, since "
            f"{why}: {some(without)}"
        )


def _place(
    config: DatasetConfig, subset: SubsetConfig, selector: BucketSelector, size: Size, face: Face | None
) -> tuple[Placement, Size]:
    """Placement of an image, and the size told to the model.

    With random_crop and without buckets the crop is cut from the image at its own scale where it is large enough, and
    the model is told the crop's size, as kohya does, and as it is of crops around a face; in all other cases the image
    is scaled to cover its bucket.
    """
    target = config.resolution
    if face is not None:
        return selector.select(size), target
    covers = _covers(size, target)
    if subset.random_crop and not config.enable_bucket and covers:
        return Placement(target, size, target[0] / target[1] - size[0] / size[1]), target
    return selector.select(size), size


def _check_enlarged(size: Size, resized: Size) -> None:
    """Raise ValueError for a strip a pixel wide, whose enlargement would take gigabytes to cut a bucket from."""
    if resized[0] * resized[1] > max(MAX_PIXELS, size[0] * size[1]):
        raise ValueError(
            f"the image of {size[0]} x {size[1]} pixels is too thin: it would be enlarged to {resized[0]} x "
            f"{resized[1]} pixels to fill its bucket; leave it out"
        )


def _buckets(images: Sequence[PlacedImage], sample_image: np.ndarray) -> tuple[Bucket, ...]:
    samples: dict[Size, list[int]] = defaultdict(list)
    for sample, image in enumerate(sample_image.tolist()):
        samples[images[image].placement.bucket].append(sample)
    return tuple(Bucket(size, np.array(samples[size], np.int64)) for size in sorted(samples))


def _count(scans: Sequence[SubsetScan], *, is_reg: bool) -> int:
    return sum(len(scan.images) * scan.config.num_repeats for scan in scans if scan.config.is_reg == is_reg)


def _repeats(scans: Sequence[SubsetScan], findings: Findings, config: DatasetConfig) -> list[list[int]]:
    """Repeats of every image, per subset: num_repeats, or what balances the regularisation images."""
    wanted = _count(scans, is_reg=False)
    reg_scans = [scan for scan in scans if scan.config.is_reg]
    if reg_scans and not wanted:
        findings.problems.append(f"{config.source}: there are regularisation images (is_reg) but no training images")
    given = [scan.config.num_repeats for scan in reg_scans for _ in scan.images]
    reg_repeats = balance_repeats(given, wanted)
    unused = reg_repeats.count(0)
    if unused and wanted:
        findings.notes.append(
            f"{config.source}: {unused} of {counted(len(given), 'regularisation image')} not used, since the training "
            f"images (with repeats) are only {wanted}"
        )
    rest = iter(reg_repeats)
    return [[next(rest) if scan.config.is_reg else scan.config.num_repeats for _ in scan.images] for scan in scans]


def balance_repeats(given: Sequence[int], wanted: int) -> list[int]:
    """How often each regularisation image is used so that together they reach `wanted` samples.

    The first lap gives each its own number, later laps one more each; it stops as soon as `wanted` is reached.
    Source: kohya's DreamBoothDataset.
    """
    repeats = [0] * len(given)
    total = 0
    lap = 0
    while given and total < wanted:
        for number, own in enumerate(given):
            added = own if lap == 0 else 1
            repeats[number] += added
            total += added
            if total >= wanted:
                break
        lap += 1
    return repeats
