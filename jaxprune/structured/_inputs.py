"""Statistics of the inputs that each leaf multiplies, over calibration data.

`Capture`, which `jaxprune.wanda` also uses, finds the products.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.post_training._capture import Capture, Layout


class Moments(NamedTuple):
    """Moments of each input over all tokens, as arrays of equal shapes.

    Attributes:
      mean: the mean.
      spread: the sum of the squared distances to the mean.
      count: the number of tokens.
      size: the sum over sequences of the square of the mean absolute value.
    """

    mean: jax.Array
    spread: jax.Array
    count: jax.Array
    size: jax.Array


class Inputs(NamedTuple):
    """The inputs that a leaf multiplies.

    Attributes:
      moments: arrays of the leaf's rank, with size 1 along its output axes.
      axes: the axes of the leaf that the product sums over.
    """

    moments: Moments
    axes: tuple[int, ...]


def read_inputs(
    fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    paths: Collection[str],
) -> dict[str, Inputs]:
    """Runs all batches and returns the inputs of the leaves that are in products.

    The leading axis of a batch's first array numbers its sequences. In the array that a
    layer reads, the first axis must number them too, alone or merged with the token
    axes. If its size does not fit, all tokens count as one sequence.
    """
    _checks.check_callable(fn, "fn", "fn(params, batch) -> outputs")
    _checks.check_floating(params, "params")
    _checks.check_batches(batches)
    names = _checks.leaf_paths(params)
    wanted = [name in paths for name in names]
    layouts: dict[int, Layout] = {}

    @jax.jit
    def run(params: Any, batch: Any) -> dict[int, Moments]:
        sums = functools.partial(_sums, _sequences(batch))
        capture = Capture(params, sums, wanted)
        found = capture(fn, params, (batch,))
        layouts.update(capture.layouts)
        return {leaf: _moments(sums) for leaf, sums in found.items()}

    total = None
    for batch in batches:
        found = run(params, batch)
        total = found if total is None else _merge(total, found)
    if total is None:
        raise ValueError("batches has no batch. Pass a list of them.")
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    return {
        names[leaf]: Inputs(
            Moments(*(_laid_out(x, layouts[leaf], shapes[leaf]) for x in moments)),
            layouts[leaf].inputs,
        )
        for leaf, moments in total.items()
    }


def _sequences(batch: Any) -> int:
    first = next(iter(jax.tree.leaves(batch)), None)
    if not np.ndim(first):
        raise ValueError(
            "The leading axis of a batch's first array must number its sequences; got "
            f"{_checks.described(first)}."
        )
    return np.shape(first)[0]


def _sums(sequences: int, x: jax.Array, batch: int, inputs: int) -> jax.Array:
    """Sums over the tokens of each sequence, (*batch, sequences, 4, inputs)."""
    rows, last = x.shape[:batch], x.shape[x.ndim - inputs :]
    tokens = x.shape[batch : x.ndim - inputs]
    if not tokens or tokens[0] != sequences:
        each = sequences if math.prod(tokens) % sequences == 0 else 1
        x = x.reshape(*rows, each, -1, *last)
    axes = range(batch + 1, x.ndim - inputs)
    sums = [jnp.sum(part, axis=axes) for part in (x, jnp.square(x), jnp.abs(x))]
    count = math.prod(x.shape[i] for i in axes)
    found = jnp.stack([jnp.full_like(sums[0], count), *sums], axis=batch + 1)
    found = found.reshape(*found.shape[: batch + 2], -1)
    short = sequences - found.shape[batch]
    return jnp.pad(found, [(0, short * (i == batch)) for i in range(found.ndim)])


def _laid_out(values: jax.Array, layout: Layout, shape: Sequence[int]) -> jax.Array:
    """Reshapes one number per input to broadcast against the leaf."""
    axes = (*layout.batch, *layout.inputs)
    values = values.reshape([shape[i] for i in axes])
    values = jnp.transpose(values, np.argsort(axes).tolist())
    return values.reshape([n if i in axes else 1 for i, n in enumerate(shape)])


def _moments(sums: jax.Array) -> Moments:
    """The moments of a batch from the sums of its sequences, along axis -3."""
    count, total, squares, size = (sums[..., i, :] for i in range(4))
    some = jnp.maximum(count, 1)
    tokens = jnp.sum(count, -2, keepdims=True)
    mean = jnp.sum(total, -2, keepdims=True) / jnp.maximum(tokens, 1)
    within = jnp.maximum(squares - jnp.square(total) / some, 0)
    between = count * jnp.square(total / some - mean)
    return Moments(
        jnp.squeeze(mean, -2),
        jnp.sum(within + between, -2),
        jnp.squeeze(tokens, -2),
        jnp.sum(jnp.square(size / some), -2),
    )


@jax.jit
def _merge(left: dict[int, Moments], right: dict[int, Moments]) -> dict[int, Moments]:
    """The moments of two sets of tokens together (Chan et al.)."""

    def merge(a: Moments, b: Moments) -> Moments:
        count = jnp.maximum(a.count + b.count, 1)
        apart = b.mean - a.mean
        return Moments(
            a.mean + apart * b.count / count,
            a.spread + b.spread + jnp.square(apart) * a.count * b.count / count,
            a.count + b.count,
            a.size + b.size,
        )

    return {leaf: merge(left[leaf], right[leaf]) for leaf in left}
