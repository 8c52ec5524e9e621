"""How pruning scales: over devices, and on an accelerator in images a second.

Devices: the SNIP score and global_mask of a transformer, compiled for 1, 2, 4 and 8
faked devices, parameters and examples cut over all of them and the batch the same. Work
and communication are a device's, as the compiler counts them (a loop's body once, on
any number of devices); "of ideal" is the work of one device over the number of devices,
to what each does: 1 is perfect. Faked devices share the cores of the host, so there is
no speed in this table.

Throughput, on an accelerator or with --throughput: a training step (SGD with momentum,
BatchNorm on running statistics) of each network dense, masked (all weights there, the
channels at 0, keep_sparse behind the optimizer) and shrunk (half the channels of every
group really removed), in images a second; "of peak" is the share of the device's
published bfloat16 peak, by the contractions of the step. Then four seeds: vmapped into
one step, and one after the other.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxprune as jp
from benchmarks import pod
from benchmarks._hlo import Collective, total
from benchmarks._measure import in_turn, show
from experiments.config import Model
from experiments.models import PUBLISHED, network
from jaxprune import structured

_REMOVED = 0.5  # Of the channels of every group.
_PEAKS = {  # Dense bfloat16 TFLOP/s, from the makers' data sheets, by device_kind.
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5p": 459,
    "TPU v6 lite": 918,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile, and what to time."""

    model: str = "125m"
    """A name in `benchmarks._transformer.SIZES`."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Faked devices; the batch has as many sequences as the most of them."""
    throughput: bool = jax.default_backend() != "cpu"
    """Whether to time the networks."""
    networks: tuple[str, ...] = ("resnet56", "vgg13")
    """Names in experiments.models.PUBLISHED."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """What to compute in."""
    batch_size: int = 256
    """Images in a step."""
    side: int = 32
    """Pixels along a side of the images."""
    seeds: int = 4
    """How many networks are trained at once."""
    rounds: int = 20
    """How often each step is timed, in turn with the others."""


class Scaled(NamedTuple):
    """One program on so many devices; work and bytes are a device's."""

    program: str
    devices: int
    flops: float
    touched: float
    sent: int
    ideal: float


class Speed(NamedTuple):
    """One kind of training step."""

    network: str
    dtype: str
    step: str
    images: float
    of_peak: float


def scaling(options: Options) -> list[Scaled]:
    """Compiles the score and the selection for every number of devices."""
    more = ["--batch", str(max(options.devices)), "--programs", "snip", "global_mask"]
    runs = [pod.run(options.model, n, 1, *more) for n in options.devices]
    rows = []
    for name in ("snip", "global_mask"):
        programs = [result["programs"][name] for result in runs]
        measure = "flops" if name == "snip" else "bytes"
        whole = options.devices[0] * programs[0][measure]
        for n, program in zip(options.devices, programs, strict=True):
            sent = total([Collective(**c) for c in program["collectives"]])
            ideal = whole / (n * program[measure])
            row = Scaled(name, n, program["flops"], program["bytes"], sent, ideal)
            rows.append(row)
    return rows


def throughput(options: Options) -> list[Speed]:
    """Times the training steps of every network."""
    return [
        row
        for name in options.networks
        for dtype in options.dtypes
        for row in _speeds(name, PUBLISHED[name], jnp.dtype(dtype), options)
    ]


def _speeds(name: str, config: Model, dtype: Any, options: Options) -> Iterator[Speed]:
    net = network(config, (options.side, options.side, 3), 10)
    shape = options.batch_size, options.side, options.side, 3
    images = jax.random.normal(jax.random.key(1), shape, dtype)
    labels = jax.random.randint(jax.random.key(2), shape[:1], 0, 10)

    def fn(state: Any, images: jax.Array) -> jax.Array:
        return net.apply(*state, images, train=False)[0]

    def init(key: jax.Array) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), net.init(key))

    state = jax.jit(init)(jax.random.key(0))
    groups = structured.channel_groups(fn, state, images)
    scores = structured.group_scores(jp.magnitude(state), groups, reduce="l2")
    mask = structured.structured_mask(scores, groups, state, _REMOVED, scope="group")
    small_fn, small = structured.shrink(fn, state, mask, groups)
    sgd = optax.sgd(0.1, momentum=0.9)
    held = optax.chain(sgd, jp.keep_sparse(mask[0]))
    one = {
        "dense": (_step(fn, sgd, images, labels), _start(sgd, state)),
        "masked": (_step(fn, held, images, labels), _start(held, state)),
        "shrunk": (_step(small_fn, sgd, images, labels), _start(sgd, small)),
    }
    many = jax.vmap(lambda key: _start(sgd, init(key)))(
        jax.random.split(jax.random.key(3), options.seeds)
    )
    lanes = [jax.tree.map(lambda x, i=i: x[i], many) for i in range(options.seeds)]
    dense = one["dense"][0]
    compiled = {k: jax.jit(step) for k, (step, _) in one.items()}
    together = jax.jit(jax.vmap(dense))
    calls: dict[str, Callable[[], Any]] = {
        k: lambda k=k: compiled[k](one[k][1]) for k in one
    }
    vmapped, in_order = f"{options.seeds} seeds, vmapped", f"{options.seeds} in turn"
    calls[vmapped] = lambda: together(many)
    calls[in_order] = lambda: [compiled["dense"](lane) for lane in lanes]
    for call in calls.values():
        jax.block_until_ready(call())
    times = in_turn(calls, options.rounds)
    for kind, spent in times.items():
        lane_count = options.seeds if kind in (vmapped, in_order) else 1
        step, start = one.get(kind, one["dense"])
        flops = lane_count * jp.cost(step, start).flops
        seconds = float(np.median(spent))
        images_ = lane_count * options.batch_size / seconds
        yield Speed(name, dtype.name, kind, images_, flops / seconds / _peak())


def _start(tx: optax.GradientTransformation, state: Any) -> Any:
    return state, tx.init(state[0])


def _step(fn: Any, tx: Any, images: jax.Array, labels: jax.Array) -> Any:
    def step(carry: Any) -> Any:
        (params, statistics), opt_state = carry

        def loss(params: Any) -> jax.Array:
            logits = fn((params, statistics), images).astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), statistics), opt_state

    return step


def _peak() -> float:
    """The device's peak in FLOP/s, or NaN where it is not known."""
    kind = jax.devices()[0].device_kind
    known = [peak for name, peak in _PEAKS.items() if name in kind]
    return known[0] * 1e12 if known else float("nan")


def main(options: Options) -> None:
    """Prints the tables."""
    rows = [
        (r.program, r.devices, r.flops / 1e9, r.touched / 1e6, r.sent / 1e6, r.ideal)
        for r in scaling(options)
    ]
    columns = ("program", "devices", "GFLOP", "MB touched", "MB sent", "of ideal")
    show(f"Strong scaling, {options.model}, a device", columns, rows, "")
    if options.throughput:
        speeds = [
            (f"{r.network}, {r.dtype}", r.step, r.images, f"{r.of_peak:.1%}")
            for r in throughput(options)
        ]
        columns = ("network", "step", "images/s", "of peak")
        show("Training steps", columns, speeds, "")
    print(__doc__)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
