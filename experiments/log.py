"""The output of a run: JSON lines, TensorBoard, a progress bar, a profiler's trace."""

import contextlib
import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import rich.progress

from experiments import records
from experiments.config import Scaled

_COMPILED = 3  # Steps after which nothing compiles, as a rule.


class Log(contextlib.AbstractContextManager):
    """Writes ``metrics.jsonl`` from the first process; every process can be traced.

    A line is an object with a ``step`` and its metrics. Lines that a killed run wrote
    after the checkpoint that it resumes from are dropped.
    """

    def __init__(
        self, config: Scaled, folder: pathlib.Path, first: int, total: int, show: bool
    ):
        """Opens the files; ``first`` of ``total`` steps are done."""
        self._config, self._folder = config, folder
        self._since = time.perf_counter(), first
        begin = min(first + _COMPILED, total)
        self._trace = range(begin, min(begin + config.logging.profile, total))
        self._words = "compiling"
        self._file: Any = None
        self._board: Any = None
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / "metrics.jsonl"
                records.write(path, _until(path, first))
                self._file = stack.enter_context(path.open("a"))
                if config.logging.tensorboard:
                    self._board = stack.enter_context(_board(folder, first))
            self._bar = stack.enter_context(bar("steps", total, first, show))
            self._stack = stack.pop_all()

    def step(self, done: int, loss: jax.Array) -> None:
        """Counts a step; every few steps it waits for the loss and writes it."""
        if self._trace and done == self._trace.start:
            jax.block_until_ready(loss)
            jax.profiler.start_trace(str(self._folder / "profile"))
            self._stack.callback(self._stop)
        if done % self._config.logging.every == 0:
            value = float(jax.device_get(loss))
            now = time.perf_counter()
            then, last = self._since
            rate = (done - last) * self._config.batch_size / (now - then)
            self._since = now, done
            self.write(done, {"loss": value, "images_per_second": rate})
            self._words = f"loss {value:.3f}, {rate:,.0f} images/s"
        self._bar(completed=done, description=self._words)
        if self._trace and done == self._trace.stop:
            jax.block_until_ready(loss)
            self._stop()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def _stop(self) -> None:
        """Ends the trace, once."""
        if self._trace:
            self._trace = range(0)
            jax.profiler.stop_trace()

    def __exit__(self, *error: Any) -> None:
        """Closes the files, and a trace that is not finished."""
        self._stack.close()


def _until(path: pathlib.Path, step: int) -> bytes:
    """The whole lines of a file up to a step."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines:
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    return "".join(kept).encode()


def _board(folder: pathlib.Path, first: int) -> Any:
    """A writer for TensorBoard."""
    try:
        from tensorboardX import SummaryWriter  # Optional.
    except ImportError:
        raise ImportError(
            "--logging.tensorboard needs tensorboardX: pip install "
            "'jaxprune[tensorboard]'."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)


@contextlib.contextmanager
def bar(unit: str, total: int, done: int = 0, show: bool = True) -> Iterator[Any]:
    """A progress bar, updated by ``update(advance=..., description=...)``."""
    columns = (
        rich.progress.TextColumn("{task.description:<32}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(unit),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, disable=not show) as progress:
        task = progress.add_task("compiling", total=total, completed=done)
        yield functools.partial(progress.update, task)
