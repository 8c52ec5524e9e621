"""The cost of a function: parameters and FLOPs, dense and masked, from its jaxpr.

An abstract interpretation. Every variable of the jaxpr carries a `Value`, the density
of the weights that it is computed from. Contractions are counted, and weighted by the
densities of their operands. All other primitives pass densities on or drop them; see
`jaxprune.jaxpr._density`.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from jaxprune.core import _checks
from jaxprune.jaxpr._control import (
    inner_jaxprs,
    open_jaxpr,
    read_branches,
    read_manual_axes,
    read_scan,
)
from jaxprune.jaxpr._density import (
    ACTIVE,
    DATA,
    DENSE,
    ZERO,
    Value,
    contracted,
    densities,
    forgotten,
    given,
    joined,
    moved,
    shape_of,
)
from jaxprune.masks._summary import check_concrete, kept_counts


def cost(fn: Callable[..., Any], params: Any, *inputs: Any, mask: Any = None) -> "Cost":
    r"""Counts the parameters and the floating-point operations of one call.

    Counts the contractions (matrix products and convolutions) in the jaxpr of
    ``fn(params, *inputs)``, at any depth; a multiply-add is 2 FLOPs:

    .. math:: F = \sum_c 2 n_c, \qquad F_\text{sparse} = \sum_c 2 n_c \prod_w d_w ,

    with :math:`n_c` the multiply-adds of contraction :math:`c`, and :math:`d_w` the
    densities (fractions kept) of the weights that it reads.

    *What is counted.* The body of a ``scan`` counts once per iteration, ``shard_map``
    once per shard, and a Pallas kernel once per point of its grid. A ``cond`` counts as
    its most expensive branch, for each of the two numbers. Unused results are not
    counted (the loss in ``jax.grad(loss_fn)``); recomputation under ``jax.checkpoint``
    is. Opaque kernels (``ffi_call``, cuDNN attention, callbacks) count as 0. A
    convolution counts, per spatial axis, kernel size times the smaller of input and
    output size: products with padding count, as in publications, and products with the
    zeros that dilation inserts do not. So a convolution costs the same as its gradient
    with respect to the input or to the kernel.

    *Densities* assume that the kept weights are spread evenly over their leaf. They are
    followed through functions with f(0) = 0, products, reshapes, transpositions,
    slices, gathers, concatenations, the stacked weights of a ``scan``, and into every
    nested jaxpr. A sum of two weights has the sum of their densities, at most 1.
    Anything else computed from weights is dense. If both operands come from weights (a
    low-rank product), their densities multiply, as for independent leaves, and the
    result is dense.

    *Activations* and cotangents are dense, even when scaled by a masked weight. They
    are everything that depends on an input: on floats or integers, or on the rows of a
    weight that an input selects, such as embeddings. Boolean inputs and random keys may
    be masks of weights: multiplied by them, a weight stays a weight. Arrays that ``fn``
    closes over are constants. The gradient with respect to a weight is a dense
    contraction.

    Args:
      fn: any traceable function; it is traced, never run.
      params: the parameters, any pytree of arrays or ``jax.ShapeDtypeStruct``.
      *inputs: the other arguments, arrays or ``jax.ShapeDtypeStruct``. Close over
        anything that is not an array.
      mask: a concrete tree of bool like ``params``, True = kept; None keeps all.

    Returns:
      A `Cost` of Python ints. Without a mask nonzero = params, sparse_flops = flops.

    Raises:
      TypeError: if a leaf of ``params`` is not an array, or ``mask`` is not bool or has
        no values.
      ValueError: if ``mask`` and ``params`` differ in structure or shapes, or if a
        ``while_loop`` (or a kernel with a dynamic grid) contains a contraction, as the
        number of iterations is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"w": jnp.ones((8, 4)), "v": jnp.ones((4, 2))}
      >>> mask = {"w": jnp.arange(32).reshape(8, 4) < 8, "v": jnp.ones((4, 2), bool)}
      >>> jp.cost(apply_fn, params, jax.ShapeDtypeStruct((10, 8), "float32"), mask=mask)
      Cost(params=40, nonzero=16, flops=800, sparse_flops=320)
    """
    sizes = _sizes(params)
    kept = sizes
    if mask is not None:
        _checks.check_mask(mask, params)
        check_concrete(mask, "cost")
        kept = _kept(mask)
    closed = jax.make_jaxpr(fn)(params, *inputs)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals), True)
    weights = [
        Value(Fraction(k, size) if size else Fraction(1), object())
        for k, size in zip(kept, sizes, strict=True)
    ]
    rest = [given(v.aval) for v in jaxpr.invars[len(weights) :]]
    work, _ = _walk(jaxpr, [*weights, *rest])
    return Cost(sum(sizes), sum(kept), work.flops, round(work.sparse))


class Cost(NamedTuple):
    """The cost of one call of a function.

    Attributes:
      params: the number of entries of all leaves of the parameters.
      nonzero: the number of those that the mask keeps.
      flops: the floating-point operations of the contractions.
      sparse_flops: the operations on kept weights, rounded to a whole number.
    """

    params: int
    nonzero: int
    flops: int
    sparse_flops: int


class _Work(NamedTuple):
    flops: int
    sparse: Fraction


_NO_WORK = _Work(0, Fraction(0))


def _walk(jaxpr: Jaxpr, inputs: Sequence[Value]) -> tuple[_Work, list[Value]]:
    """Adds up the work of a jaxpr's equations, and follows densities to its outputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, Literal):
            return ZERO if np.ndim(atom.val) == 0 and atom.val == 0 else DENSE
        return known.get(atom, DENSE)

    flops, sparse = _NO_WORK
    for eqn in jaxpr.eqns:
        work, outputs = _equation(eqn, [read(atom) for atom in eqn.invars])
        flops, sparse = flops + work.flops, sparse + work.sparse
        known.update(zip(eqn.outvars, outputs, strict=True))
    return _Work(flops, sparse), [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    name = eqn.primitive.name
    if name in _CONTRACTIONS:
        flops = 2 * _CONTRACTIONS[name](eqn)
        share = math.prod((v.density for v in values[:2]), start=Fraction(1))
        return _Work(flops, flops * share), [contracted(values)] * len(eqn.outvars)
    if name in _CONTROL:
        return _CONTROL[name](eqn, values)
    if inner_jaxprs(eqn):
        return _call(eqn, values)
    return _NO_WORK, densities(eqn, values)


def _dot_general(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return math.prod(out) * math.prod(lhs[i] for i in contracted)


def _ragged_dot(eqn: JaxprEqn) -> int:
    # Each row of the left meets the matrix of one group.
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    lhs, rhs = map(shape_of, eqn.invars[:2])
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return math.prod(lhs) * math.prod(n for i, n in enumerate(rhs) if i not in shared)


def _convolution(eqn: JaxprEqn) -> int:
    lhs_spec, rhs_spec, out_spec = eqn.params["dimension_numbers"]
    lhs, rhs, out = map(shape_of, [*eqn.invars, *eqn.outvars])
    channels = out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]
    axes = zip(lhs_spec[2:], rhs_spec[2:], out_spec[2:], strict=True)
    return channels * math.prod(min(lhs[i], out[o]) * rhs[k] for i, k, o in axes)


_CONTRACTIONS = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "scaled_dot": _dot_general,
}


def _scan(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    scan = read_scan(eqn)
    body, length = open_jaxpr(scan.body)[0], scan.length
    consts, carry, xs = scan.split(values)
    carry, xs = moved(carry), moved(xs)
    while True:  # A carry keeps its density if the body never raises it.
        work, outputs = _walk(body, [*consts, *carry, *xs])
        after = outputs[: len(carry)]
        settled = [_settled(c, o) for c, o in zip(carry, after, strict=True)]
        if settled == carry:
            break
        carry = settled
    work = _Work(length * work.flops, length * work.sparse)
    return work, [*carry, *moved(outputs[len(carry) :])]


def _settled(before: Value, after: Value) -> Value:
    """What is known of a carry, given what is known before and after an iteration."""
    for kind in (ACTIVE, DATA):
        if kind in (before, after):
            return kind
    kept = after.density <= before.density and (before is not ZERO or after is ZERO)
    return before if kept else DENSE


def _cond(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    branches = [_walk(open_jaxpr(b)[0], values[1:]) for b in read_branches(eqn)]
    works = [work for work, _ in branches]
    work = _Work(max(w.flops for w in works), max(w.sparse for w in works))
    outputs = zip(*[outputs for _, outputs in branches], strict=True)
    return work, [joined(alternatives) for alternatives in outputs]


def _while(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    return _refuse_work(eqn, values, "a while_loop")


def _pallas_call(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(n, int | np.integer) for n in grid):
        return _refuse_work(eqn, values, "a Pallas kernel with a dynamic grid")
    return _repeated(eqn, values, math.prod(map(int, grid)))


def _shard_map(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    sizes = [eqn.params["mesh"].shape[axis] for axis in read_manual_axes(eqn)]
    return _repeated(eqn, values, math.prod(sizes))


def _repeated(
    eqn: JaxprEqn, values: list[Value], times: int
) -> tuple[_Work, list[Value]]:
    work, outputs = _call(eqn, values)
    return _Work(times * work.flops, times * work.sparse), outputs


_CONTROL = {
    "cond": _cond,
    "pallas_call": _pallas_call,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
}


def _call(eqn: JaxprEqn, values: list[Value]) -> tuple[_Work, list[Value]]:
    """Walks the jaxprs in an equation's parameters, for any primitive."""
    flops, sparse = _NO_WORK
    outputs = [forgotten(values)] * len(eqn.outvars)
    for jaxpr in inner_jaxprs(eqn):
        same = _ranks(jaxpr.invars) == _ranks(eqn.invars)
        inputs = values if same else [DENSE] * len(jaxpr.invars)
        work, inner = _walk(jaxpr, inputs)
        flops, sparse = flops + work.flops, sparse + work.sparse
        if len(inner) == len(outputs):
            outputs = inner
    return _Work(flops, sparse), outputs


def _refuse_work(
    eqn: JaxprEqn, values: list[Value], where: str
) -> tuple[_Work, list[Value]]:
    """Raises if an equation that runs an unknown number of times has work to do."""
    work = [_walk(j, [DENSE] * len(j.invars))[0] for j in inner_jaxprs(eqn)]
    if any(w.flops for w in work):
        raise ValueError(
            f"fn has a contraction inside {where}, and nothing says how often it runs. "
            "Write the loop as jax.lax.scan, or as a fori_loop whose bounds are Python "
            "ints; or take cost of the loop's body alone and multiply it."
        )
    return _NO_WORK, [forgotten(values)] * len(eqn.outvars)


def _ranks(atoms: Sequence[Any]) -> list[int]:
    return [len(shape_of(atom)) for atom in atoms]


def _kept(mask: Any) -> list[int]:
    """Counts the kept weights of every leaf; on the host, without compiling."""
    leaves = jax.tree.leaves(mask)
    if _checks.on_host(mask):
        return [int(np.count_nonzero(np.asarray(leaf))) for leaf in leaves]
    return kept_counts(mask)


def _sizes(params: Any) -> list[int]:
    """Lists the number of entries of every leaf."""
    sizes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float):
            raise TypeError(
                f"params: the leaf {_checks.path_str(path)} is a "
                f"{type(leaf).__name__}, not an array. Split it off and close over it: "
                "nnx.split(model, nnx.Param, ...), equinox.partition(model, "
                "equinox.is_array)."
            )
        sizes.append(math.prod(np.shape(leaf)))
    return sizes
