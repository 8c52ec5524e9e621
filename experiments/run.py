"""Runs an experiment: ``python -m experiments.run digits``, or another config.

Every option of `experiments.config` is a flag: ``digits --help`` lists them.
"""

import pathlib
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import jax
import rich
import rich.progress
import tyro

from experiments import comparison, configs, gradient_flow, mesh, records, report
from experiments.config import Config, Rounds, Scaled
from experiments.data import Dataset, DatasetMissingError, load, read


def main(args: Sequence[str] | None = None) -> None:
    """Runs one experiment from a command line."""
    args = sys.argv[1:] if args is None else args
    config = tyro.extras.overridable_config_cli(
        find_configs(), args=args, prog="python -m experiments.run"
    )
    workdir = config.workdir or pathlib.Path("runs", args[0])
    if isinstance(config, Scaled) and config.parallel.distributed:
        try:
            jax.distributed.initialize()  # Before anything else asks for a device.
        except ValueError as error:
            sys.exit(
                f"--parallel.distributed finds no other processes ({error}): it is for "
                "those that SLURM, Open MPI or a TPU slice has started."
            )
    try:
        dataset = (read if isinstance(config, Scaled) else load)(config.data)
    except DatasetMissingError as error:
        sys.exit(str(error))
    if len(dataset.train.labels) < config.batch_size:
        sys.exit(
            f"batch_size={config.batch_size}, but there are only "
            f"{len(dataset.train.labels)} images to train on: lower --batch-size."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if isinstance(config, Scaled):
        run_mesh(config, dataset, workdir)
    elif isinstance(config, Rounds):
        run_gradient_flow(args[0], config, dataset, workdir)
    else:
        run_comparison(args[0], config, dataset, workdir)


def run_comparison(
    name: str, config: Config, dataset: Dataset, workdir: pathlib.Path
) -> None:
    """Compares methods behind a progress bar; writes and prints the results."""
    environment = records.environment()  # As it is when the run begins.
    with _bar(config.epochs * len(comparison.plan(config))) as advance:
        found = comparison.compare(
            config,
            dataset,
            workdir / "runs",
            lambda run, n: advance(n, f"{run.method} {run.sparsity:g} {run.variant}"),
        )
    content = records.summary(name, config, environment, dataset, found)
    _publish(workdir, report.comparison(content))


def run_gradient_flow(
    name: str, config: Rounds, dataset: Dataset, workdir: pathlib.Path
) -> None:
    """Prunes in rounds behind a progress bar; writes and prints the results."""
    environment = records.environment()
    rows = len(gradient_flow.plan(config))
    with _bar(config.epochs * config.seeds * rows) as advance:
        found = gradient_flow.run(
            config,
            dataset,
            workdir / "runs",
            lambda row, seed, n: advance(
                n, f"{row.measure} {row.level} {row.fraction:g}, seed {seed}"
            ),
        )
    claims = report.claims(records.plain_config(config), found)
    content = records.summary(name, config, environment, dataset, found, claims=claims)
    _publish(workdir, report.rounds(content))


def run_mesh(config: Scaled, dataset: Dataset, workdir: pathlib.Path) -> None:
    """Trains one network on all devices, from where the folder's run was."""
    leads = jax.process_index() == 0
    if leads:
        plain, environment = records.plain_config(config), records.environment()
        about = {"config": plain, "environment": environment}
        records.save(workdir / f"started-{time.time_ns()}.json", about)
    try:
        found = mesh.train(config, dataset, workdir, show=leads)
    except mesh.CheckpointError as error:
        sys.exit(str(error))
    if leads:
        records.save(workdir / "outcome.json", found.metrics)
        rich.print(found.metrics)
        rich.print(f"Written to {workdir}: metrics.jsonl, outcome.json, checkpoints")


def _publish(workdir: pathlib.Path, shown: report.Shown) -> None:
    for file, content in shown.files.items():
        records.write(workdir / file, content)
    rich.print(*shown.text, sep="\n")
    rich.print(f"Written to {workdir}: {', '.join(shown.files)}")


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar over epochs, and how to advance it."""
    columns = (
        rich.progress.TextColumn("{task.description:<28}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("epochs"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task("compiling", total=total)
        yield lambda epochs, words: progress.update(
            task, advance=epochs, description=words
        )


def find_configs() -> dict[str, tuple[str, Config | Rounds | Scaled]]:
    """Every module of `experiments.configs`: its docstring's first line, its config."""
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    modules = [import_module(f"{configs.__name__}.{name}") for name in names]
    return {
        name: ((module.__doc__ or "").partition("\n")[0], module.config)
        for name, module in zip(names, modules, strict=True)
    }


if __name__ == "__main__":
    main()
