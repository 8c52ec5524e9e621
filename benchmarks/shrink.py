"""Channels really removed: what a network costs before and after, ours and theirs.

The same fraction of the channels of every group is removed, those of the least
magnitude. "masked" is the network with these channels set to 0, "shrunk" the one
without them; both are jitted, compute their convolutions alike, and take turns on one
batch. The error is the difference of their outputs, relative to the largest.

- theirs: Torch-Pruning, of the same architecture in PyTorch, by magnitude, the same
  fraction of every layer; "masked" is the network before, "shrunk" the one after. It is
  timed right after ours, its two networks in turn likewise.
- graph: the milliseconds to find what goes together: by ours, those of channel_groups
  beyond jax.make_jaxpr; by theirs, those of its dependency graph, which include
  its tracing. Of resnet50, on images seven times as large, only this is measured.

On CPUs, JAX 0.10.2 gives convolutions to YNNPACK, which runs those of some 16,000 pairs
of channels or fewer on one core: a narrow network gains half of what it could. Ours is
compiled without it, unless `--ynnpack` is given; elsewhere
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= does the same.

Times are medians over rounds in milliseconds; the speed-up is the median of the rounds'
ratios. FLOPs are those of the batch as it is computed, a multiply-add counted as 2.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxprune as jp
from benchmarks._measure import Bar, in_turn, ratio, show
from experiments.config import Model
from experiments.models import PUBLISHED, network
from jaxprune import structured

_OURS, _PEER = "ours", "theirs"
_GRAPH_ONLY = "resnet50"
_GRAPH = 0.5  # Seconds that its groups may take beyond tracing.
_DIFFERENCE = 1e-5  # Of the outputs, relative to the largest.
_ABSENT = (
    "Torch-Pruning was not run, since it or torch is not installed: "
    "pip install -e '.[benchmarks]' brings both."
)

Name = Literal["vgg13", "mobilenet_v1", "resnet56", "resnet18", "vit", "resnet50"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to prune and time, and how often."""

    networks: tuple[Name, ...] = (
        "vgg13",
        "mobilenet_v1",
        "resnet56",
        "resnet18",
        "vit",
        "resnet50",
    )
    """Names in experiments.models.PUBLISHED."""
    sparsities: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Fractions of the channels of every group that are removed."""
    convolution: Literal["mixed", "xla", "patches"] = "mixed"
    """How both networks compute convolutions; "mixed" is the fastest on CPUs."""
    ynnpack: bool = False
    """Whether XLA may use YNNPACK on CPUs."""
    batch_size: int = 32
    """Images in the batch."""
    side: int = 32
    """Pixels along a side of the images."""
    rounds: int = 15
    """How often each network is run, in turn with the one it is compared with."""
    peer: bool = True
    """Whether to run Torch-Pruning too, where it is installed."""


class Row(NamedTuple):
    """One network at one sparsity by one tool; what was not measured is NaN or None."""

    network: str
    sparsity: float | None
    tool: str
    graph_seconds: float
    groups: int | None = None
    params: float = math.nan
    flops: float = math.nan
    masked_seconds: float = math.nan
    shrunk_seconds: float = math.nan
    speedup: float = math.nan
    difference: float = math.nan
    bars: tuple[Bar, ...] = ()


class _Subject(NamedTuple):
    """A network to prune: its options, itself in eval mode, its values, its groups."""

    name: Name
    config: Model
    side: int
    fn: Callable[..., jax.Array]
    init: Callable[[], Any]
    groups: structured.Groups
    graph_seconds: float


def measure(options: Options) -> list[Row]:
    """Prunes and times every network."""
    peer = _peer() if options.peer else None
    rows = []
    for name in options.networks:
        subject = _subject(name, options)
        theirs = None
        if peer is not None:
            theirs = peer.graph_seconds(subject.config, subject.side)
        if name == _GRAPH_ONLY:
            rows += _graph_rows(subject, theirs)
            continue
        for ours in _our_rows(subject, options):
            if peer is None or theirs is None:
                rows.append(ours)
                continue
            row = _peer_row(peer, subject, theirs, ours.sparsity or 0.0, options)
            if ours.sparsity:  # At 0 nothing is removed, and the ratio is noise.
                bar = Bar(ours.speedup / row.speedup, 1, at_least=True, name="to peer")
                ours = ours._replace(bars=(*ours.bars, bar))
            rows += [ours, row]
    return rows


def _peer() -> Any:
    """The module that runs Torch-Pruning, or None where that is not installed."""
    if not all(map(importlib.util.find_spec, ("torch", "torch_pruning"))):
        return None
    from benchmarks import _torch_pruning

    return _torch_pruning


def _subject(name: Name, options: Options) -> _Subject:
    """Makes a network and finds its groups, without any values."""
    config = dataclasses.replace(PUBLISHED[name], convolution=options.convolution)
    side = 7 * options.side if name == _GRAPH_ONLY else options.side
    net = network(config, (side, side, 3), 10)

    def fn(state: Any, images: jax.Array) -> jax.Array:
        return net.apply(*state, images, train=False)[0]

    def init() -> Any:
        """Values at which no bias, scale or statistic is what it starts at."""
        state = net.init(jax.random.key(0))
        leaves, structure = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        moved = [
            leaf + jax.random.uniform(key, leaf.shape) / 2 if leaf.ndim == 1 else leaf
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    shapes = jax.eval_shape(init)
    images = jax.ShapeDtypeStruct((options.batch_size, side, side, 3), jnp.float32)
    groups = structured.channel_groups(fn, shapes, images)
    times = in_turn(
        {
            "trace": lambda: jax.make_jaxpr(fn)(shapes, images),
            "groups": lambda: structured.channel_groups(fn, shapes, images),
        },
        5,
    )
    seconds = float(np.median(times["groups"] - times["trace"]))
    return _Subject(name, config, side, fn, jax.jit(init), groups, seconds)


def _graph_rows(subject: _Subject, theirs: float | None) -> list[Row]:
    seconds = subject.graph_seconds
    bars = (Bar(seconds, _GRAPH, name="graph seconds"),)
    ours = Row(subject.name, None, _OURS, seconds, len(subject.groups), bars=bars)
    if theirs is None:
        return [ours]
    return [ours, Row(subject.name, None, _PEER, theirs)]


def _our_rows(subject: _Subject, options: Options) -> Iterator[Row]:
    """Prunes and times a network at one sparsity after the other."""
    jit = functools.partial(jax.jit, compiler_options=_compiler_options(options))
    fn, state, groups = jit(subject.fn), subject.init(), subject.groups
    shape = (options.batch_size, subject.side, subject.side, 3)
    images = jax.random.normal(jax.random.key(2), shape)
    scores = structured.group_scores(jp.magnitude(state), groups, reduce="l2")
    for sparsity in options.sparsities:
        mask = structured.structured_mask(
            scores, groups, state, sparsity, scope="group"
        )
        masked = jp.apply_mask(state, mask)
        small_fn, small = structured.shrink(subject.fn, state, mask, groups)
        run_small = jit(small_fn)
        wanted, found = fn(masked, images), run_small(small, images)
        error = float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
        timed = _timed(
            lambda masked=masked: fn(masked, images),
            lambda run_small=run_small, small=small: run_small(small, images),
            options.rounds,
        )
        params = sum(leaf.size for leaf in jax.tree.leaves(small[0]))
        flops = jp.cost(small_fn, small, images).flops
        sizes = (subject.graph_seconds, len(groups), params, flops)
        bars = (Bar(error, _DIFFERENCE, name="error"),)
        yield Row(subject.name, sparsity, _OURS, *sizes, *timed, error, bars)


def _compiler_options(options: Options) -> dict[str, str]:
    if options.ynnpack or jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_experimental_ynn_fusion_type": ""}


def _peer_row(
    peer: Any, subject: _Subject, seconds: float, sparsity: float, options: Options
) -> Row:
    """Prunes and times the twin of a network."""
    twin = peer.prune(subject.config, subject.side, options.batch_size, sparsity)
    timed = _timed(twin.dense, twin.small, options.rounds)
    return Row(
        subject.name, sparsity, _PEER, seconds, None, twin.params, math.nan, *timed
    )


def _timed(
    masked: Callable[[], Any], shrunk: Callable[[], Any], rounds: int
) -> tuple[float, float, float]:
    """Seconds masked, seconds shrunk, and the speed-up."""
    for warm in (masked, shrunk):
        jax.block_until_ready(warm())
    times = in_turn({"masked": masked, "shrunk": shrunk}, rounds)
    medians = [float(np.median(spent)) for spent in times.values()]
    return medians[0], medians[1], ratio(times["masked"], times["shrunk"])


def main(options: Options) -> None:
    """Prints the table."""
    rows = [_cells(row) for row in measure(options)]
    columns = (
        "network",
        "removed",
        "by",
        "graph",
        "groups",
        "M params",
        "GFLOP",
        "masked",
        "shrunk",
        "speed-up",
        "bar",
    )
    notes = f"{__doc__}\n{_ABSENT}" if _peer() is None else __doc__ or ""
    show("Channels removed by magnitude", columns, rows, notes)


def _cells(row: Row) -> tuple[Any, ...]:
    def cell(value: float, scale: float) -> Any:
        return "" if math.isnan(value) else value * scale

    return (
        row.network,
        "" if row.sparsity is None else f"{row.sparsity:.0%}",
        row.tool,
        cell(row.graph_seconds, 1e3),
        "" if row.groups is None else row.groups,
        cell(row.params, 1e-6),
        cell(row.flops, 1e-9),
        cell(row.masked_seconds, 1e3),
        cell(row.shrunk_seconds, 1e3),
        cell(row.speedup, 1),
        row.bars,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
