"""Latents of images, cached under kohya's file names and keys, with a fingerprint beside.

`latents` is the mean of what the VAE says an image's latents may be, and `latents_std` the standard deviation. A
training step draws from the two as it does without a cache, so that both train the same. kohya's scripts, which draw
once when they cache, read `latents` and ignore the rest.

Shapes: C = 4 channels, H and W an eighth of the bucket's height and width. Latents here are not scaled.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from library.data.batch import Posterior
from library.data.bucketed import PlacedImage
from library.data.buckets import Placement, Size, crop_ltrb
from library.data.cache.cache_names import cache_stems, latents_name
from library.data.cache.cache_store import Arrays, CacheItem, Store
from library.data.cache.fingerprint import FINGERPRINT, MadeFrom, check_fingerprint, make_fingerprint
from library.data.images.image_util import crop_offset
from library.settings.problems import raise_if_any
from library.settings.sizes import LATENT_CHANNELS, LATENT_PIXELS

PIXELS_VERSION = 1
"""To be raised by a change that gives another picture for the same file, so that old caches are not used."""
MEAN, STD = "latents", "latents_std"
FLIPPED_MEAN, FLIPPED_STD = "latents_flipped", "latents_flipped_std"
ALPHA_MASK = "alpha_mask"
SEALED = (MEAN, STD, FLIPPED_MEAN, FLIPPED_STD, ALPHA_MASK)
"""Keys whose arrays the fingerprint covers."""
KEYS = (*SEALED, "original_size", "crop_ltrb", FINGERPRINT)
MAX_BYTES = 1 << 27
"""Of one file: a few sizes with masks at 2048 px."""

Key = tuple[Path, Placement, str | None, bool]
"""Which latents: image, resize and crop, interpolation, whether its transparency is a mask."""


@dataclass(frozen=True)
class LatentEntry:
    """The latents of one image at one size."""

    plain: Posterior
    flipped: Posterior | None = None
    """Of the mirrored image, which are not the mirrored latents."""
    alpha_mask_HW: np.ndarray | None = None
    """float32 0 to 1, at the bucket's size in pixels; not mirrored."""


@dataclass(frozen=True, eq=False)
class LatentItem(CacheItem[LatentEntry]):
    """The latents of one image at one size; items of a run are told apart by being different objects."""

    image: PlacedImage
    flip: bool
    """Whether those of the mirrored image are needed too."""
    file: Path
    made_from: MadeFrom = field(repr=False)
    max_bytes: int = MAX_BYTES

    @property
    def latent_size(self) -> Size:
        """Width and height."""
        width, height = self.image.placement.bucket
        return width // LATENT_PIXELS, height // LATENT_PIXELS

    @property
    def alpha_mask(self) -> bool:
        """Whether the image's transparency is needed too."""
        return self.image.mask_in_alpha

    @property
    def name(self) -> str:  # type: ignore[override]
        """See CacheItem."""
        width, height = self.latent_size
        return f"{height}x{width}" + " flipped" * self.flip + " mask" * self.alpha_mask

    def pack(self, entry: LatentEntry, others: Mapping[str, np.ndarray]) -> Arrays:
        """See CacheItem. The newest size has kohya's plain keys, others those with the size behind: latents_64x48."""
        own = {MEAN: entry.plain.mean, STD: entry.plain.std}
        if entry.flipped is not None:
            own |= {FLIPPED_MEAN: entry.flipped.mean, FLIPPED_STD: entry.flipped.std}
        if entry.alpha_mask_HW is not None:
            own[ALPHA_MASK] = entry.alpha_mask_HW
        own[FINGERPRINT] = make_fingerprint(self.made_from, own)
        own["original_size"] = np.array(self.image.size)
        own["crop_ltrb"] = np.array(crop_ltrb(self.image.placement.bucket, self.image.conditioning_size), np.float64)
        return {**_of_other_sizes(others, self._suffix), **own}

    def unpack(self, arrays: Mapping[str, np.ndarray], trusting: bool) -> LatentEntry:
        """See CacheItem."""
        group = self._group(arrays)
        needed = [MEAN] + [FLIPPED_MEAN] * self.flip + [ALPHA_MASK] * self.alpha_mask
        absent = [key for key in needed if key not in group]
        if absent:
            raise ValueError(f"it has no {', no '.join(absent)} for this size")
        self._check_arrays(group)
        sealed = {key: group[key] for key in SEALED if key in group}
        try:
            check_fingerprint(group.get(FINGERPRINT), self.made_from, sealed)
        except ValueError:
            if not trusting:
                raise
            # kohya's latents, drawn once: nothing is to be drawn any more.
            group = {key: array for key, array in group.items() if key not in (STD, FLIPPED_STD)}
        return LatentEntry(
            _posterior(group, MEAN, STD),
            _posterior(group, FLIPPED_MEAN, FLIPPED_STD) if self.flip else None,
            group[ALPHA_MASK].astype(np.float32) if self.alpha_mask else None,
        )

    def check(self, entry: LatentEntry) -> None:
        """See CacheItem."""
        drawn_from = [entry.plain] if entry.flipped is None else [entry.plain, entry.flipped]
        if not all(np.isfinite(one.mean).all() and np.isfinite(one.std).all() for one in drawn_from):
            raise ValueError(
                f"{self.image.path}: the VAE gives latents that are not numbers for it. Look at the image, or give "
                "another VAE with --vae"
            )

    @property
    def _suffix(self) -> str:
        width, height = self.latent_size
        return f"_{height}x{width}"

    def _group(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of this item's size, under their plain keys; kohya's newer key form first."""
        if MEAN + self._suffix in arrays:
            return {key: arrays[key + self._suffix] for key in KEYS if key + self._suffix in arrays}
        return {key: arrays[key] for key in KEYS if key in arrays}

    def _check_arrays(self, group: Mapping[str, np.ndarray]) -> None:
        width, height = self.latent_size
        mask_shape = (height * LATENT_PIXELS, width * LATENT_PIXELS)
        for key in SEALED:
            if key not in group or (key == ALPHA_MASK and not self.alpha_mask):
                continue
            shape = mask_shape if key == ALPHA_MASK else (LATENT_CHANNELS, height, width)
            if group[key].shape != shape or group[key].dtype.kind != "f":
                raise ValueError(f"{key} is {group[key].dtype} {list(group[key].shape)}, not numbers {list(shape)}")
            if not np.isfinite(group[key]).all():
                raise ValueError(f"{key} holds values that are not numbers (NaN or infinite)")


def _posterior(group: Mapping[str, np.ndarray], mean: str, std: str) -> Posterior:
    latents = group[mean].astype(np.float32)
    return Posterior(latents, group[std] if std in group else np.zeros(latents.shape, np.float16))


def _of_other_sizes(arrays: Mapping[str, np.ndarray], suffix: str) -> Arrays:
    """The arrays of all other sizes, under the keys with their size."""
    kept: Arrays = {}
    plain = arrays.get(MEAN)
    if plain is not None and plain.ndim == 3:
        size = f"_{plain.shape[1]}x{plain.shape[2]}"
        kept = {key + size: arrays[key] for key in KEYS if key in arrays}
    kept |= {name: array for name, array in arrays.items() if name.rpartition("_")[0] in KEYS and name not in KEYS}
    return {name: array for name, array in kept.items() if not name.endswith(suffix)}


class LatentCache:
    """The latents of a run's images."""

    def __init__(self, items: Mapping[Key, LatentItem], store: Store[LatentItem, LatentEntry]) -> None:
        self.items = items
        self.store = store

    def sample(self, image: PlacedImage, flipped: bool) -> tuple[Posterior, np.ndarray | None]:
        """What the VAE says of an image, or of its mirror image, and its transparency where that is its mask.

        Raises ValueError, naming the file, when it cannot be read any more.
        """
        entry = self.store.get(self.items[latent_key(image)])
        mask = entry.alpha_mask_HW
        if not flipped:
            return entry.plain, mask
        assert entry.flipped is not None, f"{image.path}: no mirrored latents were cached"
        return entry.flipped, None if mask is None else mask[:, ::-1]


def latent_key(image: PlacedImage) -> Key:
    """Which latents an image needs."""
    return image.path, image.placement, image.subset.resize_interpolation, image.mask_in_alpha


def latent_items(
    images: Iterable[PlacedImage], vae: str, digests: Mapping[Path, str] | None, ending: str
) -> dict[Key, LatentItem]:
    """What has to be cached for these images, in their order.

    `vae`: digest of the VAE's weights. `digests`: of the images' bytes; None where the cache is for this run only.
    `ending`: of the files' names.
    Raises ValueError where one file would have to hold two latents of one size.
    """
    by_key: dict[Key, list[PlacedImage]] = {}
    for image in images:
        by_key.setdefault(latent_key(image), []).append(image)
    stems = cache_stems(path for path, *_ in by_key)
    items = {}
    for key, same in by_key.items():
        image = same[0]
        file = image.path.with_name(latents_name(stems[image.path], image.size, ending))
        made_from = _made_from(image, vae, digests[image.path] if digests is not None else "")
        items[key] = LatentItem(image, any(one.subset.flip_aug for one in same), file, made_from)
    if digests is not None:
        _check_one_each(list(items.values()))
    return items


def _made_from(image: PlacedImage, vae: str, digest: str) -> MadeFrom:
    return {
        "kind": "latents",
        "image": digest,
        "size": list(image.placement.resized),
        "crop": [*crop_offset(image.placement, None), *image.placement.bucket],
        "resize_interpolation": image.subset.resize_interpolation or "auto",
        "alpha_mask": image.mask_in_alpha,
        "reading_of_pixels": PIXELS_VERSION,
        "VAE": vae,
        "dtype": "float32",
    }


def _check_one_each(items: Sequence[LatentItem]) -> None:
    """A file has one place for each size."""
    first: dict[tuple[Path, Size], LatentItem] = {}
    problems = []
    for item in items:
        other = first.setdefault((item.file, item.latent_size), item)
        if other is not item:
            problems.append(
                f"{item.image.path}: {other.image.subset.source} and {item.image.subset.source} resize it in two ways "
                "to one size, and a file holds only one: give both the same resize_interpolation, alpha_mask and "
                "bucket settings, or use --cache_latents without --cache_latents_to_disk"
            )
    raise_if_any(problems, "caching latents")
