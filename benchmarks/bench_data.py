"""Time the data side: batches of large photos, and the scan of many small files.

python benchmarks/bench_data.py --photos 24 --files 100000

Photos: JPEGs of 12 megapixels to batches at 1024 px, beside Pillow alone on as many threads, with its
filter that is most like ours (box, an average) and its usual one (lanczos). Scan: sizes and captions of many images at
a first start, which decodes each of them, and at a second. Files are made in a folder of their own, which is removed.
"""

import argparse
import functools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks import measure
from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import DatasetConfig, SubsetConfig

PHOTO = (4000, 3000)
TARGET = (1024, 768)  # the bucket of a 4:3 photo at 1024 px with sides of at most 1024
FILTERS = {"pillow_box": Image.Resampling.BOX, "pillow_lanczos": Image.Resampling.LANCZOS}
SMALL = 64
WORDS = ("solo", "outdoors", "looking at viewer", "long hair", "blue sky", "smile", "from above", "tree", "standing")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=24, help="large images (default 24)")
    parser.add_argument("--files", type=int, default=100_000, help="small images to scan (default 100000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of the photos, best taken")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)  # one scan in a process of its own
    args = parser.parse_args(argv)
    if args.scan:
        measure.report(scan(args.scan))
        return 0
    result: dict[str, object] = {"what": "bench_data", "workers": args.workers, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        # Scans first: a process starts with the peak memory of the one that started it.
        result |= scans(Path(folder, "small"), args.files)
        result |= photos(Path(folder, "photos"), args.photos, args.workers, args.rounds)
    measure.report(result)
    return 0


def photos(folder: Path, count: int, workers: int, rounds: int) -> dict[str, object]:
    """Images per second of our batches and of Pillow alone, measured in turns."""
    make_photos(folder, count)
    dataset = train_dataset(folder, 1024, workers)
    paths = sorted(folder.glob("*.jpg"))
    best = dict.fromkeys(("ours", *FILTERS), math.inf)
    for _ in range(rounds):
        for name, resample in FILTERS.items():
            best[name] = min(best[name], seconds_of(functools.partial(with_pillow, paths, workers, resample)))
        best["ours"] = min(best["ours"], seconds_of(lambda: [len(batch.keys) for batch in dataset.batches(1, 0)]))
    figures: dict[str, object] = {f"{name}_per_s": round(count / seconds, 2) for name, seconds in best.items()}
    shares = {f"share_of_{name}": round(best[name] / best["ours"], 3) for name in FILTERS}
    return {"photos": count, "photo_pixels": "{} x {}".format(*PHOTO), **figures, **shares}


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call took."""
    return measure.seconds_of(work, 1)[0]


def with_pillow(paths: Sequence[Path], workers: int, resample: Image.Resampling) -> None:
    """Decode in full, resize to the same pixels, and scale to floats."""

    def one(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            small = image.convert("RGB").resize(TARGET, resample)
        return np.asarray(small).astype(np.float32) / 127.5 - 1

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(one, paths):
            pass


def scans(folder: Path, count: int) -> dict[str, object]:
    """Seconds and memory of a first and a second start, each in a process of its own."""
    make_small(folder, count)
    found: dict[str, object] = {"files": count}
    for name in ("first", "second"):
        command = [sys.executable, __file__, "--scan", str(folder)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        found |= {f"{name}_{key}": value for key, value in json.loads(lines[-1]).items()}
    return found


def scan(folder: Path) -> dict[str, object]:
    """One start: sizes and captions, then the plan with every caption's tokens."""
    begin = time.perf_counter()
    dataset = train_dataset(folder, SMALL, 0)
    scanned = time.perf_counter()
    dataset.plan()
    return {
        "scan_s": round(scanned - begin, 2),
        "plan_s": round(time.perf_counter() - scanned, 2),
        "cpu_s": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 2),
        "peak_rss_gb": measure.peak_rss_gb(),
    }


def train_dataset(folder: Path, side: int, workers: int) -> TrainDataset:
    """A folder with captions beside the images, in buckets."""
    subset = SubsetConfig(image_dir=str(folder), caption_extension=".txt")
    config = DatasetConfig(
        subsets=(subset,), kind="dreambooth", resolution=(side, side), enable_bucket=True, min_bucket_reso=SMALL // 2,
        max_bucket_reso=side, bucket_reso_steps=32, batch_size=4,
    )  # fmt: skip
    return TrainDataset((config,), sdxl_tokenizers(), RunRng(0), workers=workers)


def make_photos(folder: Path, count: int) -> None:
    """JPEGs with the detail of a photo: some noise on smooth colours, 3 to 4 MB each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(PHOTO, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 8, (PHOTO[1], PHOTO[0], 1)).astype(np.float32)
    pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
    for number in range(count):
        shifted = np.roll(pixels, 97 * number, axis=1)
        Image.fromarray(shifted).save(folder / f"{number:04d}.jpg", quality=90)
        (folder / f"{number:04d}.txt").write_text("a photo", encoding="utf-8")


def make_small(folder: Path, count: int) -> None:
    """Many small JPEG and PNG files with captions of tags."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        width, height = (int(side) for side in rng.integers(SMALL, 2 * SMALL, 2))
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((width, height))
        image.save(folder / f"image {number:06d}.{'jpg' if number % 2 else 'png'}")
        tags = ", ".join(str(tag) for tag in rng.choice(WORDS, rng.integers(3, 30)))
        (folder / f"image {number:06d}.txt").write_text(tags, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
