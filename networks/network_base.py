"""What all network types share: adapters beside the layers of a base model, kohya's files, merging.

A network is data: for each adapted layer an ``Adapter`` (what it computes) and its tensors (float32 NumPy arrays under
kohya's keys). It never touches the base model; taking it away is not passing it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from library.graphs.layer_target import LayerTarget
from library.graphs.values import Value

Tensors = dict[str, np.ndarray]
MAX_LISTED = 8
PREFIX = "lora_"
"""What all keys in kohya's files begin with."""
PLUS_ARGS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
"""Network arguments: LoRA+ ratio of all, of the UNet, of the text encoders; the special one wins."""
TEXT_PARTS = ("te", "te1", "te2")
"""Names that parts have that are text encoders."""


class Adapter(Protocol):
    """What is put beside one layer. Equal adapters compare equal, so that equal blocks share one compiled program."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Suffix -> shape of what is trained: ``lora_down.weight`` -> (rank, in)."""
        ...

    def plus(self) -> tuple[str, ...]:
        """Suffixes of the tensors whose learning rate LoRA+ multiplies (https://arxiv.org/abs/2402.12354)."""
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

    def apply(
        self, tensors: Mapping[str, Value], salt: int, weight: Value, x: Value, y: Value, key: Value, batch: int
    ) -> Value:
        """Adapted output of the layer; run when a block is traced.

        Args:
            tensors: suffix -> tensor, times its factor.
            salt: tells this layer's random numbers from those of the block's other layers.
            weight: the layer's own, in the shape that it has in files; it gets no gradient.
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
    lr_weight: float | None = None
    """Factor on the learning rate of the layer's block, which is then a parameter group; None: it has none of its
    own."""


@dataclass
class Network:
    """Adapters for a set of layers, and the tensors of all of them."""

    layers: dict[str, AdaptedLayer]
    """Layer name in kohya's files (``lora_unet_...``) -> layer; in kohya's order of creation."""
    tensors: Tensors
    """Key in kohya's files -> float32 array; what is trained only (``alpha`` is the adapter's constant)."""
    plus_ratios: Mapping[str, float] = field(default_factory=dict)
    """Part -> LoRA+ ratio, where there is one."""

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
        layers = {n: replace(layer, adapter=layer.adapter.without_dropout()) for n, layer in self.layers.items()}
        return replace(self, layers=layers)


def unmerge(weights: Mapping[str, dict[str, np.ndarray]], originals: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Undo ``Network.merge_into(..., keep_originals=True)``."""
    for part, replaced in originals.items():
        weights[part].update(replaced)


def create_layers(
    targets: Iterable[LayerTarget],
    make_adapter: Callable[[LayerTarget], Adapter | None],
    lr_weight_of: Callable[[LayerTarget], float | None] = lambda target: None,
) -> dict[str, AdaptedLayer]:
    """Put an adapter beside each target for which ``make_adapter`` returns one.

    ``lr_weight_of``: see ``AdaptedLayer.lr_weight``; a layer whose weight is 0 is left out.

    Raises:
        ValueError: no layer at all would be adapted.
    """
    layers = {}
    for target in targets:
        adapter, lr_weight = make_adapter(target), lr_weight_of(target)
        if adapter is not None and lr_weight != 0:
            layers[target.name] = AdaptedLayer(target, adapter, lr_weight)
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


def plus_ratios(options: Mapping[str, float], parts: Iterable[str]) -> dict[str, float]:
    """Part -> LoRA+ ratio by the arguments of ``PLUS_ARGS``, where there is one."""
    everywhere, unet, text = (options.get(name) for name in PLUS_ARGS)
    ratios = {part: (text if part in TEXT_PARTS else unet) or everywhere for part in parts}
    return {part: ratio for part, ratio in ratios.items() if ratio}


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
