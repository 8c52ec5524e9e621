"""Labels of positions: which positions of which dimensions are removed together.

Every position along every dimension carries a label, a whole number. Moving data moves
its labels; combining data joins labels in a union-find. A class of labels with a reason
is frozen: its positions are never removed.
"""

from collections.abc import Iterable
from enum import Enum
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

ONE = np.zeros(1, np.int64)  # The label of every dimension of size one: frozen.


class Fill(Enum):
    """How much is known about the removed positions of an axis.

    A number in place of a `Fill` says even more: all of them hold this number.
    """

    UNKNOWN = 0
    KNOWN = 1  # Computed from zeros and constants: the replay can tell what they hold.
    EVEN = 2  # And all of them hold the same number.

    def __lt__(self, other: "Fill") -> bool:
        """Orders by how much is known."""
        return self.value < other.value


class Value(NamedTuple):
    """What the trace knows about an array in the masked model.

    Attributes:
      labels: for every dimension, the label of each position along it.
      fills: for every dimension, what its removed positions hold: a `Fill` or a number.
      weight: whether it depends on parameters and constants only, on no input.
      constant: whether it depends on constants only.
      number: the number that it holds everywhere, or None.
    """

    labels: tuple[np.ndarray, ...]
    fills: tuple[Any, ...]
    weight: bool = False
    constant: bool = False
    number: Any = None

    def fill(self, axis: SupportsIndex) -> Any:
        """What the removed positions of an axis hold; a scalar is broadcast."""
        if self.number is not None:
            return self.number
        if index(axis) >= len(self.labels) or len(self.labels[axis]) == 1:
            return Fill.EVEN
        return self.fills[axis]

    def zero(self, axis: SupportsIndex) -> bool:
        """Tells whether the removed positions of an axis hold 0."""
        return is_zero(self.fill(axis))


def is_zero(fill: Any) -> bool:
    """Tells whether a fill is the number 0."""
    return not isinstance(fill, Fill) and bool(fill == 0)


def known(fill: Any) -> Fill:
    """The `Fill` of a result that depends on its operand in any way."""
    return fill if isinstance(fill, Fill) else Fill.EVEN


def closed(value: Value) -> Value:
    """Forgets all but numbers: the replay does not look beyond a loop or a branch."""
    fills = tuple(Fill.UNKNOWN if isinstance(f, Fill) else f for f in value.fills)
    return value._replace(fills=fills, constant=False)


def either(fills: Iterable[Any]) -> Any:
    """The fill of entries each of which comes from one of several arrays."""
    fills = list(fills)
    first = fills[0]
    if all(not isinstance(f, Fill) and bool(f == first) for f in fills):
        return first
    return min(map(known, fills))


def same_number(numbers: Iterable[Any]) -> Any:
    """The number that all of several arrays hold, or None."""
    numbers = list(numbers)
    known_ = all(n is not None and bool(n == numbers[0]) for n in numbers)
    return numbers[0] if known_ else None


class Labels:
    """A union-find over labels, vectorised; the least label of a class is its root."""

    def __init__(self) -> None:
        """Starts with label 0, which belongs to all dimensions of size one."""
        self._parent = np.zeros(1, np.int64)
        self._reason = np.ones(1, np.int64)
        self._size = 1
        self._reasons = ["", "its size is 1"]

    def fresh(self, size: int) -> np.ndarray:
        """Makes one new label per position."""
        return self._new(size) if size != 1 else ONE

    def _new(self, size: int) -> np.ndarray:
        start, self._size = self._size, self._size + size
        if self._size > len(self._parent):
            room = 2 * self._size
            old = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(old, room)])
            self._reason = np.concatenate(
                [self._reason, np.zeros(room - old, np.int64)]
            )
        return np.arange(start, self._size)

    def frozen(self, size: int, reason: str) -> np.ndarray:
        """Makes one new label, frozen from the start, for all positions."""
        if size == 1:
            return ONE
        label = self._new(1)
        self.freeze(label, reason)
        return np.broadcast_to(label, (size,))

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Looks up the roots of labels."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def roots(self) -> np.ndarray:
        """The roots of all labels."""
        return self.find(np.arange(self._size))

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins two rows of labels; a row of size one is broadcast, so ignored."""
        if left is right or len(left) == 1 or len(right) == 1:
            return
        while True:
            a, b = self.find(left), self.find(right)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low
            np.maximum.at(self._reason, low, self._reason[high])

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Freezes the classes of labels; a class keeps its first reason."""
        roots = np.unique(self.find(labels))
        roots = roots[self._reason[roots] == 0]
        if len(roots):
            self._reason[roots] = len(self._reasons)
            self._reasons.append(reason)

    def is_frozen(self, labels: np.ndarray) -> np.ndarray:
        """Tells for every label whether its class is frozen."""
        return self._reason[self.find(labels)] > 0

    def reason(self, label: Any) -> str:
        """Returns why a label is frozen, or an empty string if it is not."""
        return self._reasons[self._reason[self.find(np.atleast_1d(label))][0]]
