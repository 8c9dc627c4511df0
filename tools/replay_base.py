"""What every kind of replay needs: the recordings' base model on the device."""

import functools
from dataclasses import dataclass

from library.device.profile import Device
from library.families.base import BaseModel
from library.families.sdxl.family import SdxlFamily
from library.graphs.layer_target import LayerTarget
from tools.tiny_source import tiny_base


@dataclass(frozen=True)
class Base:
    """A base model on the device, and the layers that networks may adapt."""

    family: SdxlFamily
    model: BaseModel
    targets: tuple[LayerTarget, ...]


@functools.lru_cache(maxsize=2)
def base_model(seed: int, te2_projection: str, device: Device) -> Base:
    """The tiny SDXL of a checkpoint seed; the last two are kept."""
    family, weights = SdxlFamily(te2_projection), tiny_base(seed, te2_projection)
    targets = tuple(family.targets(weights))
    return Base(family, family.build(weights, device), targets)
