"""What cannot be cached: whatever is drawn anew each time that an image is shown."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from library.settings.config_util import DatasetConfig, SubsetConfig
from library.settings.flag_groups import CacheArgs
from library.settings.problems import raise_if_any

Setting = Callable[[SubsetConfig], object]

CHANGES_PIXELS: Mapping[str, Setting] = MappingProxyType({
    "random_crop": lambda subset: subset.random_crop,
    "color_aug": lambda subset: subset.color_aug,
    "face_crop_aug_range": lambda subset: subset.face_crop_aug_range,
})  # fmt: skip
"""Settings under which an image has other latents each time; mirroring is cached both ways."""

CHANGES_TEXT: Mapping[str, Setting] = MappingProxyType({
    "shuffle_caption": lambda subset: subset.shuffle_caption,
    "enable_wildcard": lambda subset: subset.enable_wildcard,
    "caption_dropout_rate": lambda subset: subset.caption_dropout_rate,
    "caption_dropout_every_n_epochs": lambda subset: subset.caption_dropout_every_n_epochs,
    "caption_tag_dropout_rate": lambda subset: subset.caption_tag_dropout_rate,
    "token_warmup_step": lambda subset: subset.token_warmup_step,
})  # fmt: skip
"""Settings under which an image has another caption each time."""


def check_cacheable(configs: Sequence[DatasetConfig], cache: CacheArgs) -> None:
    """Raise UsageError that lists every setting of a subset that contradicts the caches asked for."""
    wanted = []
    if cache.latents:
        wanted.append(("--cache_latents", "latents", CHANGES_PIXELS))
    if cache.text:
        wanted.append(("--cache_text_encoder_outputs", "text-encoder outputs", CHANGES_TEXT))
    problems = [
        f"{subset.source}: {name} gives others each time, so its {what} cannot be cached; switch it off, or leave out "
        f"{flag}"
        for flag, what, settings in wanted
        for config in configs
        for subset in config.subsets
        for name, setting in settings.items()
        if setting(subset)
    ]
    raise_if_any(problems, "the caches asked for")
