"""What is trained, as one flat float32 vector, or one for each learning rate (docs/decisions/0002, 0007).

Each adapted block owns one segment, segments follow the order of the forward pass. Optimizer state is a few vectors of
the same length; clipping is one norm.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from library.device.vectors import parts_of
from library.graphs.block import Block
from library.graphs.program import AdapterEntry, slots_of, stacks_of
from library.graphs.stacks import Stack


class TrainedNetwork(Protocol):
    """What is needed of a network (networks.network_base.Network)."""

    layers: dict[str, Any]
    """Layer name -> its target (part, key) and adapter."""
    tensors: dict[str, np.ndarray]
    """Key -> float32 array."""


@dataclass(frozen=True)
class Segment:
    """One block's part of the vector."""

    block: Block
    adapters: tuple[AdapterEntry, ...]
    keys: tuple[str, ...]
    """The network's key of each slot, in order."""
    shapes: tuple[tuple[int, ...], ...]
    stacks: tuple[Stack, ...]
    """What the block's program is given."""
    offset: int
    size: int


class Trainable:
    """The layout of the trained vector, and the way between it and a network's named tensors.

    Args:
        network: the network that is trained.
        blocks: the blocks that the forward pass runs, in its order. Adapters of layers that no block runs (the last
            layer of SDXL's first text encoder) get no gradient; they stay in the network and are not trained.
    """

    def __init__(self, network: TrainedNetwork, blocks: Sequence[Block]) -> None:
        by_key = {(layer.target.part, layer.target.key): name for name, layer in network.layers.items()}
        self.network = network
        self.segments: list[Segment] = []
        offset = 0
        for block in blocks:
            segment = _segment(network, by_key, block, offset)
            if segment is not None:
                self.segments.append(segment)
                offset += segment.size
        self.size = offset
        if not self.segments:
            raise ValueError("nothing would be trained: no block that runs has an adapter")
        trained = {key for segment in self.segments for key in segment.keys}
        self.idle = sorted(set(network.tensors) - trained)

    def pack(self) -> np.ndarray:
        """The network's tensors as one float32 vector."""
        return np.concatenate([self.network.tensors[key].ravel() for s in self.segments for key in s.keys])

    def unpack(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Network key -> its part of a vector (the parameters, a gradient, ...), in the tensor's shape."""
        named = {}
        for segment in self.segments:
            offset = segment.offset
            for key, shape in zip(segment.keys, segment.shapes, strict=True):
                size = int(np.prod(shape))
                named[key] = vector[offset : offset + size].reshape(shape)
                offset += size
        return named

    def store(self, vector: np.ndarray) -> None:
        """Write a parameter vector back into the network."""
        self.network.tensors.update({key: value.copy() for key, value in self.unpack(vector).items()})

    def split(self, *vectors: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """What each segment's block is given, of a vector or those that ``runs`` cut it into; see ``parts_of``."""
        starts = itertools.accumulate((vector.size for vector in vectors), initial=0)
        split: list[tuple[Tensor, ...]] = []
        for vector, start in zip(vectors, starts, strict=False):
            inside = [segment for segment in self.segments if start <= segment.offset < start + vector.size]
            parts = iter(parts_of(vector, [stack.whole_shape for segment in inside for stack in segment.stacks]))
            split += [tuple(itertools.islice(parts, len(segment.stacks))) for segment in inside]
        return tuple(split)

    def runs(self, value_of: Mapping[str, float]) -> list[tuple[int, float]]:
        """Length and ``value_of[part]`` of each run of segments for which that is the same."""
        kinds = itertools.groupby(self.segments, lambda segment: value_of[segment.block.part])
        return [(sum(segment.size for segment in run), value) for value, run in kinds]


def _segment(
    network: TrainedNetwork, by_key: Mapping[tuple[str, str], str], block: Block, offset: int
) -> Segment | None:
    adapters, layer_names = [], []
    for name in block.names:
        if not name.endswith(".weight"):
            continue
        local = name.removesuffix(".weight")
        layer_name = by_key.get((block.part, block.prefix + local))
        if layer_name is None:
            continue
        adapters.append((local, network.layers[layer_name].adapter))
        layer_names.append(layer_name)
    if not adapters:
        return None
    slots = slots_of(tuple(adapters))
    keys = tuple(f"{layer_names[slot.adapter]}.{slot.suffix}" for slot in slots)
    shapes = tuple(slot.shape for slot in slots)
    return Segment(block, tuple(adapters), keys, shapes, stacks_of(slots), offset, sum(map(math.prod, shapes)))
