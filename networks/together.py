"""Several networks of any types beside one model, each at its own strength."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from library.graphs.layer_target import LayerTarget
from library.graphs.values import Value
from networks.network_base import AdaptedLayer, Adapter, Network


@dataclass(frozen=True)
class Together:
    """Several adapters of one layer, each at a strength; it is for running, not for training."""

    members: tuple[tuple[Adapter, float], ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the members, each behind its number."""
        return {f"{i}.{s}": shape for i, (each, _) in enumerate(self.members) for s, shape in each.shapes().items()}

    def plus(self) -> tuple[str, ...]:
        """None."""
        return ()

    def factors(self) -> dict[str, float]:
        """Those of the members."""
        return {f"{i}.{s}": factor for i, (each, _) in enumerate(self.members) for s, factor in each.factors().items()}

    def constants(self) -> dict[str, float]:
        """None: it is not saved."""
        return {}

    def init(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Those of the members."""
        return {f"{i}.{s}": x for i, (each, _) in enumerate(self.members) for s, x in each.init(generator).items()}

    def apply(
        self, tensors: Mapping[str, Value], salt: int, weight: Value, x: Value, y: Value, key: Value, batch: int
    ) -> Value:
        """What each makes of the layer's own output, less that output, times its strength, is added to it."""
        total = y
        for i, (adapter, strength) in enumerate(self.members):
            own = {suffix: tensors[f"{i}.{suffix}"] for suffix in adapter.shapes()}
            total = total + (adapter.apply(own, salt, weight, x, y, key, batch) - y) * strength
        return total

    def delta(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The members' sum."""
        own = [{s: tensors[f"{i}.{s}"] for s in each.shapes()} for i, (each, _) in enumerate(self.members)]
        deltas = (np.float32(m) * each.delta(part) for (each, m), part in zip(self.members, own, strict=True))
        return sum(deltas, np.zeros((), np.float32))

    def without_dropout(self) -> "Together":
        """All without."""
        return Together(tuple((each.without_dropout(), strength) for each, strength in self.members))


def combine(networks: Iterable[tuple[Network, float]]) -> Network:
    """One network that does what several do together, each at its own strength; without dropouts."""
    members: dict[str, list[tuple[Adapter, float]]] = {}
    targets: dict[str, LayerTarget] = {}
    tensors: dict[str, np.ndarray] = {}
    for network, strength in networks:
        for name, layer in network.layers.items():
            mine = members.setdefault(name, [])
            tensors |= {f"{name}.{len(mine)}.{s}": x for s, x in network.layer_tensors(name).items()}
            mine.append((layer.adapter.without_dropout(), strength))
            targets[name] = layer.target
    return Network({n: AdaptedLayer(targets[n], Together(tuple(mine))) for n, mine in members.items()}, tensors)
