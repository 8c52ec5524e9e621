"""Measures one function from a cold start, for `benchmarks.compile`, and prints JSON.

Run by it in a process of its own, so that nothing is traced or compiled yet.
"""

import dataclasses
import gc
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxprune as jp
from benchmarks import _argsort
from benchmarks._leaves import build
from benchmarks._measure import keep_memory
from benchmarks._models import Problem
from benchmarks._steps import step_fn

SPARSITY = 0.9
EVERY = 100
_MAPS = pathlib.Path("/proc/self/maps")

How = Literal["jit", "eager"]


@dataclasses.dataclass(frozen=True)
class Options:
    """One function of one network, or many masks."""

    network: str = "tiny"
    """A name that `benchmarks._leaves.build` knows."""
    item: str = "global_mask"
    """A name in `MASKS`, `PLAIN`, `SCORES`, `EAGER` or `STEPS`."""
    how: How = "jit"
    """Under jit, or called as it is."""
    many: int = 0
    """If positive, so many different trees get a mask instead, one after the other."""


class Found(NamedTuple):
    """Seconds and memory maps of one function; trace and compile are NaN if eager."""

    trace: float
    compile: float
    first: float
    second: float
    maps: float


class Many(NamedTuple):
    """How many trees have got their masks, the seconds, and the maps held."""

    masked: int
    seconds: float
    maps: float


def measure(options: Options) -> Found:
    """Measures one function of one network."""
    problem = build(options.network)
    if options.item in STEPS:
        tx = STEPS[options.item](_random_mask(problem.params))
        state = (problem.params, jax.eval_shape(tx.init, problem.params))

        def start() -> Any:
            return problem.params, jax.jit(tx.init)(problem.params), *problem.batch

        step = step_fn(problem.loss, tx)
        found = _jitted(step, (*state, *problem.batch), start, donate_argnums=(0, 1))
    else:
        function = (MASKS | PLAIN | SCORES | EAGER)[options.item](problem)
        args = (problem.params, *problem.batch)
        if options.how == "jit":
            found = _jitted(function, args, lambda: args)
        else:
            found = _eager(lambda: function(*args))
    return Found(*found)


def many(options: Options) -> None:
    """Masks many trees that all differ, and prints after each what is held so far."""
    before, start = _maps(), time.perf_counter()
    programs = []
    for i in range(options.many):
        shapes = {"a": (16, 8 + i), "b": (8 + i, 16), "c": (16,)}
        tree = {
            k: np.arange(math.prod(v), dtype="f").reshape(v) for k, v in shapes.items()
        }
        mask_fn: Any = lambda p: jp.global_mask(p, SPARSITY)  # noqa: E731
        if options.how == "jit":
            mask_fn = jax.jit(mask_fn)
            programs.append(mask_fn)  # Held, as by a user who goes on to use it.
        jax.block_until_ready(mask_fn(jax.device_put(tree)))
        seconds = time.perf_counter() - start
        print(json.dumps(Many(i + 1, seconds, _maps() - before)), flush=True)


def _jitted(
    fn: Callable[..., Any], abstract: Any, concrete: Callable[[], Any], **options: Any
) -> tuple[float, ...]:
    before, times = _maps(), [time.perf_counter()]
    lowered = jax.jit(fn, **options).lower(*abstract)
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    held = _maps() - before
    trace, compilation = np.diff(times).tolist()
    args = concrete()
    again = jax.tree.map(jnp.copy, args)  # The step's state is donated.
    first = trace + compilation + _seconds(lambda: compiled(*args))
    return trace, compilation, first, _seconds(lambda: compiled(*again)), held


def _eager(call: Callable[[], Any]) -> tuple[float, ...]:
    before = _maps()
    first, second = _seconds(call), _seconds(call)
    return math.nan, math.nan, first, second, _maps() - before


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _maps() -> float:
    """How many memory maps this process holds; NaN where the system does not tell."""
    gc.collect()
    return len(_MAPS.read_text().splitlines()) if _MAPS.exists() else math.nan


def _random_mask(params: Any) -> Any:
    """A tenth of every matrix, drawn by NumPy: nothing is compiled."""
    draw = np.random.default_rng(0)

    def one(param: jax.Array, flag: bool) -> jax.Array:
        kept = draw.random(param.shape) >= SPARSITY
        return jax.device_put(kept if flag else np.ones(param.shape, bool))

    return jax.tree.map(one, params, jp.matrices(params))


def _sort(params: Any, *_: Any) -> Any:
    """Keeps what reaches the entry at the cut of all matrices, sorted as one."""
    flags = jp.matrices(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(flags), strict=True)
    flat = jnp.concatenate([leaf.ravel() for leaf, flag in pairs if flag])
    cut = jnp.sort(flat)[round(SPARSITY * flat.size)]
    return jax.tree.map(
        lambda p, flag: p >= cut if flag else jnp.ones(p.shape, bool), params, flags
    )


def _argsort_each(params: Any, *_: Any) -> Any:
    """Keeps the first of every matrix, argsorted."""

    def one(param: jax.Array, flag: bool) -> jax.Array:
        if not flag:
            return jnp.ones(param.shape, bool)
        return _argsort.first(param, param.size - round(SPARSITY * param.size))

    return jax.tree.map(one, params, jp.matrices(params))


def _groups_scored(problem: Problem) -> Callable[..., Any]:
    groups = jp.structured.channel_groups(
        problem.apply, problem.params, problem.batch[0]
    )
    if not groups:
        raise ValueError(f"Nothing can be removed, so nothing is scored:\n{groups}")
    return lambda p, *_: jp.structured.group_scores(p, groups)


def _with_mask(fn: Callable[..., Any]) -> Callable[[Problem], Callable[..., Any]]:
    """A function of the problem, the parameters and a mask that is there already."""

    def of(problem: Problem) -> Callable[..., Any]:
        mask = _random_mask(problem.params)
        return lambda params, *_: fn(problem, params, mask)

    return of


# Functions (problem) -> function(params, *batch). Where scores are needed the
# parameters serve: what they are makes no difference.
_FOUR, _BLOCKS = jp.divisible_by(4), jp.divisible_by((4, 4), axis=(-2, -1))
MASKS: dict[str, Callable[[Problem], Callable[..., Any]]] = {
    "global_mask": lambda _: lambda p, *_: jp.global_mask(p, SPARSITY),
    "layerwise_mask": lambda _: lambda p, *_: jp.layerwise_mask(p, SPARSITY),
    "n_m_mask": lambda _: lambda p, *_: jp.n_m_mask(p, 2, 4, prunable=_FOUR),
    "row_mask": lambda _: lambda p, *_: jp.row_mask(p, SPARSITY),
    "block_mask": lambda _: (
        lambda p, *_: jp.block_mask(p, SPARSITY, (4, 4), prunable=_BLOCKS)
    ),
    "iterative_mask": lambda problem: (
        lambda *args: jp.iterative_mask(
            jp.snip(problem.loss), *args, sparsity=SPARSITY, rounds=3
        )
    ),
}
PLAIN = {"sort": lambda _: _sort, "argsort": lambda _: _argsort_each}
SCORES = {"snip": lambda problem: jp.snip(problem.loss)}
EAGER = {
    "summary": _with_mask(lambda _, params, mask: str(jp.summary(params, mask))),
    "apply_mask": _with_mask(lambda _, params, mask: jp.apply_mask(params, mask)),
    "group_scores": _groups_scored,
    "cost": _with_mask(
        lambda problem, params, mask: jp.cost(
            problem.apply, params, problem.batch[0], mask=mask
        )
    ),
}

# Functions (mask) -> optimizer.
_ADAMW = optax.adamw(1e-3)
_SCHEDULE = optax.polynomial_schedule(0.0, SPARSITY, 3, 10 * EVERY)
_TO_TWO = optax.linear_schedule(4, 2, 10 * EVERY)
_MOVING: dict[str, Any] = {"every": EVERY, "until": None}
STEPS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "dense": lambda _: _ADAMW,
    "keep_sparse": lambda mask: optax.chain(_ADAMW, jp.keep_sparse(mask)),
    "sparse": lambda mask: jp.sparse(_ADAMW, mask),
    "gradual": lambda _: optax.chain(_ADAMW, jp.gradual(_SCHEDULE, every=EVERY)),
    "gradual_n_m": lambda _: optax.chain(
        _ADAMW, jp.gradual_n_m(_TO_TWO, 4, every=EVERY, prunable=_FOUR)
    ),
    "rigl": lambda mask: jp.rigl(_ADAMW, mask, **_MOVING),
    "set_training": lambda mask: jp.set_training(
        _ADAMW, mask, key=jax.random.key(0), **_MOVING
    ),
    "granet": lambda _: jp.granet(_ADAMW, _SCHEDULE, **_MOVING),
    "k_starts": lambda _: optax.chain(
        _ADAMW, jp.k_starts(jax.random.key(0), 5, SPARSITY, select_at=EVERY)
    ),
    "dissipating": lambda _: optax.chain(_ADAMW, jp.dissipating(SPARSITY, **_MOVING)),
}


def main(options: Options) -> None:
    """Prints what was found."""
    keep_memory()  # Else the maps are those of arrays, too.
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.float32(1)))  # Starts XLA.
    if options.many:
        many(options)
    else:
        print(json.dumps(measure(options)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
