"""Runs an experiment: ``python -m experiments.run digits``, or another config.

Every option of `experiments.config` is a flag: ``digits --help`` lists them.
"""

import json
import pathlib
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import jax
import rich
import rich.progress
import tyro

from experiments import configs, plots, results, rounds, scale, tables
from experiments.compare import Run, compare, plan
from experiments.config import Config, Rounds, Scaled
from experiments.data import Dataset, DatasetMissingError, load, read


def main(args: Sequence[str] | None = None) -> None:
    """Runs one experiment from a command line."""
    args = sys.argv[1:] if args is None else args
    config = tyro.extras.overridable_config_cli(
        _configs(), args=args, prog="python -m experiments.run"
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
        run_scaled(config, dataset, workdir)
    elif isinstance(config, Rounds):
        run_rounds(args[0], config, dataset, workdir)
    else:
        run_comparison(args[0], config, dataset, workdir)


def run_comparison(
    name: str, config: Config, dataset: Dataset, workdir: pathlib.Path
) -> None:
    """Compares the methods; writes and prints what was found."""
    report = run(name, config, dataset, workdir)
    results.write(workdir / "results.json", results.to_json(report))
    results.write(workdir / "accuracy.png", plots.accuracy(report))
    results.write(workdir / "density.png", plots.density(report))
    rich.print(*tables.accuracies(report), sep="\n")
    rich.print(
        f"{report.seconds:.0f} s. Written to {workdir}: results.json, accuracy.png, "
        "density.png"
    )


def run(
    name: str, config: Config, dataset: Dataset, workdir: pathlib.Path
) -> results.Report:
    """Compares the methods behind a progress bar."""
    environment = results.environment()  # As it is when the run begins.
    with _progress() as progress:
        bar = progress.add_task("compiling", total=config.epochs * len(plan(config)))

        def on_epoch(run: Run, epochs: int) -> None:
            words = f"{run.method} {run.sparsity:g} {run.variant}"
            progress.update(bar, advance=epochs, description=words)

        found = compare(config, dataset, workdir / "runs", on_epoch)
    return results.Report(
        name=name,
        config=config,
        environment=environment,
        images=dataset.sizes,
        scored="with BatchNorm in eval mode",
        seconds=sum(result.seconds for result in found),
        results=found,
    )


def run_scaled(config: Scaled, dataset: Dataset, workdir: pathlib.Path) -> None:
    """Trains one network on all devices; goes on with what is in the folder."""
    leads = jax.process_index() == 0
    if leads:
        plain = results.plain_config(config)
        about = {"config": plain, "environment": results.environment()}
        text = json.dumps(about, indent=2, default=str)
        results.write(workdir / f"started-{time.time_ns()}.json", f"{text}\n".encode())
    try:
        found = scale.train(config, dataset, workdir, show=leads)
    except scale.CheckpointError as error:
        sys.exit(str(error))
    if leads:
        text = json.dumps(found.metrics, indent=2)
        results.write(workdir / "outcome.json", f"{text}\n".encode())
        rich.print(found.metrics)
        rich.print(f"Written to {workdir}: metrics.jsonl, outcome.json, checkpoints")


def run_rounds(
    name: str, config: Rounds, dataset: Dataset, workdir: pathlib.Path
) -> None:
    """Prunes in rounds behind a progress bar; writes and prints what was found."""
    environment = results.environment()
    with _progress() as progress:
        total = config.epochs * config.seeds * len(rounds.plan(config))
        bar = progress.add_task("compiling", total=total)

        def on_epoch(row: rounds.Row, seed: int, epochs: int) -> None:
            words = f"{row.measure} {row.level} {row.fraction:g}, seed {seed}"
            progress.update(bar, advance=epochs, description=words)

        found = rounds.run(config, dataset, workdir / "runs", on_epoch)
    written = rounds.report(name, config, dataset, found, environment)
    for file, content in written.files.items():
        results.write(workdir / file, content)
    rich.print(*written.text, sep="\n")
    rich.print(f"Written to {workdir}: {', '.join(written.files)}")


@contextmanager
def _progress() -> Iterator[rich.progress.Progress]:
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<28}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("epochs"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    ) as progress:
        yield progress


def _configs() -> dict[str, tuple[str, Config | Rounds | Scaled]]:
    """Every module of `experiments.configs`: its docstring's first line, its config."""
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    modules = [import_module(f"{configs.__name__}.{name}") for name in names]
    return {
        name: ((module.__doc__ or "").partition("\n")[0], module.config)
        for name, module in zip(names, modules, strict=True)
    }


if __name__ == "__main__":
    main()
