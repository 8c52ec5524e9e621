"""Analyzes a function: traces it, and follows labels from parameters to outputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Body, Trace
from jaxprune.structured.rules import RULES


def trace_function(
    fn: Callable[..., Any], params: Any, inputs: Sequence[Any]
) -> tuple[Trace, Body, Any]:
    """Traces ``fn(params, *inputs)`` and follows labels from parameters to outputs."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
    choices: dict[int, int] = {}
    trace, body = _follow(closed, out, params, inputs, choices)
    splits = trace.splits
    stuck = [n for n in splits if trace.labels.is_frozen(splits[n][0]).all()]
    for tried in [stuck, *([n] for n in stuck)] if stuck else []:
        for pick in range(1, max(splits[n][1] for n in tried)):
            picks = {**choices, **dict.fromkeys(tried, pick)}
            other, found = _follow(closed, out, params, inputs, picks)
            if _freedom(other) > _freedom(trace):
                trace, body, choices = other, found, picks
    return trace, body, jax.tree.structure(out)


def _freedom(trace: Trace) -> int:
    """Counts the positions of parameters that may be removed."""
    return int((~trace.labels.is_frozen(np.arange(1, trace.owned))).sum())


def _follow(
    closed: Any,
    out: Any,
    params: Any,
    inputs: Sequence[Any],
    choices: dict[int, int],
) -> tuple[Trace, Body]:
    """Follows labels from parameters to outputs, with the splits decided."""
    paths, leaves = _checks.leaf_paths(params), jax.tree.leaves(params)
    trace = Trace([np.shape(leaf) for leaf in leaves], RULES, choices)
    names = _checks.leaf_paths(tuple(inputs))
    given = [
        trace.frozen(np.shape(leaf), f"meets input {name}")
        for name, leaf in zip(names, jax.tree.leaves(inputs), strict=True)
    ]
    body = trace.walk(closed, [*trace.parameters(), *given])
    for path, value in zip(_checks.leaf_paths(out), body.outputs, strict=True):
        if not _carries_parameter(trace, path, value, paths):
            for axis, labels in enumerate(value.labels):
                trace.labels.freeze(labels, f"reaches output {path}, axis {axis}")
    trace.separate()
    return trace, body


def _carries_parameter(trace: Trace, path: str, value: Value, paths: list[str]) -> bool:
    """Tells whether an output is the new value of a parameter: same names and labels.

    The last two names of the paths must agree, or the last one if either has only one.
    Numbers are indices into sequences, not names; a bare array has no name.
    """
    theirs = _names(path)
    for name, axes in zip(paths, trace.axes, strict=True):
        ours = _names(name)
        last = min(len(ours), len(theirs), 2)
        named = last > 0 and ours[-last:] == theirs[-last:]
        if named and len(axes) == len(value.labels) and axes:
            same = [
                len(a) == len(b)
                and np.array_equal(trace.labels.find(a), trace.labels.find(b))
                for a, b in zip(axes, value.labels, strict=True)
            ]
            if all(same):
                return True
    return False


def _names(path: str) -> list[str]:
    return [p for p in path.split("/") if p != "(root)" and not p.isdigit()]
