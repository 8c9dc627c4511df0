"""What every kind of replay needs: how to run, and the recordings' base model on the device."""

import functools
from dataclasses import dataclass

from library.families.sdxl.family import SdxlFamily, SdxlModel, build_model
from library.graphs.layer_target import LayerTarget
from tools.tiny_source import tiny_base


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """How to run a recording, where it is not the recording that says so."""

    jit: bool | None = None
    """Compile blocks; None leaves it to the recording's command line (which compiles unless it says --jit off)."""

    @property
    def compiled(self) -> bool:
        """Whether blocks are compiled where there is no command line."""
        return self.jit is not False


@dataclass(frozen=True)
class Base:
    """A base model on the device, and the layers that networks may adapt."""

    model: SdxlModel
    targets: tuple[LayerTarget, ...]


@functools.lru_cache(maxsize=2)
def base_model(seed: int, te2_projection: str, compiled: bool) -> Base:
    """The tiny SDXL of a checkpoint seed; the last two are kept."""
    weights = tiny_base(seed, te2_projection)
    targets = tuple(SdxlFamily().lora_targets(weights))
    return Base(build_model(weights, compiled=compiled), targets)
