"""The flags of the caches: what they imply, and what cannot stand beside them."""

from dataclasses import replace

import pytest

from library.settings.arguments import read_train_args
from library.settings.cache_checks import CHANGES_PIXELS, CHANGES_TEXT, check_cacheable
from library.settings.config_util import DatasetConfig, SubsetConfig
from library.settings.flag_groups import CacheArgs

SUBSET = SubsetConfig(image_dir="d", source="data.toml [[subsets]] 1")
ON = {
    "face_crop_aug_range": (1.0, 2.0),
    "caption_dropout_every_n_epochs": 2,
    "caption_dropout_rate": 0.1,
    "caption_tag_dropout_rate": 0.1,
}


def configs(**options: object) -> list[DatasetConfig]:
    return [DatasetConfig(subsets=(SUBSET, replace(SUBSET, **options)), kind="dreambooth", resolution=(64, 64))]


def read(text: str):
    return read_train_args(text.split(), require_paths=False)


def test_to_disk_implies_the_cache_and_says_so() -> None:
    args = read("--cache_latents_to_disk --network_train_unet_only --cache_text_encoder_outputs_to_disk")
    assert args.cache.latents
    assert args.cache.text
    assert args.cache.on_disk
    assert sum("implies" in notice for notice in args.notices) == 2
    assert not read("").cache.latents


def test_text_outputs_of_trained_encoders_are_refused() -> None:
    for flag in ("--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"):
        with pytest.raises(ValueError, match="needs --network_train_unet_only"):
            read(flag)
        assert read(f"{flag} --network_train_unet_only").cache.text


def test_a_check_of_nothing_is_told() -> None:
    assert any("--skip_cache_check has no effect" in notice for notice in read("--skip_cache_check").notices)


@pytest.mark.parametrize("name", CHANGES_PIXELS)
def test_what_changes_pixels_contradicts_cached_latents(name: str) -> None:
    with pytest.raises(ValueError, match=rf"\[\[subsets\]\] 1: {name} .* --cache_latents"):
        check_cacheable(configs(**{name: ON.get(name, True)}), CacheArgs(cache_latents_to_disk=True))
    check_cacheable(configs(**{name: ON.get(name, True)}), CacheArgs(cache_text_encoder_outputs=True))


@pytest.mark.parametrize("name", CHANGES_TEXT)
def test_what_changes_captions_contradicts_cached_text(name: str) -> None:
    with pytest.raises(ValueError, match=rf"\[\[subsets\]\] 1: {name} .* --cache_text_encoder_outputs"):
        check_cacheable(configs(**{name: ON.get(name, True)}), CacheArgs(cache_text_encoder_outputs=True))
    check_cacheable(configs(**{name: ON.get(name, True)}), CacheArgs(cache_latents=True))


def test_everything_is_told_at_once() -> None:
    settings = {name: ON.get(name, True) for name in (*CHANGES_PIXELS, *CHANGES_TEXT)}
    with pytest.raises(ValueError, match=f"{len(settings)} problems"):
        check_cacheable(configs(**settings), CacheArgs(cache_latents=True, cache_text_encoder_outputs=True))


def test_mirroring_and_fixed_captions_can_be_cached() -> None:
    both = CacheArgs(cache_latents=True, cache_text_encoder_outputs=True)
    check_cacheable(configs(flip_aug=True, caption_prefix="a", keep_tokens=2, secondary_separator=";"), both)
