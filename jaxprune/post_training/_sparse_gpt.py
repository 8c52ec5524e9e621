"""SparseGPT: prunes a layer at a time, and has the weights that stay make up for it."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._types import Mask, Params, Prunable, Real
from jaxprune.core import _checks
from jaxprune.core._placement import replicate, shard_like
from jaxprune.core._prunable import matrices, select_prunable
from jaxprune.post_training._capture import Capture, Layout
from jaxprune.post_training._obs import solve
from jaxprune.post_training._wanda import check_found, layouts_of


def sparse_gpt(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    *,
    sparsity: Real | None = None,
    n_m: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
    sequential: bool = True,
    prunable: Prunable = matrices,
) -> tuple[Params, Mask]:
    r"""Prunes each layer so that its outputs on the calibration data change little.

    For a layer :math:`y = W x` with inputs :math:`X` and
    :math:`H = X X^\top + \lambda I`, :math:`\lambda` a share of H's mean diagonal, and
    :math:`U` the upper Cholesky factor of :math:`H^{-1}`, columns are visited in order.
    Of a block of columns those with the least :math:`w^2 / U_{jj}^2` are pruned, and
    each column's error :math:`w / U_{jj}` is spread over the later ones with U's row.

    How many are pruned is exact in each block, over all outputs; the papers' code
    prunes ties too. With N:M, ``n`` of every ``m`` consecutive inputs are kept,
    chosen as their first column's turn comes. H is a sum, not a mean, which changes
    nothing. Inputs that are always 0 have their weights pruned first, set to 0.

    The inputs are found as `wanda` finds them. There is one H in memory at a time, so
    the batches are read again for each layer, and each leaf compiles one program; along
    an axis that ``vmap`` or a batched product runs along there is an H a step, all at
    once.

    Args:
      fn: ``fn(params, batch)``, the forward pass; what it returns is not read.
      params: any pytree of floating arrays.
      batches: the calibration data, an iterable that can be read again, such as a list;
        each batch is handed whole to ``fn``.
      sparsity: fraction of the weights of each block removed, in [0, 1).
      n_m: instead of ``sparsity``, the pair (n, m): n of every m inputs are kept.
      block: columns whose weights are compared with one another, at least 1; with N:M
        a multiple of m.
      damping: what is added to H's diagonal, as a share of its mean; above 0.
      sequential: whether later layers see inputs from the layers pruned before them,
        as published, in the order of first use; otherwise from the dense function.
      prunable: which leaves take part; the others are kept whole.

    Returns:
      The parameters with new weights, pruned ones exactly 0, and the mask; both with
      the structure, shapes and shardings of ``params``. On an Explicit mesh a leaf is
      gathered while its turn lasts.

    Raises:
      ValueError: if neither or both of ``sparsity`` and ``n_m`` are given, an option is
        out of its range, there are no batches or they can be read only once, or a
        prunable leaf has no inputs, or not a multiple of m; outside ``jit``, if its
        inputs are not finite, or their products have no Cholesky factor.
      TypeError: if a leaf is not floating, or ``damping`` no number.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> params = {"w": jnp.array([[1.0], [3.0]])}
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])  # The inputs are always equal.
      >>> params, mask = jp.sparse_gpt(
      ...     lambda p, x: x @ p["w"], params, [x], sparsity=0.5, damping=1e-4
      ... )
      >>> params["w"].round(2)  # The weight that stays does the work of both.
      Array([[0.],
             [4.]], dtype=float32)

    References:
      Frantar & Alistarh, `SparseGPT: Massive Language Models Can be Accurately Pruned
      in One-Shot <https://arxiv.org/abs/2301.00774>`_, ICML 2023, Algorithm 1.
    """
    sparsity, n_m, block = _checked(sparsity, n_m, block, damping)
    _checks.check_callable(fn, "fn", "fn(params, batch) -> outputs")
    _checks.check_floating(params, "params")
    _checks.check_batches(batches)
    flags = select_prunable(params, prunable)
    first = _first(batches)
    capture = layouts_of(fn, params, (first,), flags)
    check_found(capture, flags)
    chosen = capture.layouts
    _check_groups(capture, chosen, n_m)

    leaves, structure = jax.tree.flatten(params)
    masks = [jnp.ones_like(leaf, dtype=bool) for leaf in leaves]
    dense = params
    for leaf, step in _turns(chosen, capture.shapes):
        seen = jax.tree.unflatten(structure, leaves) if sequential else dense
        axis = chosen[leaf].stack or 0
        old = leaves[leaf] if step is None else jnp.take(leaves[leaf], step, axis)
        new, mask = _pruned(
            old,
            _hessian(fn, seen, batches, leaf, step, capture.paths[leaf]),
            chosen[leaf],
            step is not None,
            sparsity,
            n_m,
            block,
            damping,
        )
        if _checks.is_concrete([new]) and not jnp.isfinite(new).all():
            raise ValueError(
                f"The leaf {capture.paths[leaf]} came out with a NaN or an infinity. "
                "If it held none, the products of its inputs have no Cholesky factor "
                f"in float32 with damping={damping}: pass a larger one."
            )
        if step is not None:
            where = (slice(None),) * axis + (step,)
            new = leaves[leaf].at[where].set(new)
            mask = masks[leaf].at[where].set(mask)
        leaves[leaf] = shard_like(new, leaves[leaf])
        masks[leaf] = shard_like(mask, leaves[leaf])
    tree = jax.tree.unflatten
    return tree(structure, leaves), tree(structure, masks)


def _turns(
    chosen: dict[int, Layout], shapes: list[tuple[int, ...]]
) -> Iterator[tuple[int, int | None]]:
    """Leaves, and steps of their stacks, in the order in which the function runs."""
    loops: dict[int, list[int]] = {}
    for leaf, layout in chosen.items():
        loops.setdefault(layout.loop, []).append(leaf)
    for leaves in loops.values():
        stacked = [i for i in leaves if chosen[i].stack is not None]
        yield from ((i, None) for i in leaves if chosen[i].stack is None)
        depth = max((shapes[i][chosen[i].stack or 0] for i in stacked), default=0)
        yield from ((i, step) for step in range(depth) for i in stacked)


def _hessian(
    fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    leaf: int,
    step: int | None,
    path: str,
) -> jax.Array:
    """The sum over the batches of the inputs' products, two by two.

    The caller hands it on at once: what nothing else holds on to is freed.
    """
    total = None
    for batch in batches:
        found = _gram(fn, leaf, step is not None, params, batch, step)
        total = found if total is None else total + found
    if total is None:
        raise ValueError(
            "batches could be read only once; sparse_gpt reads them for each layer. "
            "Pass a list, or an object whose __iter__ starts again."
        )
    if _checks.is_concrete([total]) and not jnp.isfinite(total).all():
        raise ValueError(
            f"The inputs of the leaf {path} hold a NaN or an infinity, or their "
            "squares overflow float32. Look at the batches, or at the layers before it."
        )
    return total


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gram(
    fn: Callable[..., Any], leaf: int, stacked: bool, params: Any, batch: Any, step: Any
) -> jax.Array:
    def products(x: jax.Array) -> jax.Array:
        return jnp.einsum("bti,btj->bij", x, x, precision=jax.lax.Precision.HIGHEST)

    capture = Capture(params, products, lambda i: i == leaf, step if stacked else None)
    return capture(fn, params, (batch,))[leaf]


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def _pruned(
    leaf: jax.Array,
    hessian: jax.Array,
    layout: Layout,
    one: bool,
    sparsity: float | None,
    n_m: tuple[int, int] | None,
    block: int,
    damping: float,
) -> tuple[jax.Array, jax.Array]:
    """Prunes a leaf, or ``one`` step of its stack, which then has lost that axis."""

    def shifted(axes: tuple[int, ...]) -> tuple[int, ...]:
        stack = layout.stack if one else None
        if stack is None:
            return axes
        return tuple(a - (a > stack) for a in axes if a != stack)

    inputs, batch = shifted(layout.inputs), shifted(layout.batch)
    outputs = [i for i in range(leaf.ndim) if i not in (*inputs, *batch)]
    order = [*batch, *outputs, *inputs]
    (whole, laid), (hessian, _) = replicate(leaf), replicate(hessian)
    moved = jnp.transpose(whole, order)
    width = hessian.shape[-1]
    products = hessian.reshape(-1, width, width)
    weights = moved.reshape(len(products), -1, width).astype(jnp.float32)
    run = functools.partial(
        solve, sparsity=sparsity, n_m=n_m, block=block, damping=damping
    )

    def unmoved(x: jax.Array) -> jax.Array:
        back = [order.index(i) for i in range(leaf.ndim)]
        return laid(jnp.transpose(x.reshape(moved.shape), back))

    new, mask = jax.vmap(run)(weights, products)
    return unmoved(new).astype(leaf.dtype), unmoved(mask)


def _first(batches: Iterable[Any]) -> Any:
    if iter(batches) is batches:
        raise ValueError(
            "sparse_gpt reads the batches once for each layer, but was given an "
            "iterator, which can be read only once. Pass list(batches)."
        )
    for batch in batches:
        return batch
    raise ValueError("batches is empty; sparse_gpt needs calibration data.")


def _checked(
    sparsity: Any, n_m: Any, block: Any, damping: Any
) -> tuple[float | None, tuple[int, int] | None, int]:
    """The options as Python's numbers; raises if one is out of its range."""
    if (sparsity is None) == (n_m is None):
        raise ValueError(
            "Pass one of sparsity=0.5 and n_m=(2, 4); got "
            f"sparsity={sparsity} and n_m={n_m}."
        )
    if sparsity is not None:
        _checks.check_sparsity(sparsity)
        sparsity = _checks.static_sparsity(sparsity, "sparse_gpt", "sparsity")
    block = _checks.static_count(block, "block", "columns")
    if n_m is not None:
        if not isinstance(n_m, tuple | list) or len(n_m) != 2:
            raise ValueError(f"n_m must be two numbers, (2, 4) for 2:4; got {n_m!r}.")
        n_m = _checks.check_group(*n_m)
        _checks.static_count(n_m[0], "n", "weights kept in a group", least=0)
        if block % n_m[1]:
            raise ValueError(
                f"block must be a multiple of m, so that no group is cut; got "
                f"block={block} and m={n_m[1]}."
            )
    if not _checks.is_python_number(damping):
        raise TypeError(
            "damping must be a number above 0, such as 0.01; got "
            f"{_checks.described(damping)}."
        )
    if not 0 < damping < math.inf:
        raise ValueError(
            f"damping must be a finite number above 0, such as 0.01; got {damping}."
        )
    return sparsity, n_m, block


def _check_groups(
    capture: Capture, chosen: dict[int, Layout], n_m: tuple[int, int] | None
) -> None:
    if n_m is None:
        return
    for leaf, layout in chosen.items():
        shape = capture.shapes[leaf]
        axis = max(layout.inputs, default=0)  # None are listed where one is all.
        if shape[axis] % n_m[1]:
            raise ValueError(
                f"The leaf {capture.paths[leaf]} of shape {shape} has {shape[axis]} "
                f"inputs along axis {axis}, not a multiple of m={n_m[1]}. Leave it out "
                "with prunable=jp.by_path(pattern)."
            )
