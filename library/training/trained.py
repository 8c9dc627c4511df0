"""What is trained: a set of named tensors, each with the block that reads it, a parameter group, a shape and a value.

There are two kinds: the adapters of a network, and whole weights of a model. Tensors of a block that are alike are
stacked, since that is how its program takes them. Nothing else in training knows which kind it deals with.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from mindspore import Tensor

from library.device.profile import Device
from library.graphs.block import Block
from library.graphs.program import AdapterEntry, BoundBlock, bind, slots_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Tensors that share settings of the optimizer."""

    name: str
    """As kohya names it in its logs: ``unet``, ``textencoder plus``, ``unet_block8``."""
    lr: float
    """Learning rate before the schedule."""
    weight_decay: float | None = None
    """None leaves it to the optimizer."""


GroupOf = Callable[[str], Group]
"""Name of a tensor -> its group."""


class TrainedTensor:
    """Trained tensors that are alike, one behind the other along their first axis; mostly one, or a stack of them.

    On a device whose memory is the host's, ``array`` is the value's own memory; of a single float32 array it is that of
    the array.
    """

    def __init__(self, names: tuple[str, ...], group: Group, arrays: Sequence[np.ndarray], is_turned: bool) -> None:
        self.names = names
        self.group = group
        self.shape: Shape = arrays[0].shape
        """Of one of them, as an optimizer sees it."""
        self.is_turned = is_turned
        """Whether it is held with its two axes exchanged."""
        arrays = [np.ascontiguousarray(array, np.float32) for array in arrays]
        self.array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        self.value = Tensor.from_numpy(self.array)

    @property
    def size(self) -> int:
        """Number of values."""
        return self.array.size

    def stacked_shape(self, shape: Shape) -> Shape:
        """Of arrays that hold something of this shape for each of the tensors."""
        return (len(self.names), *shape)

    def replace(self, value: Tensor) -> None:
        """Take another value, where it is not changed in its memory."""
        self.value = value

    def named(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> its part of something of the value's shape, in the shape that the tensor has in files; views."""
        parts = array.reshape(self.stacked_shape(self.shape))
        return {name: part.T if self.is_turned else part for name, part in zip(self.names, parts, strict=True)}


class TrainedBlock(NamedTuple):
    """What is trained in one block."""

    tensors: tuple[TrainedTensor, ...]
    """In the order in which its program gives their gradients."""
    adapters: tuple[AdapterEntry, ...] = ()
    weights: tuple[str, ...] = ()
    """Local names of weights."""


class Trained:
    """All that is trained.

    Args:
        blocks: by block, in the order of the forward pass.
        idle: names of tensors that were meant to be trained, but that no block reads.

    Raises:
        ValueError: nothing would be trained.
    """

    def __init__(self, blocks: Mapping[Block, TrainedBlock], idle: Iterable[str] = ()) -> None:
        self.blocks = blocks
        self.tensors = tuple(tensor for block in blocks.values() for tensor in block.tensors)
        self.idle = sorted(idle)
        if not self.tensors:
            raise ValueError("nothing would be trained: no block that runs has an adapter or a trained weight")

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order of the forward pass."""
        return tuple(dict.fromkeys(tensor.group for tensor in self.tensors))

    def named(self) -> dict[str, np.ndarray]:
        """Name -> value now; on a device whose memory is the host's these are views of it."""
        return self.by_name({tensor: tensor.value for tensor in self.tensors})

    def by_name(self, tensors: Mapping[TrainedTensor, Tensor]) -> dict[str, np.ndarray]:
        """Name -> its part of something that there is for each trained tensor, such as a gradient."""
        named: dict[str, np.ndarray] = {}
        for trained, tensor in tensors.items():
            named |= trained.named(tensor.asnumpy())
        return named

    def bind(
        self, weights: Mapping[str, Mapping[str, Tensor]], blocks: Iterable[Block], device: Device
    ) -> dict[Block, BoundBlock]:
        """Bind every block, those of which something is trained to that."""
        bound = {}
        for block in blocks:
            mine = self.blocks.get(block, TrainedBlock(()))
            bound[block] = bind(block, weights, device, mine.adapters, mine.weights, mine.tensors)
        return bound


# --- adapters ---------------------------------------------------------------------------------------------------------
class TrainedNetwork(Protocol):
    """What is needed of a network (networks.network_base.Network)."""

    layers: dict[str, Any]
    """Layer name -> its target (part, key) and adapter."""
    tensors: dict[str, np.ndarray]
    """Name -> float32 array."""


def trained_adapters(network: TrainedNetwork, blocks: Iterable[Block], group_of: GroupOf) -> Trained:
    """A network's adapters as what is trained. From now on the network's tensors are those that are trained.

    Args:
        network: the network. Adapters of layers that no block runs (the last layer of a text encoder whose last but
            one is read) get no gradient and are not trained.
        blocks: the blocks that the forward pass runs, in its order.
        group_of: each tensor's group.

    Raises:
        ValueError: no block that runs has an adapter.
    """
    by_key = {(layer.target.part, layer.target.key): name for name, layer in network.layers.items()}
    found = {}
    for block in blocks:
        if mine := _adapters_of(network, by_key, block, group_of):
            found[block] = mine
    used = {name for block in found.values() for tensor in block.tensors for name in tensor.names}
    trained = Trained(found, set(network.tensors) - used)
    network.tensors.update(trained.named())
    return trained


def _adapters_of(
    network: TrainedNetwork, by_key: Mapping[tuple[str, str], str], block: Block, group_of: GroupOf
) -> TrainedBlock | None:
    entries, layer_names = [], []
    numbers: dict[Group, int] = {}
    for name in block.names:
        local = name.removesuffix(".weight")
        layer_name = by_key.get((block.part, block.prefix + local)) if local != name else None
        if layer_name is None:
            continue
        adapter = network.layers[layer_name].adapter
        groups = (group_of(f"{layer_name}.{suffix}") for suffix in adapter.shapes())
        entries.append(AdapterEntry(local, adapter, tuple(numbers.setdefault(g, len(numbers)) for g in groups)))
        layer_names.append(layer_name)
    slots = slots_of(tuple(entries))
    tensors = []
    for likeness in dict.fromkeys(slot.likeness for slot in slots):
        names = tuple(f"{layer_names[s.adapter]}.{s.suffix}" for s in slots if s.likeness == likeness)
        tensors.append(TrainedTensor(names, group_of(names[0]), [network.tensors[name] for name in names], False))
    return TrainedBlock(tuple(tensors), tuple(entries)) if tensors else None


# --- whole weights ----------------------------------------------------------------------------------------------------
def trained_weights(
    weights: Mapping[str, dict[str, Tensor]],
    blocks: Iterable[Block],
    wanted: Callable[[str, str], bool],
    group_of: GroupOf,
) -> Trained:
    """Whole weights of a model as what is trained, in float32.

    Args:
        weights: part -> key -> tensor, as the model holds them.
        blocks: the blocks that the forward pass runs, in its order.
        wanted: (part, key) -> whether it is trained.
        group_of: group of ``part.key``.

    Raises:
        ValueError: no weight that a block reads is wanted.
    """
    found = {}
    for block in blocks:
        names = tuple(name for name in block.names if wanted(block.part, block.prefix + name))
        tensors = []
        for name in names:
            whole = f"{block.part}.{block.prefix}{name}"
            array = weights[block.part][block.prefix + name].asnumpy()
            is_turned = name.removesuffix(".weight") in block.transposed and name.endswith(".weight")
            tensors.append(TrainedTensor((whole,), group_of(whole), [array], is_turned))
        if names:
            found[block] = TrainedBlock(tuple(tensors), weights=names)
    return Trained(found)
