"""Latents on disk: kohya's format both ways, and nothing stale, damaged or foreign is ever used."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.bucketed import PlacedImage
from library.data.cache import cache_store
from library.data.cache.cache_index import INDEX_NAME
from library.data.cache.latent_cache import LatentCache, latent_items
from library.files.npz_files import read_npz
from tests.unit.caching_help import LATENTS, Disk, draw_image, encode, entry_of, pixels, placed, sample


@pytest.fixture
def image(tmp_path: Path) -> PlacedImage:
    return placed(draw_image(tmp_path / "a.png"))


def only(cache: Disk):
    (item,) = cache.items.values()
    return item


def why_made_again(cache: Disk, caplog: pytest.LogCaptureFixture) -> str:
    """Fill; what was said of the one entry that was there and was not used."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert cache.fill() == 1
    reasons = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(reasons) == 1, reasons
    assert only(cache).file.name in reasons[0]
    check_holds_the_image(cache)
    return reasons[0]


def check_holds_the_image(cache: Disk) -> None:
    for item in cache.items.values():
        expected, found = entry_of(item), cache.store.get(item)
        np.testing.assert_array_equal(found.plain.mean, expected.plain.mean)
        np.testing.assert_array_equal(found.plain.std, expected.plain.std)
        if item.flip:
            np.testing.assert_array_equal(found.flipped.mean, expected.flipped.mean)


def test_what_was_encoded_is_read(image: PlacedImage) -> None:
    cache = Disk([image])
    assert cache.fill() == 1
    again = Disk([image])
    assert again.fill() == 0
    posterior, mask = LatentCache(again.items, again.store).sample(image, flipped=False)
    assert mask is None
    np.testing.assert_array_equal(posterior.mean, encode(pixels(image)[None]).mean[0])
    assert (posterior.mean.dtype, posterior.std.dtype) == (np.float32, np.float16)


def test_kohya_reads_it(tmp_path: Path) -> None:
    """What its loader does with a file, in a few lines: name from stem and image size, these keys, these shapes."""
    image = placed(draw_image(tmp_path / "a.b.png", (120, 70)), flip_aug=True)
    Disk([image]).fill()
    with np.load(tmp_path / "a.b_0120x0070_sdxl.npz") as file:
        assert file["latents"].shape == file["latents_flipped"].shape == (4, 64 // 8, 96 // 8)
        assert file["latents"].dtype == np.float32
        assert file["original_size"].tolist() == [120, 70]
        assert file["crop_ltrb"].tolist() == [0, 4.0, 96, 60.0]
        np.testing.assert_array_equal(file["latents"], encode(pixels(image)[None]).mean[0])
        np.testing.assert_array_equal(file["latents_flipped"], encode(pixels(image, flipped=True)[None]).mean[0])


def kohyas_arrays(size: tuple[int, int] = (8, 8), suffix: str = "") -> dict[str, np.ndarray]:
    latents = np.random.default_rng(5).standard_normal((2, 4, size[1], size[0])).astype(np.float32)
    return {
        "latents" + suffix: latents[0],
        "latents_flipped" + suffix: latents[1],
        "original_size" + suffix: np.array([80, 70]),
        "crop_ltrb" + suffix: np.array([0.0, 4, 64, 60]),
    }


@pytest.mark.parametrize("suffix", ["", "_8x8"])
def test_kohyas_files_are_read_when_they_are_trusted(tmp_path: Path, suffix: str) -> None:
    image = placed(draw_image(tmp_path / "a.png"), flip_aug=True)
    written = kohyas_arrays(suffix=suffix)
    np.savez(tmp_path / "a_0080x0070_sdxl.npz", **written)
    cache = Disk([image], trusting=True)
    assert cache.fill() == 0
    for flipped, key in ((False, "latents"), (True, "latents_flipped")):
        posterior, _ = LatentCache(cache.items, cache.store).sample(image, flipped)
        np.testing.assert_array_equal(posterior.mean, written[key + suffix])
        assert not posterior.std.any(), "kohya has drawn already"
    assert Disk([image], trusting=True).fill() == 0, "from the index"


def test_kohyas_newer_files_hold_several_sizes(image: PlacedImage) -> None:
    arrays = kohyas_arrays((8, 8), "_8x8") | kohyas_arrays((12, 8), "_8x12")
    np.savez(only(Disk([image])).file, **arrays)
    cache = Disk([image], trusting=True)
    assert cache.fill() == 0
    np.testing.assert_array_equal(cache.store.get(only(cache)).plain.mean, arrays["latents_8x8"])


def test_kohyas_files_are_made_again_when_they_are_not_trusted(image, caplog) -> None:
    np.savez(only(Disk([image])).file, **kohyas_arrays())
    assert "no fingerprint" in why_made_again(Disk([image]), caplog)


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latents": np.zeros((4, 9, 8), np.float32)}, "[4, 9, 8]"),
        ({"latents": np.zeros((16, 8, 8), np.float32)}, "[16, 8, 8]"),
        ({"latents": np.zeros((4, 8, 8), np.int64)}, "int64"),
        ({"latents": np.full((4, 8, 8), np.nan, np.float32)}, "not numbers"),
        ({"latents": np.full((4, 8, 8), np.inf, np.float32)}, "not numbers"),
        ({"latents_8x8": np.zeros((4, 4, 4), np.float32)}, "[4, 4, 4]"),
        ({"latents": None}, "no latents"),
    ],
)
def test_a_wrong_entry_is_made_again_trusted_or_not(image, caplog, trusting, change, reason) -> None:
    Disk([image]).fill()
    file = only(Disk([image])).file
    arrays = read_npz(file, 1 << 20) | change
    np.savez(file, **{key: array for key, array in arrays.items() if array is not None})
    assert reason in why_made_again(Disk([image], trusting=trusting), caplog)


def test_an_edited_image_is_encoded_again(image: PlacedImage, caplog) -> None:
    Disk([image]).fill()
    draw_image(image.path, seed=1)
    assert "different: image" in why_made_again(Disk([image]), caplog)


def test_another_vae_interpolation_or_resize_is_encoded_again(image: PlacedImage, caplog) -> None:
    Disk([image]).fill()
    assert "different: VAE" in why_made_again(Disk([image], vae="other"), caplog)
    other = placed(image.path, resize_interpolation="nearest")
    assert "different: resize interpolation" in why_made_again(Disk([other], vae="other"), caplog)
    larger = replace(other, placement=replace(other.placement, resized=(90, 79)))
    assert "different: crop, size" in why_made_again(Disk([larger], vae="other"), caplog)


def test_a_file_of_another_image_is_not_used(tmp_path: Path, caplog) -> None:
    images = [placed(draw_image(tmp_path / name, seed=seed)) for seed, name in enumerate(("a.png", "b.png"))]
    Disk(images).fill()
    shutil.copy(tmp_path / "a_0080x0070_sdxl.npz", tmp_path / "b_0080x0070_sdxl.npz")
    assert "different: image" in why_made_again(Disk([images[1]]), caplog)


def test_latents_put_beside_an_old_fingerprint_are_found(image: PlacedImage, caplog) -> None:
    """kohya's scripts write new latents and keep the keys that they do not know."""
    Disk([image]).fill()
    file = only(Disk([image])).file
    np.savez(file, **(read_npz(file, 1 << 20) | {"latents": np.zeros((4, 8, 8), np.float32)}))
    assert "changed by another program" in why_made_again(Disk([image]), caplog)


@pytest.mark.parametrize("length", [0, 10, 0.5, -1])
def test_a_truncated_file_is_made_again(image: PlacedImage, caplog, length: float) -> None:
    Disk([image]).fill()
    file = only(Disk([image])).file
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * length) if isinstance(length, float) else length])
    assert "cannot be read" in why_made_again(Disk([image]), caplog)
    assert file.read_bytes() == whole


def test_a_hostile_file_is_named_and_made_again(image: PlacedImage, caplog) -> None:
    np.savez(only(Disk([image])).file, latents=np.array([{}], dtype=object))
    assert "pickle" in why_made_again(Disk([image], trusting=True), caplog)


def test_mirrored_latents_are_added_when_they_are_needed(image: PlacedImage, caplog) -> None:
    Disk([image]).fill()
    assert "no latents_flipped" in why_made_again(Disk([placed(image.path, flip_aug=True)]), caplog)
    assert Disk([image]).fill() == 0, "an entry with more than is needed will do"


def transparent(path: Path, **subset: object) -> PlacedImage:
    """An image whose left half is transparent."""
    rgba = np.random.default_rng(2).integers(0, 256, (70, 80, 4), dtype=np.uint8)
    rgba[:, :40, 3], rgba[:, 40:, 3] = 0, 255
    Image.fromarray(rgba).save(path)
    return placed(path, **subset)


def test_transparency_is_cached_as_kohya_does_and_mirrored_when_it_is_used(tmp_path: Path) -> None:
    image = transparent(tmp_path / "a.png", alpha_mask=True, flip_aug=True)
    cache = Disk([image])
    assert cache.fill() == 1
    with np.load(only(cache).file) as file:
        assert file["alpha_mask"].shape == (64, 64)
        assert file["alpha_mask"].dtype == np.float32
        assert file["alpha_mask"][:, :30].max() < 0.01 < 0.99 < file["alpha_mask"][:, 40:].min()
    for flipped in (False, True):
        _, mask = LatentCache(cache.items, cache.store).sample(image, flipped)
        np.testing.assert_array_equal(mask, sample(image, flipped).mask_HW)


def test_transparency_as_mask_or_on_white_are_different_latents(tmp_path: Path, caplog) -> None:
    image = transparent(tmp_path / "a.png")
    Disk([image]).fill()
    masked = placed(image.path, alpha_mask=True)
    assert "no alpha_mask" in why_made_again(Disk([masked]), caplog)
    assert "different: alpha mask" in why_made_again(Disk([image]), caplog)


def test_a_mask_left_in_the_file_is_not_used(image: PlacedImage) -> None:
    np.savez(only(Disk([image])).file, **kohyas_arrays(), alpha_mask=np.zeros((9, 9), np.float32))
    cache = Disk([image], trusting=True)
    assert cache.fill() == 0
    assert cache.store.get(only(cache)).alpha_mask_HW is None


def test_images_of_one_stem_have_caches_of_their_own(tmp_path: Path) -> None:
    images = [placed(draw_image(tmp_path / name, seed=seed)) for seed, name in enumerate(("a.png", "a.bmp", "A.png"))]
    cache = Disk(images)
    assert cache.fill() == 3
    check_holds_the_image(cache)
    assert Disk(images).fill() == 0
    assert len(cache.files()) == 3


def test_several_sizes_share_a_file_and_both_stay(image: PlacedImage) -> None:
    small = placed(image.path, [(32, 32)])
    cache = Disk([image, small])
    assert cache.fill() == 2
    check_holds_the_image(cache)
    (file,) = cache.files()
    arrays = read_npz(image.path.with_name(file), 1 << 20)
    assert arrays["latents"].shape == (4, 4, 4), "the newest under kohya's plain keys"
    assert arrays["latents_8x8"].shape == (4, 8, 8)
    assert Disk([image]).fill() == Disk([small]).fill() == Disk([small, image]).fill() == 0
    draw_image(image.path, seed=1)
    assert Disk([image]).fill() == 1
    assert Disk([small]).fill() == 1
    check_holds_the_image(Disk([image, small]))


def test_one_size_reached_in_two_ways_is_refused(image: PlacedImage) -> None:
    with pytest.raises(ValueError, match="resize it in two ways"):
        Disk([image, placed(image.path, resize_interpolation="nearest")])
    both = [image, placed(image.path, resize_interpolation="nearest")]
    assert len(latent_items(both, "", None, LATENTS)) == 2, "in memory there is room for both"


def test_a_file_that_breaks_during_training_is_named(image: PlacedImage) -> None:
    cache = Disk([image])
    cache.fill()
    only(cache).file.unlink()
    with pytest.raises(ValueError, match=r"a_0080x0070_sdxl\.npz.*start again"):
        cache.store.get(only(cache))


def test_nothing_is_opened_when_the_index_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [placed(draw_image(tmp_path / f"{number}.png", seed=number)) for number in range(20)]
    Disk(images).fill()
    opened = []
    read = cache_store.read_npz
    monkeypatch.setattr(cache_store, "read_npz", lambda path, limit: opened.append(path.name) or read(path, limit))
    assert Disk(images).fill() == 0
    assert opened == []
    os.utime(tmp_path / "7_0080x0070_sdxl.npz", ns=(0, 0))
    assert Disk(images).fill() == 0
    assert opened == ["7_0080x0070_sdxl.npz"]
    (tmp_path / INDEX_NAME).unlink()
    assert Disk(images).fill() == 0
    assert len(opened) == 21


def test_a_trusting_run_does_not_vouch_for_what_it_took(image: PlacedImage, caplog) -> None:
    Disk([image], vae="other").fill()
    assert Disk([image], trusting=True).fill() == 0
    assert "different: VAE" in why_made_again(Disk([image]), caplog)
