"""Scores of channels from the activations that pass through them, and compensation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._types import Params
from jaxprune.core import _checks
from jaxprune.core._placement import replicate, shard_like
from jaxprune.structured._biases import find_biases
from jaxprune.structured._groups import Group, Member, check_groups
from jaxprune.structured._inputs import Inputs, Moments, read_inputs
from jaxprune.structured._narrow import removed_positions
from jaxprune.structured._scores import channel_sums


def minitron(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    groups: Sequence[Group],
) -> tuple[jax.Array, ...]:
    r"""Scores every channel by the size of its activations, where they are read.

    With :math:`x_{bt}` the inputs, at token :math:`t` of sequence :math:`b`, of the
    layers that read channel :math:`c`, which is one or several positions :math:`j`,

    .. math:: s_c = \Big( \sum_{j \in c} \sum_b
        \Big( \frac{1}{T} \sum_t |x_{btj}| \Big)^2 \Big)^{1/2} ,

    summed over the arrays that are read. For the neurons of an MLP these are the inputs
    of the down projection, for heads those of the output projection, and for the width
    of a residual stream the outputs of all norms: an array counts once, whether one
    layer reads it or three. The inputs are found as `jaxprune.wanda` finds them. Their
    first axis must number the sequences, or be that axis merged with others; where it
    does not fit, all tokens of a batch count as one sequence.

    The paper removes the same number of channels in every layer: pass the scores to
    `structured_mask` with the scope "group". For the global scope, `standardize` them.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays.
      batches: the calibration data, a list of batches, each of which is handed whole to
        ``fn``; the leading axis of its first array numbers the sequences.
      groups: the groups, from `channel_groups` or `slice_groups`.

    Returns:
      One float32 array of shape (size,) for every group, non-negative, larger = keep.

    Raises:
      ValueError: if no matrix product reads the channels of a group, or there are no
        batches, or only scalars in one.
      TypeError: if ``groups`` are not groups, ``batches`` is a single array, or a leaf
        is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return (x @ params["w"]) @ params["v"]
      >>> params = {"w": jnp.eye(2), "v": jnp.ones((2, 1))}
      >>> x = jnp.array([[[1.0, -2.0], [-1.0, 4.0]], [[3.0, 0.0], [1.0, 2.0]]])
      >>> groups = jp.structured.channel_groups(apply_fn, params, x)
      >>> jp.structured.minitron(apply_fn, params, [x], groups)
      (Array([2.236068 , 3.1622777], dtype=float32),)

    References:
      Muralidharan et al., `Compact Language Models via Pruning and Knowledge
      Distillation <https://arxiv.org/abs/2407.14679>`_, NeurIPS 2024, Section 2.2.
    """
    inputs = _inputs_of(fn, params, batches, groups)
    readers = [_readers(group, inputs) for group in groups]

    @jax.jit
    def sizes(moments: dict[str, Moments]) -> list[list[jax.Array]]:
        return [
            [_size(moments[m.path].size, m, inputs[m.path].axes) for m in members]
            for members in readers
        ]

    found = sizes({path: i.moments for path, i in inputs.items()})
    return tuple(jnp.sum(jnp.stack(_distinct(each)), 0) for each in found)


def _distinct(arrays: list[jax.Array]) -> list[jax.Array]:
    """Leaves out what equals an earlier one: sizes of an array that several read."""
    kept: list[jax.Array] = []
    for array in arrays:
        if not any(np.allclose(array, known, rtol=1e-5, atol=0) for known in kept):
            kept.append(array)
    return kept


def _size(size: jax.Array, member: Member, inputs: tuple[int, ...]) -> jax.Array:
    """The size of each channel of a member, summed over the layers of a stack."""
    within = [i for i in inputs if i != member.axis]
    size = jnp.sum(replicate(size)[0], within, keepdims=True)
    size = jnp.moveaxis(size, member.axis, -1)[..., member.index]
    return jnp.sum(jnp.sqrt(jnp.sum(size, -1)).reshape(-1, len(member.index)), 0)


def flap(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    groups: Sequence[Group],
) -> tuple[jax.Array, ...]:
    r"""Scores every channel by how much the layers that read it see it fluctuate.

    With :math:`X_j` the inputs, over all tokens, that the weights :math:`W_{ij}` of the
    channel's readers are multiplied by,

    .. math:: s_c = \sum_{j \in c} \operatorname{var}(X_j) \sum_i W_{ij}^2 ,

    the mean squared change in the readers' outputs if the channel is replaced by its
    mean. `compensate` adds that mean to the readers' biases.

    The paper compares layers by these scores standardized within each layer: pass them
    through `standardize`. It squares the channels' scores of attention layers first; we
    do not. A head's score here is the sum of those of its channels, there the mean,
    which is the same once standardized.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays.
      batches: the calibration data, a list of batches, each of which is handed whole to
        ``fn``; the leading axis of its first array numbers the sequences.
      groups: the groups, from `channel_groups` or `slice_groups`.

    Returns:
      One float32 (or wider) array of shape (size,) for every group, non-negative,
      larger = keep.

    Raises:
      ValueError: if no matrix product reads the channels of a group, or there are no
        batches, or only scalars in one.
      TypeError: if ``groups`` are not groups, ``batches`` is a single array, or a leaf
        is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return (x @ params["w"]) @ params["v"]
      >>> params = {"w": jnp.eye(2), "v": jnp.array([[1.0], [2.0]])}
      >>> x = jnp.array([[5.0, 1.0], [5.0, 3.0]])  # The first channel is constant.
      >>> groups = jp.structured.channel_groups(apply_fn, params, x)
      >>> jp.structured.flap(apply_fn, params, [x], groups)
      (Array([0., 4.], dtype=float32),)

    References:
      An et al., `Fluctuation-based Adaptive Structured Pruning for Large Language
      Models <https://arxiv.org/abs/2312.11983>`_, AAAI 2024, the metric WIFV.
    """
    inputs = _inputs_of(fn, params, batches, groups)
    readers = [_readers(group, inputs) for group in groups]

    @jax.jit
    def scores(params: Any, moments: dict[str, Moments]) -> list[jax.Array]:
        paths, leaves = _checks.leaf_paths(params), jax.tree.leaves(params)
        terms = {
            path: moments[path].spread / jnp.maximum(moments[path].count, 1) * leaf**2
            for path, leaf in zip(paths, leaves, strict=True)
            if path in moments
        }
        found = [
            [channel_sums(terms[m.path], m.index, m.axis, False) for m in members]
            for members in readers
        ]
        return [jnp.sum(jnp.stack(sums), 0) for sums in found]

    return tuple(scores(params, {path: i.moments for path, i in inputs.items()}))


def compensate(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    mask: Any,
    groups: Sequence[Group],
) -> Params:
    r"""Adds to biases what the channels that a mask removes contribute on average.

    A layer :math:`y = W x + b` that reads removed channels :math:`j \in R` gets

    .. math:: b_i \leftarrow b_i + \sum_{j \in R} W_{ij} \, \mathbb{E}[X_j] ,

    so its mean output on the calibration data stays the same. Call it before `shrink`
    or `narrow`, with the same parameters and mask. Layers without a bias do not change.
    A bias is a leaf that the function adds to the output of a matrix product, with
    nothing that reads the output in between; to give a model one, add zeros. Biases of
    convolutions are not found.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays.
      batches: the calibration data, a list of batches, each of which is handed whole to
        ``fn``; the leading axis of its first array numbers the sequences.
      mask: a concrete tree of bool like ``params``, True = kept, from
        `structured_mask`.
      groups: the groups that it removes channels of.

    Returns:
      The parameters, at their full size, with new biases.

    Raises:
      ValueError: if no layer that reads a removed channel has a bias, or there are no
        batches, or only scalars in one.
      TypeError: if ``groups`` are not groups, ``mask`` is not bool or has no values, or
        ``batches`` is a single array.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return (x @ params["w"]) @ params["v"] + params["b"]
      >>> params = {"w": jnp.eye(2), "v": jnp.ones((2, 1)), "b": jnp.zeros((1, 1))}
      >>> x = jnp.array([[5.0, 1.0], [5.0, 3.0]])  # The first channel is constant.
      >>> groups = jp.structured.channel_groups(apply_fn, params, x)
      >>> scores = jp.structured.flap(apply_fn, params, [x], groups)
      >>> mask = jp.structured.structured_mask(scores, groups, params, 0.5)
      >>> params = jp.structured.compensate(apply_fn, params, [x], mask, groups)
      >>> params["b"]
      Array([[5.]], dtype=float32)

    References:
      An et al., `Fluctuation-based Adaptive Structured Pruning for Large Language
      Models <https://arxiv.org/abs/2312.11983>`_, AAAI 2024, bias compensation.
    """
    removed = removed_positions(mask, params, groups)
    _checks.check_batches(batches)
    batches = list(batches)
    inputs = read_inputs(fn, params, batches, {path for path, _ in removed})
    biases = find_biases(fn, params, batches[0])
    leaves, structure = jax.tree.flatten(params)
    where = {path: i for i, path in enumerate(_checks.leaf_paths(params))}
    shifts = {}
    for path, found in inputs.items():
        gone = jnp.zeros((1,) * leaves[where[path]].ndim, bool)
        for axis in found.axes:
            if (path, axis) in removed:
                beside = [i for i in range(gone.ndim) if i != axis]
                gone |= jnp.expand_dims(removed[path, axis], beside)
        if gone.any() and path in biases:
            shifts[path] = _mean_output(leaves[where[path]], found, gone)
    if removed and not shifts:
        raise ValueError(
            "No layer that reads a removed channel has a bias, a leaf that is added to "
            "the output of its matrix product. Give the model biases of 0, or leave "
            "compensate out."
        )
    for path, shift in shifts.items():
        bias, old = biases[path], leaves[where[biases[path].path]]
        axes = sorted(bias.axes, key=bias.axes.__getitem__)
        beside = [i for i in range(shift.ndim) if i not in axes]
        shift = jnp.transpose(shift, (*axes, *beside)).reshape(old.shape)
        new = (old + shift).astype(old.dtype)
        leaves[where[bias.path]] = shard_like(new, old)
    return jax.tree.unflatten(structure, leaves)


def _mean_output(weights: jax.Array, found: Inputs, gone: jax.Array) -> jax.Array:
    """What removed inputs add to the outputs on average, of size 1 along inputs."""
    mean = jnp.where(gone, found.moments.mean, 0)
    return jnp.sum(weights * mean, axis=found.axes, keepdims=True)


def _inputs_of(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    groups: Sequence[Group],
) -> dict[str, Inputs]:
    """The inputs of the leaves of all groups."""
    check_groups(groups)
    paths = {member.path for group in groups for member in group.members}
    return read_inputs(fn, params, batches, paths)


def _readers(group: Group, inputs: dict[str, Inputs]) -> list[Member]:
    """The members of a group that a matrix product sums over."""
    found = [
        member
        for member in group.members
        if member.path in inputs and member.axis in inputs[member.path].axes
    ]
    if not found:
        raise ValueError(
            f"No matrix product reads the channels of the group {group.name}, so they "
            "have no activations. Leave the group out, or score it with group_scores."
        )
    return found
