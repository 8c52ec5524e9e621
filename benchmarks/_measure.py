"""Times alternatives in turn, and prints what came out as one table.

Machines drift: frequencies change and other programs come and go. So whatever is to be
compared takes turns, call by call.
"""

import ctypes
import dataclasses
import importlib.metadata
import itertools
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

# For mallopt: one arena, nothing mapped by itself, 2 GiB kept, 512 MiB more at a time.
_KEEP = {-8: 1, -4: 0, -1: 2**31 - 1, -2: 2**29}
_LEAST = 3  # Calls that every alternative is timed for, however slow.
_WIDTH = 132  # Columns of the table where the output is not a terminal.


@dataclasses.dataclass(frozen=True)
class Bar:
    """A promise, and what was measured.

    Attributes:
      value: the measurement, a ratio.
      limit: the most that it may be, or the least with ``at_least``.
      at_least: the sense of the limit.
      name: the ratio in words, where the table does not tell.
    """

    value: float
    limit: float
    at_least: bool = False
    name: str = ""

    @property
    def met(self) -> bool:
        """Whether the promise holds."""
        if self.at_least:
            return self.value >= self.limit
        return self.value <= self.limit

    def __str__(self) -> str:
        """Writes the bar as ``argsort / ours 120 >= 60: met``."""
        sense = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "MISSED"
        words = f"{self.name} {_number(self.value)} {sense} {self.limit:g}: {verdict}"
        return words.strip()


def in_turn(
    alternatives: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    seconds: float = float("inf"),
) -> dict[str, np.ndarray]:
    """Times each alternative once a round, in an order drawn anew for every round.

    So none has a place of its own, say beside itself at the rounds' ends, where it
    would find in the caches what it left there.

    Args:
      alternatives: functions without arguments; their results are waited for.
      rounds: how many rounds.
      seconds: an alternative that has taken this long in total, and has been timed
        three times, sits the remaining rounds out.

    Returns:
      For each alternative its times in seconds, one for each round it took part in.
    """
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    order, draw = list(alternatives), random.Random(0)
    with _progress() as progress:
        for _ in progress.track(range(rounds), description="timing in turn"):
            draw.shuffle(order)
            for name in order:
                spent = times[name]
                if len(spent) < _LEAST or sum(spent) < seconds:
                    start = time.perf_counter()
                    jax.block_until_ready(alternatives[name]())
                    spent.append(time.perf_counter() - start)
    return {name: np.array(spent) for name, spent in times.items()}


def keep_memory() -> None:
    """Has glibc keep freed memory, as tcmalloc and the accelerators' allocators do.

    Else a program on the CPU has its temporaries mapped anew on every call where they
    are over 32 MB, and pays for the pages that it touches, more or fewer by the places
    that XLA has found for them. Call it before anything is computed. With other C
    libraries nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _KEEP.items():
            mallopt(option, value)


def ratio(times: np.ndarray, reference: np.ndarray) -> float:
    """The median over the rounds of ``times / reference``."""
    return float(np.median(times / reference))


def show(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], notes: str
) -> None:
    """Prints the table, with notes and the machine below it.

    A cell is a string, a number or a tuple of `Bar`. A line is drawn where the first
    column changes.
    """
    table = Table(
        *[Column(name, justify="right") for name in columns[:-1]],
        Column(columns[-1], no_wrap=True),
        title=title,
    )
    for _, section in itertools.groupby(rows, lambda row: row[0]):
        for row in section:
            table.add_row(*map(_cell, row))
        table.add_section()
    width = None if sys.stdout.isatty() else _WIDTH
    console = Console(width=width, highlight=False)
    console.print(table)
    console.print(f"{notes}\n\n{machine()}", markup=False)


def machine() -> str:
    """Names the versions, the devices and the cores."""
    names = ("jax", "jaxlib", "optax", "flax", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    device = jax.devices()[0]
    return (
        f"Python {platform.python_version()}, {versions}; {jax.device_count()} x "
        f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores "
        f"({platform.machine()}), {platform.system()}."
    )


def _progress() -> Progress:
    """A bar on stderr, drawn between rounds only, so as not to disturb the timing."""
    console = Console(stderr=True)
    return Progress(
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    )


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "\n".join(f"[{'green' if b.met else 'red'}]{b}[/]" for b in value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:.{digits}f}"
