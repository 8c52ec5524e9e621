"""Runs a jaxpr, and measures what every leaf is multiplied by on the way.

The inputs of a layer are read from the jaxpr: wherever a leaf, rearranged or not, is an
operand of a matrix product or a convolution, the other operand holds them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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

_PAIRS = ("mul", "div", "select_n")  # By a mask, or a scale.

Statistics = dict[int, jax.Array]


class Layout(NamedTuple):
    """Which axes of a leaf a product sums over, and which it runs along in step.

    The others are outputs. ``stack`` is the axis that a scan runs along, if one does;
    it is one of ``batch``. Leaves of one ``loop`` take turns, step by step.
    """

    inputs: tuple[int, ...]
    batch: tuple[int, ...]
    stack: int | None
    loop: int


Measure = Callable[[jax.Array], jax.Array]
"""``measure(x)``: a statistic a row of inputs, float32 (rows, tokens, inputs).

Rows are the steps of the leaf's batch axes. In a `Statistics` their axis becomes as
many axes as the leaf has: of its size along its batch axes, of 1 elsewhere.
"""


class Capture:
    """One run of one function; ``layouts`` is filled in the order of first use."""

    def __init__(
        self,
        params: Any,
        measure: Measure,
        wanted: Callable[[int], bool],
        step: Any = None,
    ) -> None:
        """Measures the wanted leaves: all steps of a scan, or only ``step``, traced."""
        self.paths = _checks.leaf_paths(params)
        self.shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(params)]
        self.measure, self.wanted, self.step = measure, wanted, step
        self.layouts: dict[int, Layout] = {}
        self._loop = 0
        self._loops: list[int] = []

    def __call__(
        self, fn: Callable[..., Any], params: Any, inputs: Sequence[Any]
    ) -> Statistics:
        """Runs ``fn(params, *inputs)`` and returns a statistic a leaf."""
        closed = jax.make_jaxpr(fn)(params, *inputs)
        known = [whole(i, shape) for i, shape in enumerate(self.shapes)]
        args = [*jax.tree.leaves(params), *jax.tree.leaves(tuple(inputs))]
        known += [None] * (len(args) - len(known))
        return self._run(closed, args, known, True)[2]

    def _run(
        self,
        closed: Any,
        args: Sequence[Any],
        paths: Sequence[Path | None],
        active: Any,
    ) -> tuple[list[Any], list[Path | None], Statistics]:
        """Runs a jaxpr; also returns the paths of the outputs, and the statistics."""
        jaxpr, consts = open_jaxpr(closed)
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))
        known = dict(zip(jaxpr.invars, paths, strict=True))
        found: Statistics = {}

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def path(atom: Any) -> Path | None:
            return None if isinstance(atom, Literal) else known.get(atom)

        for eqn in jaxpr.eqns:
            outs, ways, more = self._step(
                eqn, [*map(value, eqn.invars)], [*map(path, eqn.invars)], active
            )
            values.update(zip(eqn.outvars, outs, strict=True))
            known.update(zip(eqn.outvars, ways, strict=True))
            for leaf, statistic in more.items():
                found[leaf] = found[leaf] + statistic if leaf in found else statistic
        return [*map(value, jaxpr.outvars)], [*map(path, jaxpr.outvars)], found

    def _step(
        self, eqn: JaxprEqn, args: list[Any], paths: list[Path | None], active: Any
    ) -> tuple[Sequence[Any], Sequence[Path | None], Statistics]:
        name, at = eqn.primitive.name, eqn.params
        lost = [None] * len(eqn.outvars)
        if name in CALLS or name in CUSTOM_DERIVATIVES:
            return self._run(read_call(eqn), args, paths, active)
        if name == "scan":
            outs, found = self._scan(eqn, args, paths, active)
            return outs, lost, found
        if name == "cond":
            outs, found = self._cond(eqn, args, paths, active)
            return outs, lost, found
        outs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(at))
        outs = outs if eqn.primitive.multiple_results else [outs]
        found: Statistics = {}
        for side, path in enumerate(paths):
            if path is None or not self.wanted(path.leaf):
                continue
            for leaf, statistic in self._use(eqn, args, side, path, active):
                found[leaf] = found[leaf] + statistic if leaf in found else statistic
        on = [path for path in paths if path is not None]
        if len(on) == 1 and len(outs) == 1 and (name in _PAIRS or len(args) == 1):
            same = (name in _PAIRS and paths[0] is on[0]) or name == "mul"
            same = same or (name == "select_n" and len(args) == 3)
            return outs, [on[0] if same else follow(name, at, on[0])], found
        return outs, lost, found

    def _use(
        self, eqn: JaxprEqn, args: list[Any], side: int, path: Path, active: Any
    ) -> Iterator[tuple[int, jax.Array]]:
        """The statistic of a leaf that is an operand of a product."""
        name, at = eqn.primitive.name, eqn.params
        if name == "dot_general":
            summed, batched = at["dimension_numbers"]
            other = args[1 - side]
            theirs, rows = summed[1 - side], batched[1 - side]
            free = [i for i in range(other.ndim) if i not in (*theirs, *rows)]
            x = jnp.transpose(other, (*rows, *free, *theirs))
            ours, mine = summed[side], batched[side]
            sizes = [other.shape[i] for i in free]
        elif name == "conv_general_dilated" and side == 1 and _is_plain(at):
            x, ours = _patches(args[0], args[1], at)
            mine, sizes = (), [x.shape[0]]
        else:
            return
        batch = [atom for i in mine for atom in path.dims[i]]
        inputs = [atom for i in ours for atom in path.dims[i]]
        layout = self._layout(path, batch, inputs)
        x = x.reshape(
            *(a.size for a in batch), math.prod(sizes), *(a.size for a in inputs)
        )
        first, n = _sorted(batch), len(batch)
        order = (*first, n, *(n + 1 + i for i in _sorted(inputs)))
        shape = self.shapes[path.leaf]
        inside = [a for a in layout.batch if a not in path.scans]
        sizes = [n if i in inside else 1 for i, n in enumerate(shape)]
        rows = math.prod(a.size for a in batch)
        width = math.prod(a.size for a in inputs)
        x = jnp.transpose(x, order).astype(jnp.float32).reshape(rows, -1, width)

        def statistic(x: jax.Array) -> jax.Array:
            found = self.measure(x)
            return found.reshape(*sizes, *found.shape[1:])

        if active is True:
            yield path.leaf, statistic(x)
        else:
            empty = jax.eval_shape(statistic, x)
            nothing = lambda x: jnp.zeros(empty.shape, empty.dtype)  # noqa: E731
            yield path.leaf, jax.lax.cond(active, statistic, nothing, x)

    def _layout(self, path: Path, batch: list[Atom], inputs: list[Atom]) -> Layout:
        """Notes which axes are inputs, and raises where two uses disagree."""
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
        stack = path.scans[0] if path.scans else None
        loop = self._loops[0] if self._loops else self._loop
        layout = Layout(tuple(sorted(mine)), tuple(sorted(rows)), stack, loop)
        self._loop += not self._loops
        known = self.layouts.setdefault(path.leaf, layout)
        if known[:3] != layout[:3]:
            raise ValueError(
                f"The leaf {name} of shape {shape} is used in products that sum over "
                f"different axes of it, {known.inputs} and {layout.inputs}, so it has "
                "no one set of inputs. Leave it out with prunable=jp.by_path(...)."
            )
        return known

    def _scan(
        self, eqn: JaxprEqn, args: list[Any], paths: list[Path | None], active: Any
    ) -> tuple[Sequence[Any], Statistics]:
        scan = read_scan(eqn)
        first, last = scan.consts, scan.consts + scan.carry
        ways = [*paths[:first], *[None] * (last - first)]
        ways += [None if p is None else sliced(p) for p in paths[last:]]
        chosen = self.step is not None and not self._loops

        def body(state: Any, step: Any) -> Any:
            carry, total = state
            index, xs = step
            run = [*args[:first], *carry, *xs]
            on = (index == self.step) if chosen else active
            outs, _, found = self._run(scan.body, run, ways, on)
            total = {k: v + found[k] for k, v in total.items()}
            rest = {k: v for k, v in found.items() if spread(k)}
            return (outs[: last - first], total), (outs[last - first :], rest)

        def spread(leaf: int) -> bool:
            own = {w.leaf for w in ways[last:] if w is not None}
            return leaf in own and not chosen

        self._loops.append(self._loop)
        index = jnp.arange(scan.length)
        begin = args[first:last]
        once = jax.tree.map(lambda x: x[0], (index, args[last:]))
        on = (once[0] == self.step) if chosen else active
        empty = jax.eval_shape(
            lambda c, s: self._run(scan.body, [*args[:first], *c, *s[1]], ways, on)[2],
            begin,
            once,
        )
        total = {
            k: jnp.zeros(v.shape, v.dtype) for k, v in empty.items() if not spread(k)
        }
        (carry, total), (outs, rest) = jax.lax.scan(
            body,
            (begin, total),
            (index, args[last:]),
            length=scan.length,
            reverse=scan.reverse,
        )
        self._loops.pop()
        self._loop += not self._loops
        depth = {w.leaf: w.scans[-1] for w in ways[last:] if w is not None}
        for leaf, stacked in rest.items():
            axis = depth[leaf]
            total[leaf] = jnp.moveaxis(jnp.squeeze(stacked, axis + 1), 0, axis)
        return [*carry, *outs], total

    def _cond(
        self, eqn: JaxprEqn, args: list[Any], paths: list[Path | None], active: Any
    ) -> tuple[Sequence[Any], Statistics]:
        def runs(body: Any) -> Callable[..., Any]:
            return lambda *xs: self._run(body, xs, paths[1:], active)[::2]

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


def _sorted(atoms: Sequence[Atom]) -> list[int]:
    """The order in which atoms make up the axes of the leaf."""
    return sorted(range(len(atoms)), key=lambda i: (atoms[i].axis, -atoms[i].stride))


def _is_plain(at: dict[str, Any]) -> bool:
    return at["feature_group_count"] == 1 == at["batch_group_count"]


def _patches(
    images: Any, kernel: Any, at: dict[str, Any]
) -> tuple[jax.Array, tuple[int, ...]]:
    """The inputs of a convolution at each place, (tokens, channels x window)."""
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
    x = jnp.moveaxis(patches, 1, -1)
    return x.reshape(-1, x.shape[-1]), numbers.rhs_spec[1:]
