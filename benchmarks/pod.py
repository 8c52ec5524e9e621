"""Pruning at the scale of a pod, on paper and in the compiler: nothing is allocated.

A decoder-only transformer of 8 or 70 billion parameters is laid out on 64, 256 or 512
faked CPU devices, rows over "data" and columns over "model", and these programs are
compiled ahead of time: the SNIP score, global_mask of the scores (on a mesh of Auto and
one of Explicit axes), an adamw step as it is, with keep_sparse behind it, and as rigl
does it; and one block of prune_blocks by Wanda and by SparseGPT, statistics and solvers
in one program. Each mesh has a process of its own.

Memory is a device's: arguments, results that are not donated, and temporaries. Sent is
what a device puts into collectives or takes out of them, loops counted by their turns,
a search among ties at its longest; "s" are the seconds of the compilation.

The bars: the selection sends under 1 MB; the masked step takes under 4 % more memory
than the dense one and the mask's byte a weight; nothing is gathered beyond what the
dense step gathers (no score and no mask), and no mask is sent at all.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import tyro

from benchmarks._apart import run_apart
from benchmarks._hlo import Collective, total
from benchmarks._measure import Bar, show


@dataclasses.dataclass(frozen=True)
class Options:
    """What to lay out on what."""

    models: tuple[str, ...] = ("8b", "70b")
    """Names in `benchmarks._transformer.SIZES`."""
    devices: tuple[int, ...] = (64, 256, 512)
    """How many faked devices."""
    model_shards: int = 8
    """How many of them share a layer's columns."""
    out: str = ""
    """A file for everything that was found, as JSON."""


class Row(NamedTuple):
    """One program on one mesh; bytes are a device's."""

    problem: str
    program: str
    seconds: float
    arguments: int
    temporaries: int
    sent: int
    bars: tuple[Bar, ...]
    found: tuple[Collective, ...]


def measure(options: Options) -> list[Row]:
    """Compiles everything, one process after the other."""
    runs = [
        run(model, devices, options.model_shards)
        for model in options.models
        for devices in options.devices
    ]
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(runs, indent=1) + "\n")
    return [row for found in runs for row in rows_of(found)]


def run(model: str, devices: int, model_shards: int, *more: str) -> dict[str, Any]:
    """Compiles the programs for one mesh, in a process that has so many devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    return run_apart(
        "benchmarks._pod",
        *("--model", model, "--devices", str(devices)),
        *("--model-shards", str(model_shards), *more),
        environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of one mesh, with their bars."""
    programs = result["programs"]
    found = {
        name: tuple(Collective(**c) for c in program["collectives"])
        for name, program in programs.items()
    }
    dense = programs["dense step"]
    mesh = " x ".join(str(n) for n in result["mesh"].values())
    problem = f"{result['model']}, {result['weights'] / 1e9:.1f} G, {mesh}"

    def bars(name: str) -> tuple[Bar, ...]:
        if name in ("dense step", "snip") or name.endswith("a block"):
            return ()
        base = () if "global_mask" in name else found["dense step"]
        beyond = total(found[name], "all-gather") - total(base, "all-gather")
        masks = sum(c.bytes for c in found[name] if c.dtype == "pred")
        limits = (
            Bar(beyond / 1e6, 0, name="gathered, MB"),
            Bar(masks / 1e6, 0, name="masks sent, MB"),
        )
        if "global_mask" in name:
            return (Bar(total(found[name]) / 1e6, 1, name="sent, MB"), *limits)
        if name == "masked step":
            more = (
                _memory(programs[name]) - _memory(dense) - result["weights_per_device"]
            )
            share = 1 + more / _memory(dense)
            return (Bar(share, 1.04, name="memory to dense"), *limits)
        return limits

    return [
        Row(
            problem,
            name,
            program["seconds"],
            program["arguments"],
            program["temporaries"],
            total(found[name]),
            bars(name),
            found[name],
        )
        for name, program in programs.items()
    ]


def _memory(program: Mapping[str, Any]) -> int:
    return sum(program[part] for part in ("arguments", "outputs", "temporaries"))


def main(options: Options) -> None:
    """Prints the table."""
    rows = [
        (
            row.problem,
            row.program,
            row.seconds,
            row.arguments / 1e6,
            row.temporaries / 1e6,
            row.sent / 1e6,
            "\n".join(
                f"{c.kind} {c.dtype}: {c.calls} calls, {c.bytes / 1e6:.3f} MB"
                for c in row.found
            ),
            row.bars,
        )
        for row in measure(options)
    ]
    show(
        "Programs of a pod, a device (MB)",
        ("model", "program", "s", "arguments", "temporaries", "sent", "of it", "bar"),
        rows,
        __doc__ or "",
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
