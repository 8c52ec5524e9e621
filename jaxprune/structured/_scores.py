"""Scores of channels, computed from scores of weights."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.core import _checks
from jaxprune.core._dtypes import precision_of
from jaxprune.core._placement import replicate
from jaxprune.structured._groups import Group, check_groups, check_member

_REDUCTIONS = ("sum", "abs_sum", "l2", "mean")
_MEMBERS = ("producers", "all")


def group_scores(
    scores: Any,
    groups: Sequence[Group],
    *,
    reduce: str = "sum",
    members: str = "producers",
) -> tuple[jax.Array, ...]:
    r"""Scores every channel of every group by the scores of its weights.

    With :math:`s_i` the score of weight :math:`i`, and :math:`f` the weights of a
    channel (in the filters that produce it, or in all members),

    .. math::

        \texttt{sum} = \sum_{i \in f} s_i, \quad
        \texttt{abs\_sum} = \Big| \sum_{i \in f} s_i \Big|, \quad
        \texttt{l2} = \Big( \sum_{i \in f} s_i^2 \Big)^{1/2}, \quad
        \texttt{mean} = \frac{1}{|f|} \sum_{i \in f} s_i .

    The measures of Lubana & Dick are ``l2`` of `jaxprune.magnitude`, ``sum`` of loss
    preservation, of the biased loss and of GraSP, and ``abs_sum`` of Taylor. For
    gradient preservation take ``abs_sum`` of GraSP: the absolute value comes after the
    sum. With members "producers" only the filters of a channel count, as in the paper,
    not biases, norms and consumers. If several leaves produce a channel (a residual
    stream), all of them count; the paper scores each one separately.

    Args:
      scores: a tree like the parameters, larger = keep; leaves are matched by path.
      groups: the groups, from `channel_groups`.
      reduce: "sum", "abs_sum", "l2" or "mean".
      members: "producers" or "all".

    Returns:
      One float32 (or wider) array of shape (size,) per group. It is signed if
      ``scores`` is and ``reduce`` is "sum" or "mean".

    Raises:
      ValueError: if an option is unknown, or ``scores`` lacks a member, or has it in
        another shape.
      TypeError: if ``groups`` are not groups, or a score is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((2, 1)), "w": jnp.array([[3.0, 1.0], [-4.0, 2.0]])}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 2)))
      >>> jp.structured.group_scores(jp.magnitude(params), groups, reduce="l2")
      (Array([5.      , 2.236068], dtype=float32),)

    References:
      Lubana & Dick, `A Gradient Flow Framework for Analyzing Network Pruning
      <https://arxiv.org/abs/2009.11839>`_, ICLR 2021, Section 3.
    """
    for option, value, allowed in (
        ("reduce", reduce, _REDUCTIONS),
        ("members", members, _MEMBERS),
    ):
        if value not in allowed:
            raise ValueError(f"{option} must be one of {allowed}; got {value!r}.")
    check_groups(groups)
    leaves = dict(zip(_checks.leaf_paths(scores), jax.tree.leaves(scores), strict=True))
    return tuple(
        _scored(leaves, group, reduce, members == "producers") for group in groups
    )


def standardize(group_scores: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    r"""Shifts and scales the scores of every group to mean 0 and standard deviation 1.

    Activations and weights differ in size from layer to layer, so a global order of raw
    scores takes nearly all channels from a few layers. Standardized scores compare how
    far a channel lies below the average of its own layer.

    Args:
      group_scores: one array of shape (size,) a group, as `group_scores`, `minitron` or
        `flap` return.

    Returns:
      The arrays :math:`(s - \mathrm{mean}(s)) / \mathrm{std}(s)`, for
      `structured_mask` with the global scope; 0 in a group whose scores are all equal.

    Raises:
      ValueError: if the scores of a group are not of shape (size,).

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> scores = jnp.array([1.0, 3.0]), jnp.array([100.0, 500.0])
      >>> jp.structured.standardize(scores)
      (Array([-1.,  1.], dtype=float32), Array([-1.,  1.], dtype=float32))

    References:
      An et al., `Fluctuation-based Adaptive Structured Pruning for Large Language
      Models <https://arxiv.org/abs/2312.11983>`_, AAAI 2024, adaptive structure search.
    """
    for scores in group_scores:
        if np.ndim(scores) != 1:
            raise ValueError(
                "Pass one array of shape (size,) for each group, such as group_scores "
                f"returns; got {_checks.described(scores)}."
            )
    return tuple(_standardized(jnp.asarray(scores)) for scores in group_scores)


def _standardized(scores: jax.Array) -> jax.Array:
    apart = scores - jnp.mean(scores)
    scale = jnp.std(scores)
    return apart / jnp.where(scale > 0, scale, 1)


def _scored(
    leaves: dict[str, Any], group: Group, reduce: str, producers: bool
) -> jax.Array:
    chosen = [m for m in group.members if m.produces or not producers]
    host = _checks.on_host([leaves[m.path] for m in chosen if m.path in leaves])
    xp = np if host else jnp
    total, count = xp.zeros(group.size, np.float32), 0
    for member in chosen:
        if member.path not in leaves:
            raise ValueError(
                f"scores lacks the leaf {member.path} of the group {group.name}. Score "
                "the tree that the groups were found for, or a part with all "
                'producers; members="all" needs every member.'
            )
        leaf = leaves[member.path]
        _checks.check_floating({member.path: leaf}, "scores")
        check_member(jnp.shape(leaf), member, group, "scores")
        sums = _sums_on_host if host else channel_sums
        found = sums(leaf, member.index, member.axis, reduce == "l2")
        total = total + found
        count += (
            math.prod(jnp.shape(leaf))
            // jnp.shape(leaf)[member.axis]
            * (member.index.shape[1])
        )
    if reduce == "l2":
        total = xp.sqrt(total)
    elif reduce == "mean":
        total = total / count
    elif reduce == "abs_sum":
        total = xp.abs(total)
    with precision_of([total]):
        return jnp.asarray(total)


def _sums_on_host(leaf: Any, index: np.ndarray, axis: int, squared: bool) -> np.ndarray:
    """Does what `channel_sums` does with NumPy, which has nothing to compile."""
    leaf = np.asarray(leaf)
    leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    others = tuple(i for i in range(leaf.ndim) if i != axis)
    sums = np.sum(np.square(leaf) if squared else leaf, axis=others)
    return sums[index].sum(1)


@functools.partial(jax.jit, static_argnames=("axis", "squared"))
def channel_sums(leaf: Any, index: Any, axis: int, squared: bool) -> jax.Array:
    """Sums a member's weights, or their squares, channel by channel.

    Leaves of one shape share one compiled program.
    """
    leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    others = tuple(i for i in range(leaf.ndim) if i != axis)
    sums = jnp.sum(leaf**2 if squared else leaf, axis=others)
    return jnp.sum(jnp.take(replicate(sums)[0], index, axis=0), axis=1)
