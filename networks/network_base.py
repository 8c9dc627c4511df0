"""What all network types share: adapters beside the layers of a base model, kohya's files, merging.

A network is data: for each adapted layer an ``Adapter`` (what it computes) and its tensors (float32 NumPy arrays under
kohya's keys). It never touches the base model; taking it away is not passing it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from library.device.mindspore_ckpt import load_ckpt
from library.files.safetensors_utils import SafetensorsFile
from library.graphs.layer_target import LayerTarget
from library.graphs.values import Value

Tensors = dict[str, np.ndarray]
MAX_LISTED = 8


class Adapter(Protocol):
    """What is put beside one layer. Equal adapters compare equal, so that equal blocks share one compiled program."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape of what is trained: ``lora_down.weight`` -> (rank, in)."""
        ...

    def factors(self) -> dict[str, float]:
        """Suffix -> what a tensor is multiplied by before ``apply`` is given it, where that is not 1."""
        ...

    def constants(self) -> dict[str, float]:
        """Suffix -> value of what is saved but not trained: ``alpha``."""
        ...

    def init(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values of what is trained; the adapted layer computes what the base does."""
        ...

    def apply(self, tensors: Mapping[str, Value], salt: int, x: Value, y: Value, key: Value, batch: int) -> Value:
        """Adapted output of the layer; run when a block is traced.

        Args:
            tensors: suffix -> tensor, times its factor.
            salt: tells this layer's random numbers from those of the block's other layers.
            x: the layer's input; rows [R, in] of a linear layer, [B, C, H, W] of a convolution.
            y: its output without the adapter.
            key: random key of the call.
            batch: number of samples that the rows are of.
        """
        ...

    def delta(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the adapter adds to the layer's weight at multiplier 1, float32, in the weight's shape."""
        ...

    def without_dropout(self) -> "Adapter":
        """The same adapter as it computes outside training."""
        ...


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer of the base model with its adapter."""

    target: LayerTarget
    adapter: Adapter


@dataclass
class Network:
    """Adapters for a set of layers, and the tensors of all of them."""

    layers: dict[str, AdaptedLayer]
    """Layer name in kohya's files (``lora_unet_...``) -> layer; in kohya's order of creation."""
    tensors: Tensors
    """Key in kohya's files -> float32 array; what is trained only (``alpha`` is the adapter's constant)."""

    def state_dict(self) -> Tensors:
        """All that is saved: the tensors and each adapter's constants as float32 scalars."""
        state = dict(self.tensors)
        for name, layer in self.layers.items():
            for suffix, value in layer.adapter.constants().items():
                state[f"{name}.{suffix}"] = np.asarray(value, np.float32)
        return state

    def layer_tensors(self, name: str) -> Tensors:
        """Suffix -> tensor of one layer."""
        return {suffix: self.tensors[f"{name}.{suffix}"] for suffix in self.layers[name].adapter.shapes()}

    def count(self, part: str) -> int:
        """Number of adapted layers in one part (``unet``, ``te1``, ``te2``)."""
        return sum(layer.target.part == part for layer in self.layers.values())

    def load(self, state: Mapping[str, np.ndarray], source: str) -> None:
        """Replace all tensors by those of a file; nothing is changed if anything does not fit.

        Args:
            state: a file's tensors.
            source: the file's name, for the message.

        Raises:
            ValueError: keys that are missing, that fit no layer, or of another shape; with counts and examples.
        """
        expected = {
            f"{n}.{s}": shape for n, layer in self.layers.items() for s, shape in layer.adapter.shapes().items()
        }
        known = set(expected) | {f"{n}.{s}" for n, layer in self.layers.items() for s in layer.adapter.constants()}
        problems = _differences(
            source,
            missing=[key for key in expected if key not in state],
            extra=[key for key in state if key not in known],
            misshapen=[
                f"{key} is {tuple(state[key].shape)}, this network needs {shape}"
                for key, shape in expected.items()
                if key in state and tuple(state[key].shape) != shape
            ],
        )
        if problems:
            raise ValueError("\n".join(problems))
        self.tensors = {key: np.ascontiguousarray(state[key], np.float32) for key in expected}

    def merge_into(
        self, weights: Mapping[str, dict[str, np.ndarray]], multiplier: float, keep_originals: bool = False
    ) -> dict[str, dict[str, np.ndarray]]:
        """Add the adapters to the base weights: W + multiplier * delta.

        Args:
            weights: part -> (key with ``.weight`` -> array); the entries of adapted layers are replaced by new arrays.
            multiplier: strength.
            keep_originals: return what was replaced; ``unmerge`` puts it back bit for bit.

        Returns:
            part -> replaced entries (empty unless ``keep_originals``).
        """
        originals: dict[str, dict[str, np.ndarray]] = {part: {} for part in weights}
        for name, layer in self.layers.items():
            part, key = weights[layer.target.part], layer.target.key + ".weight"
            if keep_originals:
                originals[layer.target.part][key] = part[key]
            delta = layer.adapter.delta(self.layer_tensors(name))
            part[key] = (part[key].astype(np.float32) + np.float32(multiplier) * delta).astype(part[key].dtype)
        return originals

    def eval(self) -> "Network":
        """The same network without dropouts, for sampling; shares the tensors."""
        layers = {n: AdaptedLayer(layer.target, layer.adapter.without_dropout()) for n, layer in self.layers.items()}
        return Network(layers, self.tensors)


def unmerge(weights: Mapping[str, dict[str, np.ndarray]], originals: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Undo ``Network.merge_into(..., keep_originals=True)``."""
    for part, replaced in originals.items():
        weights[part].update(replaced)


def create_layers(
    targets: Iterable[LayerTarget], make_adapter: Callable[[LayerTarget], Adapter | None]
) -> dict[str, AdaptedLayer]:
    """Put an adapter beside each target for which ``make_adapter`` returns one.

    Raises:
        ValueError: no layer at all would be adapted.
    """
    layers = {}
    for target in targets:
        adapter = make_adapter(target)
        if adapter is not None:
            layers[target.name] = AdaptedLayer(target, adapter)
    if not layers:
        raise ValueError("the network would adapt no layer: check the network arguments and which models are trained")
    return layers


def init_tensors(layers: Mapping[str, AdaptedLayer], generator_of: Callable[[str], np.random.Generator]) -> Tensors:
    """First values of all adapters; ``generator_of(name)`` makes a layer's values independent of the others."""
    tensors = {}
    for name, layer in layers.items():
        for suffix, value in layer.adapter.init(generator_of(name)).items():
            tensors[f"{name}.{suffix}"] = value
    return tensors


def read_network_file(path: Path) -> Tensors:
    """All tensors of a network's file in float32: safetensors, or MindSpore's .ckpt.

    Raises:
        ValueError: no such file, one that is not whole, or one with none of a network's keys.
    """
    if not path.is_file():
        raise ValueError(f"no such network file: {path}")
    if path.suffix == ".ckpt":
        state = load_ckpt(path)[0]
    else:
        with SafetensorsFile(path) as file:
            state = {key: file.read(key, np.float32) for key in file}
    if not any(key.startswith("lora_") for key in state):
        raise ValueError(
            f"{path}: none of its {len(state)} keys begins with lora_ (it has {', '.join(sorted(state)[:3])}, ...); "
            "give a LoRA file as kohya's trainers write it"
        )
    return state


def group_by_layer(state: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    """Layer name -> (suffix -> tensor)."""
    grouped: dict[str, Tensors] = {}
    for key, value in state.items():
        name, _, suffix = key.partition(".")
        grouped.setdefault(name, {})[suffix] = value
    return grouped


def check_all_fit(state: Mapping[str, np.ndarray], targets: Iterable[LayerTarget], source: str) -> None:
    """Every layer of a file must be a layer of the base model.

    Raises:
        ValueError: says how many do not fit, and names some.
    """
    known = {target.name for target in targets}
    names = sorted(group_by_layer(state))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{source}: {len(unknown)} of its {len(names)} layers are not in this base model: {_listed(unknown)}. "
            "Is it a LoRA for another base (SD1.5, Flux)?"
        )


def _differences(source: str, missing: list[str], extra: list[str], misshapen: list[str]) -> list[str]:
    problems = []
    if missing:
        problems.append(f"{source}: {len(missing)} keys of this network are missing: {_listed(missing)}")
    if extra:
        problems.append(f"{source}: {len(extra)} keys fit no layer of this network: {_listed(extra)}")
    if misshapen:
        problems.append(f"{source}: {len(misshapen)} keys have another shape: {_listed(misshapen)}")
    return problems


def _listed(items: list[str]) -> str:
    more = f", ... and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
