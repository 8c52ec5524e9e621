"""Means over a narrowed axis: sums whose every use is a division by the old width.

By default `shrink` adds the share of the removed channels to such a sum and divides by
the old width, as the masked model does. With ``mean_width="new"`` it takes the mean of
the channels that stay.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal

from jaxprune.jaxpr import fold
from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Body, Step, shape_of

# A sum may pass through these before it is divided: its numbers do not change.
_PASSING = {
    *"broadcast_in_dim convert_element_type copy expand_dims reduce_precision".split(),
    *"reshape sharding_constraint squeeze transpose".split(),
}


def find_means(body: Body, args: Sequence[Any], kept: Any) -> dict[int, float]:
    """Finds means over narrowed axes; ``kept(labels)`` tells which positions stay.

    Returns the new width of every sum, and the new divisor of every division of such a
    sum, by the ids of their steps.
    """
    made = {out: step for step in body.steps for out in step.eqn.outvars}
    uses: dict[Any, list[Step]] = {}
    for step in body.steps:
        for atom in step.eqn.invars:
            if not isinstance(atom, Literal):
                uses.setdefault(atom, []).append(step)
    given = dict(zip(body.jaxpr.invars, args, strict=True))
    outputs = {atom for atom in body.jaxpr.outvars if not isinstance(atom, Literal)}

    found: dict[int, float] = {}
    for step in body.steps:
        if step.eqn.primitive.name != "reduce_sum":
            continue
        old, new = _widths(step.inputs[0], step.eqn.params["axes"], kept)
        if old == new:
            continue
        divisions = _divisions(step.eqn.outvars[0], uses, outputs)
        lost = [old - _number(d.eqn.invars[1], made, given) for d in divisions]
        if divisions and all(lacking in (0, 1) for lacking in lost):  # 1: Bessel's.
            found[id(step)] = float(new)
            for division, lacking in zip(divisions, lost, strict=True):
                found[id(division)] = new - lacking
    return found


def _widths(
    value: Value, axes: Sequence[int | np.integer], kept: Any
) -> tuple[int, int]:
    rows = [value.labels[axis] for axis in axes]
    old, new = 1, 1
    for row in rows:
        old, new = old * len(row), new * int(kept(row).sum())
    return old, new


def _divisions(total: Any, uses: dict[Any, list[Step]], outputs: set) -> list[Step]:
    """The divisions that a sum ends in; none if it has any other use."""
    found, waiting = [], [total]
    while waiting:
        atom = waiting.pop()
        if atom in outputs:
            return []
        for step in uses.get(atom, []):
            name, (first, *_) = step.eqn.primitive.name, step.eqn.invars
            if name in _PASSING:
                waiting.append(step.eqn.outvars[0])
            elif name == "div" and first is atom:
                found.append(step)
            else:
                return []
    return found


def _number(atom: Any, made: dict[Any, Step], given: dict[Any, Any]) -> float:
    """A scalar that is known while tracing; NaN if it is not."""
    if shape_of(atom):
        return np.nan
    if isinstance(atom, Literal) or atom in given:
        value = atom.val if isinstance(atom, Literal) else given[atom]
        return np.nan if isinstance(value, Tracer) else float(value)
    step = made.get(atom)
    if step is None or any(map(shape_of, step.eqn.invars)):
        return np.nan
    numbers = [_number(a, made, given) for a in step.eqn.invars]
    known = numbers and all(number == number for number in numbers)
    found = fold(step.eqn, numbers) if known else None
    return np.nan if found is None else float(found)
