"""Finding the best tenth of all scores: one threshold without a sort, and with one.

Each method takes scores that lie on the device, and gives a mask that keeps a tenth of
them, sparsity 0.9:

- ours: jp.global_mask under jit, on one matrix, and on a tree of leaves of as many
  scores in all; the number kept is exact.
- argsort: jnp.argsort of the flat scores, a mask scattered from the last tenth; exact.
- sort: jnp.sort of the flat scores, those that reach the entry at the cut; ties with it
  are all kept.
- top_k: jax.lax.top_k of the flat scores, a mask scattered from the indices; exact.
- np.partition: NumPy on the host, those that reach the entry at the cut; ties with it
  are all kept. NumPy has no bfloat16: there it partitions a copy in float32.

Times are medians of rounds in which each method runs once, in turn; the slowest sit out
after three. The speed-up is over argsort. Temporaries are those of the compiled program
(for NumPy its copies), in sizes of the scores. The excess is what is kept beyond a
tenth: ties with the entry at the cut.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxprune as jp
from benchmarks._measure import Bar, in_turn, show

_SPARSITY = 0.9
_SHARES = (0.4, 0.3, 0.15, 0.1, 0.04, 0.01)  # The leaves of the tree, of all scores.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    sizes: tuple[int, ...] = (1_000_000, 5_000_000, 25_000_000)
    """How many scores; the bars are those of 25 million, checked on the largest."""
    rounds: int = 15
    """How often each method is timed, in turn with the others."""
    seconds: float = 20.0
    """A method that has taken this long is timed no more, after three calls."""


class Row(NamedTuple):
    """One method on one set of scores; `temporaries` are in sizes of the scores."""

    size: int
    dtype: str
    method: str
    seconds: float
    speedup: float
    temporaries: float
    kept: int
    bars: tuple[Bar, ...]


def measure(options: Options) -> list[Row]:
    """Times every method on every number of scores, in f32 and bf16."""
    rows = []
    for size in sorted(options.sizes):
        for dtype in (jnp.float32, jnp.bfloat16):
            barred = size == max(options.sizes) and dtype == jnp.float32
            rows += _measure_size(size, dtype, options, barred)
    return rows


def _measure_size(size: int, dtype: Any, options: Options, barred: bool) -> list[Row]:
    scores = jax.random.normal(jax.random.key(0), _matrix(size), dtype)
    methods, temporaries = _methods(scores)
    kept = {name: _count(method()) for name, method in methods.items()}
    times = in_turn(methods, options.rounds, seconds=options.seconds)
    medians = {name: float(np.median(spent)) for name, spent in times.items()}
    rows = []
    for name, median in medians.items():
        speedup = medians["argsort"] / median
        bars = ()
        if barred and name.startswith("ours"):
            aim = medians["np.partition"] / median
            bars = (
                Bar(speedup, 60, True, "speed-up"),
                Bar(temporaries[name], 0.05, name="temporaries"),
                Bar(aim, 1, True, "aim, partition / it"),
            )
        key = (size, "f32" if dtype == jnp.float32 else "bf16", name)
        rows.append(Row(*key, median, speedup, temporaries[name], kept[name], bars))
    return rows


def _methods(
    scores: jax.Array,
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """The methods as functions without arguments, compiled, and their temporaries."""
    flat, tree = scores.reshape(-1), _tree(scores)
    removed = round(_SPARSITY * flat.size)
    programs = {
        "ours, matrix": (lambda x: jp.global_mask(x, _SPARSITY), scores),
        f"ours, {len(tree)} leaves": (lambda x: jp.global_mask(x, _SPARSITY), tree),
        "argsort": (lambda x: _scattered(x, jnp.argsort(x)[removed:]), flat),
        "sort": (lambda x: x >= jnp.sort(x)[removed], flat),
        "top_k": (
            lambda x: _scattered(x, jax.lax.top_k(x, x.size - removed)[1]),
            flat,
        ),
    }
    methods: dict[str, Callable[[], Any]] = {}
    temporaries: dict[str, float] = {}
    for name, (fn, argument) in programs.items():
        compiled = jax.jit(fn).lower(argument).compile()
        memory: Any = compiled.memory_analysis()
        temporaries[name] = memory.temp_size_in_bytes / flat.nbytes
        methods[name] = lambda compiled=compiled, argument=argument: compiled(argument)

    def partition() -> np.ndarray:
        host = np.asarray(flat)
        host = host.astype(np.float32, copy=False)
        return host >= np.partition(host, removed)[removed]

    copies = 1 if flat.dtype == np.float32 else 2
    temporaries["np.partition"] = copies * 4 / flat.dtype.itemsize
    return methods | {"np.partition": partition}, temporaries


def _scattered(scores: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.zeros(scores.shape, bool).at[kept].set(True)


def _matrix(size: int) -> tuple[int, int]:
    """The shape nearest to a square of as many entries."""
    columns = next(c for c in range(int(size**0.5), 0, -1) if size % c == 0)
    return size // columns, columns


def _tree(scores: jax.Array) -> dict[str, jax.Array]:
    """The rows dealt to leaves of very different sizes, as layers are."""
    bounds = np.rint(np.cumsum((0, *_SHARES)) * len(scores)).astype(int).tolist()
    pairs = itertools.pairwise(bounds)
    return {f"layer{i}": scores[a:b] for i, (a, b) in enumerate(pairs) if a < b}


def _count(mask: Any) -> int:
    return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(mask))


def main(options: Options) -> None:
    """Prints the table."""
    rows = [
        (
            f"{row.size:,} {row.dtype}",
            row.method,
            row.seconds * 1e3,
            row.speedup,
            row.temporaries,
            f"{row.kept - (row.size - round(_SPARSITY * row.size)):+,}",
            row.bars,
        )
        for row in measure(options)
    ]
    show(
        f"A mask of the best tenth of all scores (sparsity {_SPARSITY})",
        (
            "scores",
            "method",
            "median ms",
            "speed-up",
            "temporaries",
            "excess",
            "bar",
        ),
        rows,
        __doc__ or "",
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
