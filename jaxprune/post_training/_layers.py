"""Prunes every layer of a function from one pass over the data, with any method.

A method is a `Rule`: a statistic of a layer's inputs, and a solver for one matrix.
"""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Mask, Params, Prunable
from jaxprune.core import _checks, _uint64
from jaxprune.core._placement import all_true, replicate, shard_like
from jaxprune.core._prunable import select_prunable
from jaxprune.masks._threshold import apply_mask
from jaxprune.post_training._capture import Capture, Layout, Measure


class Matrix(NamedTuple):
    """One layer to prune: arrays of shape (outputs, inputs).

    ``allowed`` is False for weights that are already 0. ``start`` is a mask to refine.
    """

    weights: jax.Array
    allowed: jax.Array
    start: jax.Array


class Rule(NamedTuple):
    """How a method prunes one matrix.

    Each function is compiled once per shape: equal rules must be the same objects.
    """

    measure: Measure
    """The statistic of the inputs. Only its sum over the batches is kept."""
    prepare: Callable[[jax.Array], Any]
    """Converts the sum for the solver. Layers with the same inputs share the result."""
    solve: Callable[..., tuple[jax.Array, jax.Array]]
    """``solve(matrix, prepared, keep, n_m) -> (weights, mask)``, float32 and bool."""
    counts: Callable[[float, int, int], Sequence[int]]
    """``counts(sparsity, outputs, inputs)``: how many weights to keep, for ``keep``."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layers:
    """The leaves that are in products, in the order of first use."""

    leaves: tuple[int, ...]
    layouts: tuple[Layout, ...]
    slots: tuple[int, ...]
    """The index of each leaf's statistic. Leaves with the same inputs share one."""

    def each(self) -> Iterator[tuple[int, Layout, int]]:
        """Iterates over leaf, layout and slot."""
        return zip(self.leaves, self.layouts, self.slots, strict=True)


def prune_layers(
    rule: Rule,
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    sparsity: Any = None,
    n_m: tuple[int, int] | None = None,
    prior: Mask | None = None,
    prunable: Prunable | None = None,
    start: Mask | None = None,
) -> tuple[Params, Mask]:
    """Prunes every prunable leaf with a rule, from one pass over the batches.

    Weights that ``prior`` prunes or that are already 0 stay 0 and count as removed.
    """
    _checks.check_floating(params, "params")
    if prior is not None:
        _checks.check_mask(prior, params, "prior")
        params = apply_mask(params, prior)
    _checks.check_no_nans(params, "params")
    sparsities, n_m = check_amount(params, sparsity, n_m)
    layers, totals = layer_statistics(
        fn, params, batches, rule.measure, prunable, n_m=n_m, warn=start is None
    )
    paths = _checks.leaf_paths(params)
    leaves, structure = jax.tree.flatten(params)
    masks = [all_true(leaf) for leaf in leaves]
    begun = masks if start is None else jax.tree.leaves(start)
    masks = masks if prior is None else jax.tree.leaves(prior)
    prepared, current = None, None
    for i, layout, slot in layers.each():
        if slot != current:
            prepared = _prepare(rule.prepare, len(layout.batch), totals[slot])
            current = slot
        keep = None
        if sparsities is not None:
            sizes = _sizes(leaves[i].shape, layout)
            keep = _uint64.wide(list(rule.counts(sparsities[i], *sizes)))
        new, mask = _pruned(
            rule.solve, layout, n_m, leaves[i], begun[i], prepared, keep
        )
        if _checks.is_concrete([new]) and not jnp.isfinite(new).all():
            raise ValueError(
                f"The leaf {paths[i]} came out with a NaN or an infinity. If it held "
                "none, the products of its inputs have no Cholesky factor in float32 "
                "with this damping: pass a larger one."
            )
        leaves[i], masks[i] = shard_like(new, leaves[i]), shard_like(mask, leaves[i])
    return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, masks)


def layer_statistics(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    measure: Measure,
    prunable: Prunable | None,
    *,
    n_m: tuple[int, int] | None = None,
    warn: bool = True,
) -> tuple[Layers, list[jax.Array]]:
    """Finds the prunable layers, and sums a statistic of their inputs over batches.

    Statistics are float32, and their leading axes are the batch axes of the leaf.
    """
    _checks.check_callable(fn, "fn", "fn(params, batch) -> outputs")
    _checks.check_floating(params, "params")
    _checks.check_batches(batches)
    flags = None if prunable is None else (*select_prunable(params, prunable),)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("batches is empty; pass calibration data.")
    shapes, layers = _measured.eval_shape(fn, measure, flags, params, first)
    paths = _checks.leaf_paths(params)
    _check_groups(layers, jax.tree.leaves(params), paths, n_m)
    totals: list[Any] = [None] * len(shapes)
    for batch in itertools.chain([first], batches):
        found, _ = _measured(fn, measure, flags, params, batch)
        pairs = zip(totals, found, strict=True)
        totals = [f if t is None else _sum(t, f) for t, f in pairs]
    _check_statistics(layers, totals, paths, warn)
    return layers, totals


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(
    fn: Callable[..., Any],
    measure: Measure,
    flags: tuple[bool, ...] | None,
    params: Any,
    batch: Any,
) -> tuple[list[jax.Array], Layers]:
    """The statistics of one batch, and the layers that they belong to."""
    capture = Capture(params, measure, flags)
    found = capture(fn, params, (batch,))
    chosen = products(capture, flags)
    order: dict[int, int] = {}
    slots = tuple(order.setdefault(id(found[i]), len(order)) for i in chosen)
    unique = {slot: found[i] for i, slot in zip(chosen, slots, strict=True)}
    layouts = tuple(capture.layouts[i] for i in chosen)
    return [unique[slot] for slot in range(len(order))], Layers(chosen, layouts, slots)


def products(capture: Capture, flags: Sequence[bool] | None) -> tuple[int, ...]:
    """The leaves that a product contracts with activations, in the order of first use.

    Without flags, these are all such leaves that have no other use. With flags, they
    are the flagged leaves; flagged leaves that meet activations elementwise are left
    out, and raise an error if no other leaf is flagged.
    """
    if flags is None:
        chosen = [i for i in capture.layouts if i not in capture.shared]
        if not chosen:
            raise ValueError(
                "fn contracts no leaf with activations in a matrix product or an "
                f"ungrouped convolution; the leaves are {capture.paths[:5]}."
            )
        return tuple(chosen)
    missing = [i for i, f in enumerate(flags) if f and i not in capture.layouts]
    vectors = [i for i in missing if i in capture.elementwise or capture.ranks[i] < 2]
    lost = [capture.paths[i] for i in missing if i not in vectors]
    if lost:
        raise ValueError(
            f"No inputs were found for the prunable leaves {lost}: they are in no "
            "matrix product or ungrouped convolution, or are sliced or otherwise "
            "changed before it (embeddings are looked up). Leave them out with "
            "prunable=jp.by_path(pattern)."
        )
    chosen = [i for i in capture.layouts if flags[i]]
    if not chosen:
        named = [f"{capture.paths[i]} of shape {capture.shapes[i]}" for i in vectors]
        raise ValueError(
            f"No inputs were found for the prunable leaves {named}: they scale "
            "activations or are added to them, as a norm's scale or a bias, and are no "
            "weights of a matrix product. Leave them dense."
        )
    return tuple(chosen)


@functools.partial(jax.jit, donate_argnums=0)
def _sum(total: jax.Array, found: jax.Array) -> jax.Array:
    return total + found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepare(prepare: Callable[..., Any], batch: int, statistic: jax.Array) -> Any:
    rows = statistic.reshape(-1, *statistic.shape[batch:])
    return _by_row(prepare, replicate(rows)[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pruned(
    solve: Callable[..., Any],
    layout: Layout,
    n_m: tuple[int, int] | None,
    leaf: jax.Array,
    start: jax.Array,
    prepared: Any,
    keep: Any,
) -> tuple[jax.Array, jax.Array]:
    """Prunes a leaf, matrix by matrix; the mask is False exactly at its zeros."""
    outputs, inputs = _sizes(leaf.shape, layout)
    free = [i for i in range(leaf.ndim) if i not in (*layout.inputs, *layout.batch)]
    order = [*layout.batch, *free, *layout.inputs]
    back = [order.index(i) for i in range(leaf.ndim)]
    leaf, restore_sharding = replicate(leaf)

    def matrices(array: jax.Array) -> jax.Array:
        return jnp.transpose(array, order).reshape(-1, outputs, inputs)

    def restored(array: jax.Array) -> jax.Array:
        shape = [leaf.shape[i] for i in order]
        return jnp.transpose(array.reshape(shape), back)

    def one(args: tuple[Matrix, Any]) -> tuple[jax.Array, jax.Array]:
        matrix, found = args
        return solve(matrix, found, keep, n_m)

    old = matrices(leaf)
    weights = old.astype(jnp.float32)
    matrix = Matrix(weights, old != 0, matrices(replicate(start)[0]))
    new, mask = _by_row(one, (matrix, prepared))
    # Weights that the method keeps unchanged are not rounded to float32.
    new = jnp.where(new == weights, old, new.astype(leaf.dtype))
    new = restored(jnp.where(mask, new, 0))
    return restore_sharding(new), restore_sharding(new != 0)


def _by_row(fn: Callable[[Any], Any], rows: Any) -> Any:
    """Maps over a leading axis, without a loop if it has one entry."""
    if jax.tree.leaves(rows)[0].shape[0] > 1:
        return jax.lax.map(fn, rows)
    found = fn(jax.tree.map(lambda x: x[0], rows))
    return jax.tree.map(lambda x: x[None], found)


def _sizes(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """The number of outputs and of inputs of a layer."""
    inputs = math.prod(shape[i] for i in layout.inputs)
    batch = math.prod(shape[i] for i in layout.batch)
    return math.prod(shape) // (inputs * batch), inputs


def check_amount(
    params: Any, sparsity: Any, n_m: Any
) -> tuple[list[float] | None, tuple[int, int] | None]:
    """A sparsity for every leaf, or the pattern; raises unless one is given."""
    if (sparsity is None) == (n_m is None):
        raise ValueError(
            "Pass one of sparsity=0.5 and n_m=(2, 4); got "
            f"sparsity={sparsity} and n_m={n_m}."
        )
    if n_m is not None:
        if not isinstance(n_m, tuple | list) or len(n_m) != 2:
            raise ValueError(f"n_m must be two numbers, (2, 4) for 2:4; got {n_m!r}.")
        n_m = _checks.check_group(*n_m)
        _checks.static_count(n_m[0], "n", "weights kept in a group", least=0)
        return None, n_m
    try:
        values = jax.tree.leaves(jax.tree.broadcast(sparsity, params))
    except ValueError as error:
        raise ValueError(
            "sparsity must be one number, or a tree of numbers with the structure of "
            f"params, or a prefix of it; got {jax.tree.structure(sparsity)}."
        ) from error
    for path, value in zip(_checks.leaf_paths(params), values, strict=True):
        uniform = jax.tree.structure(sparsity).num_nodes == 1
        name = "sparsity" if uniform else f"sparsity of {path}"
        _checks.check_sparsity(value, name)
        _checks.static_sparsity(value, "a post-training method", name)
    return [float(value) for value in values], None


def _check_groups(
    layers: Layers, leaves: list[Any], paths: list[str], n_m: tuple[int, int] | None
) -> None:
    if n_m is None:
        return
    for i, layout, _ in layers.each():
        shape = leaves[i].shape
        _, inputs = _sizes(shape, layout)
        if inputs % n_m[1]:
            raise ValueError(
                f"The leaf {paths[i]} of shape {shape} has {inputs} inputs, not a "
                f"multiple of m={n_m[1]}. Leave it out with "
                "prunable=jp.by_path(pattern)."
            )


def _check_statistics(
    layers: Layers, totals: list[Any], paths: list[str], warn: bool
) -> None:
    """Raises if statistics are not finite; warns of layers without inputs."""
    if not _checks.is_concrete(totals):
        return
    unreached = []
    for i, layout, slot in layers.each():
        total, batch = totals[slot], len(layout.batch)
        if not jnp.isfinite(total).all():
            raise ValueError(
                f"The inputs of the leaf {paths[i]} hold a NaN or an infinity, or "
                "their squares overflow float32. Look at the batches, or at the layers "
                "before it."
            )
        seen = np.asarray((total != 0).any(axis=range(batch, total.ndim)))
        unreached += [f"{paths[i]}{[*at] or ''}" for at in np.argwhere(~seen).tolist()]
    if unreached and warn:
        more = f" and {len(unreached) - 5} more" if len(unreached) > 5 else ""
        warnings.warn(
            f"The inputs of {unreached[:5]}{more} were 0 on all calibration data: "
            "these layers were pruned by magnitude.",
            stacklevel=5,
        )
