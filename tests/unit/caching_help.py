"""Images, a stand-in for the VAE, and caches made with it; run as a script it fills a cache (and may be killed)."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from library.data.batch import Posterior
from library.data.bucketed import PlacedImage
from library.data.buckets import Size, select_bucket
from library.data.cache.cache_fill import Filling, fill
from library.data.cache.cache_store import DiskStore, Indexes
from library.data.cache.latent_cache import Key, LatentEntry, LatentItem, latent_items
from library.data.images.image_util import crop_offset
from library.data.sample import DrawnSample, SamplePixels, sample_pixels
from library.settings.config_util import SubsetConfig

BUCKETS = [(64, 64), (96, 64), (64, 96)]
LATENTS = "_sdxl.npz"
"""How kohya's names of files with SDXL's latents end."""


def draw_image(path: Path, size: Size = (80, 70), seed: int = 0) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def placed(path: Path, buckets: Sequence[Size] = BUCKETS, **subset: object) -> PlacedImage:
    """An image in its bucket."""
    with Image.open(path) as image:
        size = image.size
    settings = SubsetConfig(image_dir=str(path.parent), source=f"[[subsets]] {path.parent.name}", **subset)
    return PlacedImage(path, "a caption", settings, 0, size, select_bucket(size, buckets), size, 1)


def encode(images_BCHW: np.ndarray) -> Posterior:
    """Latents that any change of the pixels changes."""
    batch, _, height, width = images_BCHW.shape
    blocks = images_BCHW.reshape(batch, 3, height // 8, 8, width // 8, 8)
    mean = np.concatenate((blocks.mean((3, 5)), blocks.std((3, 5))[:, :1]), axis=1).astype(np.float32)
    return Posterior(mean, (0.01 * np.abs(mean)).astype(np.float16))


def sample(image: PlacedImage, flipped: bool = False) -> SamplePixels:
    """What the model sees, and the mask."""
    return sample_pixels(image, DrawnSample("", flipped, crop_offset(image.placement, None)))


def pixels(image: PlacedImage, flipped: bool = False) -> np.ndarray:
    """What the model sees."""
    return sample(image, flipped).image_CHW


def entry_of(item: LatentItem) -> LatentEntry:
    """What the cache should hold."""
    plain, flipped = (encode(pixels(item.image, mirrored)[None]) for mirrored in (False, True))
    return LatentEntry(
        Posterior(plain.mean[0], plain.std[0]),
        Posterior(flipped.mean[0], flipped.std[0]) if item.flip else None,
        sample(item.image).mask_HW if item.alpha_mask else None,
    )


class Disk:
    """A cache on disk of some images, as a new run sees it."""

    def __init__(self, images: Sequence[PlacedImage], vae: str = "vae", trusting: bool = False) -> None:
        self.indexes = Indexes((image.path.parent for image in images), 2)
        digests = {i.path: self.indexes.of(i.path.parent).image_digest(i.path) for i in images}
        self.items: dict[Key, LatentItem] = latent_items(images, vae, digests, LATENTS)
        self.store: DiskStore[LatentItem, LatentEntry] = DiskStore(self.indexes, trusting=trusting)
        self.encoded: list[str] = []
        """Names of the images that were encoded."""

    def fill(self, batch_size: int = 1, pause: float = 0.0, start: int = 0) -> int:
        """Fill it; returns the number of entries made."""

        def encode_batch(items: Sequence[LatentItem]) -> list[LatentEntry]:
            time.sleep(pause)
            self.encoded += [item.image.path.name for item in items]
            return [entry_of(item) for item in items]

        def bucket(item: LatentItem) -> Size:
            return item.image.placement.bucket

        filling = Filling("latents", lambda item: item, encode_batch, bucket, batch_size, 2, start)
        return fill(list(self.items.values()), self.store, filling)

    def files(self) -> dict[str, bytes]:
        """Name and bytes of the cache files."""
        folders = {item.file.parent for item in self.items.values()}
        return {path.name: path.read_bytes() for folder in folders for path in folder.glob("*.npz")}


if __name__ == "__main__":
    folder, pause, start = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    cache = Disk([placed(path, flip_aug=True) for path in sorted(folder.glob("*.png"))])
    sys.stdout.write(f"{cache.fill(pause=pause, start=start)}\n")
