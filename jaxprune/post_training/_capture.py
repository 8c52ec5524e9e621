"""Runs a jaxpr and measures the inputs that each leaf is multiplied by.

Wherever a leaf, rearranged or not, is an operand of a matrix product or a convolution,
the other operand holds its inputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from jaxprune.core import _checks
from jaxprune.jaxpr._control import (
    CALLS,
    CUSTOM_DERIVATIVES,
    open_jaxpr,
    read_branches,
    read_call,
    read_scan,
)
from jaxprune.post_training._paths import Atom, Path, follow, sliced, whole

_PRODUCTS = ("dot_general", "conv_general_dilated")
_PAIRS = ("mul", "div", "select_n")  # By a mask, or a scale.
_SUMS = ("add", "sub", "max", "min")
ACTIVE = "active"
"""Marks an array that depends on the inputs of the function."""

Way = Path | str | None
"""The kind of an array: a leaf rearranged, `ACTIVE`, or neither (None)."""

Statistics = dict[int, jax.Array]


class Layout(NamedTuple):
    """The axes of a leaf that a product sums over, and its batch axes.

    The remaining axes are outputs. An axis that a scan runs along is a batch axis.
    """

    inputs: tuple[int, ...]
    batch: tuple[int, ...]


Measure = Callable[[jax.Array, int, int], jax.Array]
"""``measure(x, batch, inputs)``: a statistic of a layer's inputs, summed over tokens.

The first ``batch`` axes of x are the leaf's batch axes, which also lead the statistic.
The last ``inputs`` axes number the inputs, and the axes between them are tokens.
"""


class Capture:
    """One run of one function, in which every leaf's inputs are measured.

    ``layouts`` is filled in the order of first use. ``elementwise`` holds leaves that
    scale activations or are added to them. ``shared`` holds leaves with a use that is
    not a product, such as a lookup.
    """

    def __init__(
        self, params: Any, measure: Measure, wanted: Sequence[bool] | None = None
    ) -> None:
        """Measures the wanted leaves, or all."""
        self.paths = _checks.leaf_paths(params)
        self.shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(params)]
        self.ranks = [sum(n > 1 for n in shape) for shape in self.shapes]
        self.measure, self.wanted = measure, wanted or [True] * len(self.shapes)
        self.layouts: dict[int, Layout] = {}
        self.elementwise: set[int] = set()
        self.shared: set[int] = set()
        self._measured: dict[Any, tuple[Any, jax.Array]] = {}

    def __call__(
        self, fn: Callable[..., Any], params: Any, inputs: Sequence[Any]
    ) -> Statistics:
        """Runs ``fn(params, *inputs)`` and returns one statistic per leaf.

        Leaves that multiply the same array share one statistic, the same object.
        """
        closed = jax.make_jaxpr(fn)(params, *inputs)
        leaves, data = jax.tree.leaves(params), jax.tree.leaves(tuple(inputs))
        known: list[Way] = [whole(i, shape) for i, shape in enumerate(self.shapes)]
        return self._run(closed, [*leaves, *data], known + [ACTIVE] * len(data))[2]

    def _run(
        self, closed: Any, args: Sequence[Any], ways: Sequence[Way]
    ) -> tuple[list[Any], list[Way], Statistics]:
        """Runs a jaxpr; also returns what the outputs are, and the statistics."""
        jaxpr, consts = open_jaxpr(closed)
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))
        known = dict(zip(jaxpr.invars, ways, strict=True))
        found: Statistics = {}

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def way(atom: Any) -> Way:
            return None if isinstance(atom, Literal) else known.get(atom)

        for eqn in jaxpr.eqns:
            outs, kinds, more = self._step(
                eqn, [*map(value, eqn.invars)], [*map(way, eqn.invars)]
            )
            values.update(zip(eqn.outvars, outs, strict=True))
            known.update(zip(eqn.outvars, kinds, strict=True))
            _add(found, more)
        return [*map(value, jaxpr.outvars)], [*map(way, jaxpr.outvars)], found

    def _step(
        self, eqn: JaxprEqn, args: list[Any], ways: list[Way]
    ) -> tuple[Sequence[Any], Sequence[Way], Statistics]:
        name, at = eqn.primitive.name, eqn.params
        kind = ACTIVE if ACTIVE in ways else None
        if name in CALLS or name in CUSTOM_DERIVATIVES:
            return self._run(read_call(eqn), args, ways)
        if name == "scan":
            outs, found = self._scan(eqn, args, ways)
            return outs, [ACTIVE] * len(outs), found
        if name == "cond":
            outs, found = self._cond(eqn, args, ways)
            return outs, [kind] * len(outs), found
        outs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(at))
        outs = outs if eqn.primitive.multiple_results else [outs]
        on = [(side, way) for side, way in enumerate(ways) if isinstance(way, Path)]
        kinds: list[Way] = [kind] * len(outs)
        if len(on) != 1:
            return outs, kinds, {}
        ((side, path),) = on
        if name in _PRODUCTS:
            wanted = self.wanted[path.leaf]
            return outs, kinds, self._use(eqn, args, side, path) if wanted else {}
        if name in _PAIRS + _SUMS and not (kind is None and _fits(outs[0], path)):
            lost = name in _PAIRS and _fits(outs[0], path) and _rank(path) > 1
            (self.shared if lost else self.elementwise).add(path.leaf)
        elif name in _PAIRS and (side == 0 or name != "div"):
            kinds = [path]
        elif len(args) == 1:
            kinds = [follow(name, at, path)]
            if kinds == [None] and name == "broadcast_in_dim":
                self.elementwise.add(path.leaf)
        elif kind == ACTIVE or name == "gather":
            self.shared.add(path.leaf)
        return outs, kinds, {}

    def _use(self, eqn: JaxprEqn, args: list[Any], side: int, path: Path) -> Statistics:
        """The statistic of a leaf that is an operand of a product."""
        at, other = eqn.params, args[1 - side]
        if eqn.primitive.name == "dot_general":
            summed, batched = at["dimension_numbers"]
            theirs, rows = summed[1 - side], batched[1 - side]
            if not theirs:
                self.elementwise.add(path.leaf)
                return {}
            ours, mine = summed[side], batched[side]
        elif side == 1 and _is_plain(at):
            other, ours = _patches(args[0], args[1], at)
            theirs, rows, mine = (other.ndim - 1,), (), ()
        else:
            self.shared.add(path.leaf)
            return {}
        batch = [atom for i in mine for atom in path.dims[i]]
        inputs = [atom for i in ours for atom in path.dims[i]]
        layout = self._layout(path, batch, inputs)
        key = id(args[1 - side]), rows, theirs, *batch, None, *inputs
        if eqn.primitive.name == "dot_general" and key in self._measured:
            return {path.leaf: self._measured[key][1]}
        free = [i for i in range(other.ndim) if i not in (*theirs, *rows)]
        x = jnp.transpose(other, (*rows, *free, *theirs))
        first, tokens, last = len(batch), len(free), len(inputs)
        sizes = [a.size for a in batch], x.shape[len(rows) :][:tokens]
        x = _reshaped(x, [*sizes[0], *sizes[1], *(a.size for a in inputs)])
        order = [*_sorted(batch), *range(first, first + tokens)]
        order += [first + tokens + i for i in _sorted(inputs)]
        x = jnp.transpose(x, order).astype(jnp.float32)
        inside = [
            self.shapes[path.leaf][a] for a in layout.batch if a not in path.scans
        ]
        found = self.measure(x, first, last)
        found = _reshaped(found, [*inside, *found.shape[first:]])
        self._measured[key] = args[1 - side], found
        return {path.leaf: found}

    def _layout(self, path: Path, batch: list[Atom], inputs: list[Atom]) -> Layout:
        """Records which axes are inputs, and raises if two uses disagree."""
        name, shape = self.paths[path.leaf], self.shapes[path.leaf]
        mine = {atom.axis for atom in inputs}
        rows = {atom.axis for atom in batch} | set(path.scans)
        free = {a.axis for d in path.dims for a in d if a not in (*batch, *inputs)}
        if mine & rows or mine & free or rows & free:
            axis = min((mine & rows) | (mine & free) | (rows & free))
            raise ValueError(
                f"The leaf {name} of shape {shape} is reshaped so that axis {axis} is "
                "partly an input of a product and partly not. Store it with an axis "
                "for each part, or leave it out with prunable=jp.by_path(...)."
            )
        layout = Layout(tuple(sorted(mine)), tuple(sorted(rows)))
        known = self.layouts.setdefault(path.leaf, layout)
        if known != layout:
            raise ValueError(
                f"The leaf {name} of shape {shape} is used in products that sum over "
                f"different axes of it, {known.inputs} and {layout.inputs}, so it has "
                "no one set of inputs. Leave it out with prunable=jp.by_path(...)."
            )
        return known

    def _scan(
        self, eqn: JaxprEqn, args: list[Any], ways: list[Way]
    ) -> tuple[Sequence[Any], Statistics]:
        scan = read_scan(eqn)
        first, last = scan.consts, scan.consts + scan.carry
        self.shared.update(w.leaf for w in ways[first:last] if isinstance(w, Path))
        inner = [*ways[:first], *[ACTIVE] * (last - first)]
        inner += [self._sliced(w) if isinstance(w, Path) else w for w in ways[last:]]
        own = {w.leaf: w.scans for w in inner[last:] if isinstance(w, Path)}

        def run(carry: Any, xs: Any) -> Any:
            outs, _, found = self._apart(scan.body, [*args[:first], *carry, *xs], inner)
            once = {k: v for k, v in found.items() if k not in own}
            return outs, once, {k: v for k, v in found.items() if k in own}

        def body(state: Any, xs: Any) -> Any:
            carry, total = state
            outs, once, each = run(carry, xs)
            total = jax.tree.map(jnp.add, total, once)
            return (outs[: last - first], total), (outs[last - first :], each)

        begin = args[first:last]
        shapes = jax.eval_shape(run, begin, [x[0] for x in args[last:]])[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (carry, found), (outs, each) = jax.lax.scan(
            body, (begin, zeros), args[last:], length=scan.length, reverse=scan.reverse
        )
        for leaf, stacked in each.items():
            *outer, axis = own[leaf]
            inside = sum(a < axis for a in self.layouts[leaf].batch if a not in outer)
            found[leaf] = jnp.moveaxis(stacked, 0, inside)
        return [*carry, *outs], found

    def _sliced(self, path: Path) -> Path | None:
        step = sliced(path, self.shapes[path.leaf])
        if step is None:
            self.shared.add(path.leaf)
        else:
            self.ranks[path.leaf] = min(self.ranks[path.leaf], _rank(step))
        return step

    def _cond(
        self, eqn: JaxprEqn, args: list[Any], ways: list[Way]
    ) -> tuple[Sequence[Any], Statistics]:
        def runs(body: Any) -> Callable[..., Any]:
            return lambda *xs: self._apart(body, xs, ways[1:])[::2]

        branches = [runs(body) for body in read_branches(eqn)]
        union: dict[int, Any] = {}
        for run in branches:
            union |= jax.eval_shape(run, *args[1:])[1]

        def filled(run: Callable[..., Any]) -> Callable[..., Any]:
            def branch(*xs: Any) -> Any:
                outs, found = run(*xs)
                none = {k: jnp.zeros(v.shape, v.dtype) for k, v in union.items()}
                return outs, none | found

            return branch

        return jax.lax.switch(args[0], [*map(filled, branches)], *args[1:])

    def _apart(
        self, body: Any, args: Sequence[Any], ways: Sequence[Way]
    ) -> tuple[list[Any], list[Way], Statistics]:
        """Runs the body of a loop or a branch, whose statistics stay inside."""
        outside = self._measured
        self._measured = dict(outside)
        try:
            return self._run(body, args, ways)
        finally:
            self._measured = outside


def _add(found: Statistics, more: Statistics) -> None:
    for leaf, statistic in more.items():
        found[leaf] = found[leaf] + statistic if leaf in found else statistic


def _fits(out: Any, path: Path) -> bool:
    """Tells whether an array has the leaf's size, so neither was broadcast."""
    return out.size == math.prod(a.size for dim in path.dims for a in dim)


def _rank(path: Path) -> int:
    return sum(bool(dim) for dim in path.dims)


def _reshaped(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Reshapes an array only if it must be: sharded axes cannot always be merged."""
    return x if x.shape == (*shape,) else x.reshape(shape)


def _sorted(atoms: Sequence[Atom]) -> list[int]:
    """The order in which atoms make up the axes of the leaf."""
    return sorted(range(len(atoms)), key=lambda i: (atoms[i].axis, -atoms[i].stride))


def _is_plain(at: dict[str, Any]) -> bool:
    return at["feature_group_count"] == 1 == at["batch_group_count"]


def _patches(
    images: Any, kernel: Any, at: dict[str, Any]
) -> tuple[jax.Array, tuple[int, ...]]:
    """The inputs of a convolution at each place: the last axis is channels x window."""
    numbers = at["dimension_numbers"]
    window = [kernel.shape[i] for i in numbers.rhs_spec[2:]]
    patches = jax.lax.conv_general_dilated_patches(
        jnp.transpose(images, numbers.lhs_spec),
        window,
        at["window_strides"],
        at["padding"],
        at["lhs_dilation"],
        at["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(patches, 1, -1), numbers.rhs_spec[1:]
