"""What tests of whole data sets share: pictures of noise, and data sets over them."""

import numpy as np
from PIL import Image

from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import DatasetConfig, SubsetConfig

SIZES = {"square": (80, 80), "wide": (160, 80), "tall": (80, 150), "big": (300, 310)}


def draw_images(folder, sizes=SIZES, suffix=".png"):
    """Pictures of noise, by name and size; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, (width, height)) in enumerate(sizes.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / (name + suffix))
    return folder


def config(*subsets, **options):
    """A data set of small pictures over these subsets."""
    kind = "finetuning" if any(subset.metadata_file for subset in subsets) else "dreambooth"
    settings = {"resolution": (64, 64), "batch_size": 2, "source": "data.toml [[datasets]] 1"} | options
    return DatasetConfig(subsets=subsets, kind=kind, **settings)


def subset(folder, **options):
    """A subset of a folder."""
    return SubsetConfig(image_dir=str(folder), source=f"[[subsets]] {folder.name}", **options)


def train_data(*configs, seed=1, workers=0):
    """The data set of a run."""
    return TrainDataset(configs, sdxl_tokenizers(), RunRng(seed), workers=workers)


def captions_by_name(data):
    """File name -> caption, over the first epoch."""
    pairs = (pair for batch in data.batches(1, 0) for pair in zip(batch.keys, batch.captions, strict=True))
    return {key.rsplit("/", 1)[1]: caption for key, caption in pairs}
