"""What an optimizer is here: a rule that says how one tensor changes, and the table of all rules.

A new optimizer is one class in one file of this folder, marked ``@optimizer("Name")``.
"""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import library.training.optimizers as folder

Shape = tuple[int, ...]
Array = Any
"""A NumPy array, or a tensor that is still to be computed (library.graphs.values.Value): rules use operators, and the
functions of ``Maths``."""


class Maths(Protocol):
    """What a rule may compute with beside +, -, * and /; axes are kept."""

    def sqrt(self, x: Array) -> Array:
        """Square root of each value."""
        ...

    def sign(self, x: Array) -> Array:
        """-1, 0 or 1."""
        ...

    def maximum(self, x: Array, least: Array) -> Array:
        """The larger of two numbers, each of x with a number or a value of the same shape."""
        ...

    def mean(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Mean over axes, which become 1."""
        ...


@dataclass(frozen=True)
class Moment:
    """When an update happens."""

    step: int
    """From 1."""
    lr: float
    """Learning rate of the tensor's group, with the schedule's factor."""
    weight_decay: float | None
    """The group's own; None leaves it to the rule."""


class Rule(Protocol):
    """How a tensor changes. A frozen dataclass; its fields are what ``--optimizer_args`` may set.

    Tensors that are alike are updated together: every array has one axis more than the tensor, the first, which counts
    them.
    """

    elementwise: ClassVar[bool]
    """Whether each value changes by its own gradient and state alone; such tensors may be cut as is convenient."""

    def describe(self) -> str:
        """As kohya writes it to ss_optimizer."""
        ...

    def state_shapes(self, shape: Shape) -> Mapping[str, Shape]:
        """Name -> shape of what is remembered of a tensor; zero at first."""
        ...

    def numbers(self, now: Moment) -> Mapping[str, float]:
        """What of an update is the same for all values."""
        ...

    def update(
        self, maths: Maths, value: Array, grad: Array, state: Mapping[str, Array], n: Mapping[str, Any]
    ) -> tuple[Array, Mapping[str, Array]]:
        """New value and state. Nothing is changed in place.

        Args:
            maths: functions for the kind of array.
            value: float32 [count, *shape].
            grad: its gradient, scaled and clipped.
            state: by the names of ``state_shapes``, each with the axis that counts in front.
            n: what ``numbers`` gave.
        """
        ...


def state_bytes(rule: Rule, shape: Shape) -> int:
    """Bytes that a rule remembers of a tensor of this shape (float32)."""
    return 4 * sum(map(math.prod, rule.state_shapes(shape).values()))


_RULES: dict[str, type] = {}


def optimizer(*names: str) -> Callable[[type], type]:
    """Marks a rule's class with the names that ``--optimizer_type`` knows it by; capitals do not matter."""

    def mark(cls: type) -> type:
        _RULES.update(dict.fromkeys(names, cls))
        return cls

    return mark


def all_rules() -> Mapping[str, type]:
    """Name -> class of every optimizer in this folder."""
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    return MappingProxyType(_RULES)


def make_rule(optimizer_type: str, optimizer_args: Mapping[str, object]) -> Rule:
    """The rule that ``--optimizer_type`` and ``--optimizer_args`` ask for; no name means AdamW, as in kohya.

    Raises:
        ValueError: an optimizer that is not built, an argument that it does not have, or a value that it cannot take.
    """
    rules = all_rules()
    asked = optimizer_type.lower() or "adamw"
    cls = next((cls for name, cls in rules.items() if name.lower() == asked), None)
    if cls is None:
        raise ValueError(f"--optimizer_type {optimizer_type}: not built yet; use {', '.join(sorted(rules))}")
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(optimizer_args) - set(known))
    if unknown:
        raise ValueError(
            f"--optimizer_args {', '.join(unknown)}: not an argument of {optimizer_type or 'AdamW'}, "
            f"which has {', '.join(known)}"
        )
    rule: Rule = cls(**optimizer_args)
    return rule


def refuse_wrong(*checks: tuple[bool, str]) -> None:
    """Complain about settings of a rule.

    Args:
        checks: (whether it is wrong, the setting with what it must be).

    Raises:
        ValueError: lists those that are wrong.
    """
    wrong = [text for is_wrong, text in checks if is_wrong]
    if wrong:
        raise ValueError("--optimizer_args " + "; ".join(wrong))
