"""Removes channels: the function is replayed on narrowed parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._analysis import trace_function
from jaxprune.structured._groups import Group, check_arrays
from jaxprune.structured._narrow import (
    Removed,
    removed_positions,
    without_removed,
)
from jaxprune.structured._replay import Replay
from jaxprune.structured._trace import Trace


def shrink(
    fn: Callable[..., Any],
    params: Any,
    mask: Any,
    groups: Sequence[Group],
    *,
    mean_width: str = "old",
) -> tuple[Callable[..., Any], Any]:
    """Removes the channels that a mask removes, from the parameters and the function.

    A channel is removed if the mask is False on every slice of all its members; other
    weights that the mask prunes are set to 0. The small function replays ``fn`` without
    the removed positions, so its outputs and gradients equal the masked model's up to
    rounding. Constants do not change, so a mean over channels (LayerNorm, RMSNorm) is
    the sum divided by the old width, unless ``mean_width`` is "new".

    Args:
      fn: the function that ``groups`` were found in, ``fn(params, *inputs)``.
      params: its parameters, arrays.
      mask: a concrete tree of bool like ``params``, True = kept.
      groups: the groups of channels that may be removed, from `channel_groups`.
      mean_width: the width that a mean over n channels is divided by when m of them
        stay. "old" divides by n, which equals the masked model. "new" divides by m, as
        a narrower LayerNorm, RMSNorm or GroupNorm layer would. A mean is a sum whose
        every use, in the same function, is a division by n or n - 1. Other sums, and
        factors such as 1/sqrt(n), do not change.

    Returns:
      ``(small_fn, small_params)``. The parameters have the tree structure of ``params``
      and fewer entries. Sharded axes stay sharded if their new size still divides (see
      ``round_to`` in `structured_mask`); otherwise they are replicated.
      ``small_fn(small_params, *inputs)`` is an ordinary jitted function; it traces
      ``fn`` once per shape of its inputs.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values.
      ValueError: if ``mask`` does not match ``params``, if it removes all channels of a
        group, if ``mean_width`` is neither "old" nor "new", or, when ``small_fn`` is
        called, if the function couples other channels at these input shapes.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 2)), "w": jnp.ones((8, 4))}
      >>> x = jnp.ones((10, 8))
      >>> groups = jp.structured.channel_groups(apply_fn, params, x)
      >>> keep = jnp.array([True, False, True, False])
      >>> mask = {"v": jnp.tile(keep[:, None], 2), "w": jnp.tile(keep, (8, 1))}
      >>> small_fn, small_params = jp.structured.shrink(apply_fn, params, mask, groups)
      >>> jax.tree.map(jnp.shape, small_params)
      {'v': (2, 2), 'w': (8, 2)}
      >>> bool(jnp.allclose(small_fn(small_params, x), apply_fn(params, x) / 2))
      True
    """
    check_arrays(params)
    check_mean_width(mean_width)
    removed = removed_positions(mask, params, groups)
    small_params = without_removed(params, mask, removed)
    return small_function(fn, params, small_params, removed, mean_width), small_params


def check_mean_width(mean_width: str) -> None:
    """Raises unless ``mean_width`` is a known option."""
    if mean_width not in ("old", "new"):
        raise ValueError(f'mean_width must be "old" or "new"; got {mean_width!r}.')


def small_function(
    fn: Callable[..., Any],
    params: Any,
    small_params: Any,
    removed: Removed,
    mean_width: str,
) -> Callable[..., Any]:
    """Builds the function on narrowed parameters; it keeps only the trees' shapes."""
    abstract, small = map(_abstract, (params, small_params))

    @jax.jit
    def small_fn(params: Any, *inputs: Any) -> Any:
        _checks.check_like(params, small, "params", "the small parameters")
        full = jax.tree.map(_of_type, abstract, params)
        trace, body, outputs = trace_function(fn, full, inputs)
        replay = Replay(trace, _removed_labels(trace, full, removed), mean_width)
        _check_same(trace, replay, full, removed)
        found = replay.run(body, jax.tree.leaves((params, inputs)))
        return jax.tree.unflatten(outputs, found)

    return small_fn


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree)


def _of_type(full: Any, given: Any) -> Any:
    """The full parameter in the dtype of the small one, which training may change."""
    sharding = jax.typeof(given).sharding  # Empty unless the mesh axes are Explicit.
    sharding = sharding if any(sharding.spec) else None
    return jax.ShapeDtypeStruct(full.shape, given.dtype, sharding=sharding)


def _removed_labels(trace: Trace, params: Any, removed: Removed) -> np.ndarray:
    paths = {path: i for i, path in enumerate(_checks.leaf_paths(params))}
    rows = [
        trace.axes[paths[path]][axis][gone] for (path, axis), gone in removed.items()
    ]
    return np.concatenate([np.zeros(0, np.int64), *rows])


def _check_same(trace: Trace, replay: Replay, params: Any, removed: Removed) -> None:
    """Raises unless everything coupled to the removed channels is removed too."""
    for path, axes in zip(_checks.leaf_paths(params), trace.axes, strict=True):
        for axis, row in enumerate(axes):
            gone = replay.gone[row]
            planned = removed.get((path, axis), np.zeros(len(row), bool))
            frozen = gone & trace.labels.is_frozen(row)
            if frozen.any() or not np.array_equal(gone, planned):
                reason = trace.labels.reason(row[frozen][0]) if frozen.any() else ""
                raise ValueError(
                    f"At these input shapes the removed channels cannot be removed "
                    f"along axis {axis} of {path}"
                    + (f": {reason}. " if reason else ". ")
                    + "Find the groups with inputs of these shapes."
                )
