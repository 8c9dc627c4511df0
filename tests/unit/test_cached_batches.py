"""Batches of a data set with caches hold what those without caches come to."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.cache.cache_store import MemoryStore
from library.data.cache.latent_cache import LatentCache, latent_items
from library.data.cache.text_cache import TextCache, TextEncoders, text_items
from library.data.dataset import TrainDataset
from library.data.run_rng import RunRng
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import DatasetConfig, SubsetConfig
from tests.unit.caching_help import LATENTS, draw_image, encode, entry_of

SIZES = ((80, 70), (120, 70), (70, 120), (64, 64), (90, 90))


@pytest.fixture
def configs(tmp_path: Path) -> list[DatasetConfig]:
    """A data set whose transparency is the mask, one with a folder of masks, one held back in part."""
    for number, size in enumerate(SIZES):
        draw_image(tmp_path / "plain" / f"{number}.png", size, number)
        masked = draw_image(tmp_path / "masked" / f"{number}.png", size, number)
        rgba = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        (tmp_path / "alpha").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(rgba).save(tmp_path / "alpha" / masked.name)
        Image.fromarray(rgba[..., 3]).save(tmp_path / "masks" / masked.name)

    def config(kind: str, name: str, split: float = 0.0, **options: object) -> DatasetConfig:
        subset = SubsetConfig(image_dir=str(tmp_path / name), source=name, flip_aug=True, class_tokens=name, **options)
        buckets = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}
        return DatasetConfig(
            subsets=(subset,), kind=kind, resolution=(64, 64), batch_size=2, source=name, validation_split=split,
            validation_seed=1, **buckets,
        )  # fmt: skip

    return [
        config("dreambooth", "plain", split=0.4),
        config("dreambooth", "alpha", alpha_mask=True),
        config("masked", "masked", conditioning_data_dir=str(tmp_path / "masks")),
    ]


def make(configs: list[DatasetConfig]) -> TrainDataset:
    return TrainDataset(configs, sdxl_tokenizers(), RunRng(3), workers=2)


def test_latents_and_masks_are_those_of_the_images(configs: list[DatasetConfig]) -> None:
    plain, cached = make(configs), make(configs)
    items = latent_items(cached.images, "", None, LATENTS)
    store = MemoryStore()
    for item in items.values():
        store.put(item, entry_of(item))
    cached.latent_cache = LatentCache(items, store)
    masks = 0
    for epoch in (1, 2):
        for one, other in zip(plain.batches(epoch, 0), cached.batches(epoch, 0), strict=True):
            assert one.latents is None
            assert other.images_BCHW is None
            expected = encode(one.images_BCHW)
            np.testing.assert_array_equal(other.latents.mean, expected.mean)
            np.testing.assert_array_equal(other.latents.std, expected.std)
            np.testing.assert_array_equal(one.masks_BHW, other.masks_BHW)
            np.testing.assert_array_equal(one.size_ids_B6, other.size_ids_B6)
            assert (one.keys, one.captions) == (other.keys, other.captions)
            masks += one.masks_BHW is not None
    assert masks > 4


def test_what_is_held_back_is_cached_too(configs: list[DatasetConfig]) -> None:
    data = make(configs)
    held_back = [image for dataset in data.validation for image in dataset.images]
    assert held_back
    assert {image.path for image in held_back} <= {path for path, *_ in latent_items(data.images, "", None, LATENTS)}


def test_text_is_that_of_the_captions(configs: list[DatasetConfig]) -> None:
    data = make(configs)
    arrays = (("first", (77, 2)), ("second", (77, 3)), ("pooled", (3,)))
    items = text_items(data.images, TextEncoders("", arrays, "float32", 75), on_disk=False)
    store = MemoryStore()
    for item in set(items.values()):
        value = np.float32(len(item.caption))
        store.put(item, {name: np.full(shape, value) for name, shape in arrays})
    data.text_cache = TextCache(items, store)
    for batch in data.batches(1, 0):
        lengths = [len(caption) for caption in batch.captions]
        assert {name: array.shape for name, array in batch.text.items()} == {
            name: (len(lengths), *shape) for name, shape in arrays
        }
        assert batch.text["second"][:, 0, 0].tolist() == lengths
        assert batch.text["pooled"][:, 0].tolist() == lengths


def test_latents_are_drawn_from_mean_and_deviation(configs: list[DatasetConfig]) -> None:
    posterior = encode(next(make(configs).batches(1, 0)).images_BCHW)
    eps = np.random.default_rng(0).standard_normal(posterior.mean.shape, dtype=np.float32)
    drawn = posterior.draw(eps)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, posterior.mean + posterior.std.astype(np.float64) * eps, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(posterior.draw(np.zeros_like(eps)), posterior.mean)
