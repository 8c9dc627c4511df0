"""LoRA: y + up(down(x)) * alpha / rank, beside linear layers and, with conv_dim, convolutions.

Key names, initial values, scale and dropouts are those of kohya's networks.lora.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from library.graphs import kernels
from library.graphs.layer_target import LayerTarget
from library.graphs.operations import at_least
from library.graphs.random import keep_mask, uniform
from library.graphs.values import Value
from networks.block_weights import BLOCK_ARGS, block_lr_weights, stage_lengths
from networks.network_base import (
    PLUS_ARGS,
    TEXT_PARTS,
    AdaptedLayer,
    Network,
    check_all_fit,
    create_layers,
    group_by_layer,
    init_tensors,
    plus_ratios,
)

DEFAULT_DIM = 4  # kohya's networks.lora
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
_SALTS_PER_LAYER = 3


@dataclass(frozen=True)
class LoRAAdapter:
    """A pair of low-rank matrices."""

    shape: tuple[int, ...]
    """Shape of the layer's weight: (out, in) or (out, in, k, k)."""
    rank: int
    alpha: float
    stride: int = 1
    padding: int = 0
    dropout: float = 0.0
    """Rate at which single values between down and up are dropped (network_dropout)."""
    rank_dropout: float = 0.0
    """Rate at which ranks are dropped, one draw per sample and rank."""
    module_dropout: float = 0.0
    """Rate at which the whole adapter is left out of a step."""

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Down has the layer's kernel, up is 1 x 1."""
        out = self.shape[0]
        up = (out, self.rank) + ((1, 1) if len(self.shape) == 4 else ())
        return {DOWN: (self.rank, *self.shape[1:]), UP: up}

    def plus(self) -> tuple[str, ...]:
        """Up."""
        return (UP,)

    def factors(self) -> dict[str, float]:
        """Up carries the scale of the product: one operation for all layers of a block, not one for each."""
        return {UP: self.scale}

    def constants(self) -> dict[str, float]:
        """The alpha that is saved beside the matrices."""
        return {ALPHA: self.alpha}

    def init(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Down uniform within 1 / sqrt(fan_in) (Kaiming with a = sqrt(5)), up zero."""
        shapes = self.shapes()
        bound = 1.0 / np.sqrt(np.prod(self.shape[1:]))
        down = generator.uniform(-bound, bound, shapes[DOWN]).astype(np.float32)
        return {DOWN: down, UP: np.zeros(shapes[UP], np.float32)}

    def delta(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """scale * up @ down, in the layer's shape."""
        up = tensors[UP].reshape(self.shape[0], self.rank)
        down = tensors[DOWN].reshape(self.rank, -1)
        return (np.float32(self.scale) * (up @ down)).reshape(self.shape)

    def without_dropout(self) -> "LoRAAdapter":
        """The same matrices with all three dropout rates zero."""
        return replace(self, dropout=0.0, rank_dropout=0.0, module_dropout=0.0)

    def apply(
        self, tensors: Mapping[str, Value], salt: int, weight: Value, x: Value, y: Value, key: Value, batch: int
    ) -> Value:
        """The layer's output with what the matrices add to it; ``tensors`` are already scaled."""
        down, up = tensors[DOWN].astype(x.dtype), tensors[UP].astype(x.dtype)
        if len(self.shape) == 4:
            h = kernels.conv2d(x, down, None, self.stride, self.padding)
            return y + kernels.conv2d(self._dropped(h, key, batch, salt), up, None, 1, 0)
        return y + kernels.dense(self._dropped(kernels.dense(x, down), key, batch, salt), up)

    def _dropped(self, h: Value, key: Value, batch: int, salt: int) -> Value:
        """The dropouts between down and up; masks depend on the key, so a recomputed block sees the same ones."""
        salt = salt * _SALTS_PER_LAYER
        if self.dropout > 0.0:
            mask = keep_mask(h.size // h.shape[-1], h.shape[-1], self.dropout, key, salt)
            h = h * mask.reshape(h.shape).astype(h.dtype)
        if self.rank_dropout > 0.0:
            mask = keep_mask(batch, self.rank, self.rank_dropout, key, salt + 1).astype(h.dtype)
            if len(self.shape) == 4:
                h = h * mask.reshape(batch, self.rank, 1, 1)
            else:
                h = (h.reshape(batch, -1, self.rank) * mask.reshape(batch, 1, self.rank)).reshape(h.shape)
        if self.module_dropout > 0.0:
            kept = at_least(uniform(1, 1, key, salt + 2), self.module_dropout)
            h = h * kept.astype(h.dtype).reshape(1)
        return h


def create_network(
    targets: Iterable[LayerTarget],
    *,
    network_dim: int | None,
    network_alpha: float | None,
    network_dropout: float | None,
    network_args: Mapping[str, str],
    generator_of: Callable[[str], np.random.Generator],
) -> Network:
    """A fresh LoRA network.

    Args:
        targets: the layers of the models that are trained.
        network_dim: rank; None means 4, as in kohya.
        network_alpha: None or 0 means the rank.
        network_dropout: rate of ``LoRAAdapter.dropout``.
        network_args: ``conv_dim``, ``conv_alpha``, ``rank_dropout``, ``module_dropout``, the LoRA+ ratios
            (``PLUS_ARGS``) and the learning rates' factors by block (``BLOCK_ARGS``), as typed.
        generator_of: layer name -> random generator of its initial values.

    Raises:
        ValueError: an argument that is unknown or not a number; names all of them.
    """
    rank = network_dim or DEFAULT_DIM
    alpha = float(network_alpha or rank)
    options = _parse_network_args(network_args)
    conv_rank = int(options.get("conv_dim", 0))
    conv_alpha = options.get("conv_alpha", 1.0) or float(conv_rank)
    rates = {
        "dropout": network_dropout or 0.0,
        "rank_dropout": options.get("rank_dropout", 0.0),
        "module_dropout": options.get("module_dropout", 0.0),
    }

    def make_adapter(target: LayerTarget) -> LoRAAdapter | None:
        if target.extended and not conv_rank:
            return None
        is_kxk = target.is_conv and target.shape[2] > 1
        return LoRAAdapter(
            target.shape,
            conv_rank if is_kxk else rank,
            conv_alpha if is_kxk else alpha,
            target.stride,
            target.padding,
            **rates,
        )

    targets = list(targets)
    lr_weights = block_lr_weights(network_args, stage_lengths(targets))

    def lr_weight_of(target: LayerTarget) -> float | None:
        if lr_weights is None or target.part in TEXT_PARTS:
            return None
        return lr_weights[target.stage][target.stage_index] if target.stage else 1.0

    layers = create_layers(targets, make_adapter, lr_weight_of)
    parts = {target.part for target in targets}
    return Network(layers, init_tensors(layers, generator_of), plus_ratios(options, parts))


def recognises(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a file's tensors are those of this kind of network."""
    return any(key.endswith("." + DOWN) for key in state)


def create_network_from_weights(
    targets: Iterable[LayerTarget], state: Mapping[str, np.ndarray], source: str
) -> Network:
    """A network with the ranks and alphas of a file, without dropouts.

    Args:
        targets: every layer that the base model offers.
        state: the file's tensors.
        source: the file's name, for messages.

    Raises:
        ValueError: layers that the base model does not have, other shapes, or keys of another network type.
    """
    targets = list(targets)
    check_all_fit(state, targets, source)
    grouped = group_by_layer(state)
    foreign = sorted(name for name, tensors in grouped.items() if DOWN not in tensors or UP not in tensors)
    if foreign:
        raise ValueError(
            f"{source}: {len(foreign)} layers have no {DOWN} and {UP} (first: {foreign[0]} with "
            f"{', '.join(sorted(grouped[foreign[0]]))}); it is not a networks.lora file"
        )

    def make_adapter(target: LayerTarget) -> LoRAAdapter | None:
        if target.name not in grouped:
            return None
        tensors = grouped[target.name]
        rank = tensors[DOWN].shape[0]
        alpha = float(tensors[ALPHA].item()) if ALPHA in tensors else float(rank)
        return LoRAAdapter(target.shape, rank, alpha, target.stride, target.padding)

    layers: dict[str, AdaptedLayer] = create_layers(targets, make_adapter)
    network = Network(layers, {})
    network.load(state, source)
    return network


_NUMBERS = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", *PLUS_ARGS)
_NETWORK_ARGS = (*_NUMBERS, *BLOCK_ARGS)


def _parse_network_args(network_args: Mapping[str, str]) -> dict[str, float]:
    """The arguments that are numbers."""
    problems, values = [], {}
    for name, text in network_args.items():
        if name not in _NETWORK_ARGS:
            problems.append(f"--network_args {name}={text}: networks.lora knows {', '.join(_NETWORK_ARGS)}")
        elif name in _NUMBERS:
            try:
                values[name] = float(text)
            except ValueError:
                problems.append(f"--network_args {name}={text}: not a number")
    if values.get("conv_dim", 1) < 1 or values.get("conv_dim", 1) != int(values.get("conv_dim", 1)):
        problems.append(f"--network_args conv_dim={network_args['conv_dim']}: must be a whole number of at least 1")
    for name in ("rank_dropout", "module_dropout"):
        if not 0.0 <= values.get(name, 0.0) < 1.0:
            problems.append(f"--network_args {name}={network_args[name]}: must be at least 0 and below 1")
    for name in PLUS_ARGS:
        if not 0.0 < values.get(name, 1.0) < float("inf"):
            problems.append(f"--network_args {name}={network_args[name]}: must be above 0")
    if problems:
        raise ValueError("\n".join(problems))
    return values
