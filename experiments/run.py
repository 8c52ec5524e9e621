"""Runs an experiment: ``python -m experiments.run digits``, or another config.

Every option of `experiments.config` is a flag: ``digits --help`` lists them.
"""

import pathlib
import pkgutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
import rich
import tyro
from rich.markdown import Markdown

from experiments import (
    comparison,
    configs,
    gradient_flow,
    language,
    mesh,
    records,
    report,
)
from experiments.config import Config, Language, Rounds, Scaled, Training
from experiments.data import Dataset, DatasetMissingError, load, read
from experiments.log import bar


def main(args: Sequence[str] | None = None) -> None:
    """Runs one experiment from a command line."""
    args = sys.argv[1:] if args is None else args
    config = tyro.extras.overridable_config_cli(
        find_configs(), args=args, prog="python -m experiments.run"
    )
    workdir = config.workdir or pathlib.Path("runs", args[0])
    try:
        PROGRAMS[type(config)](args[0], config, workdir)
    except (
        DatasetMissingError,
        language.ModelMissingError,
        mesh.CheckpointError,
    ) as error:
        sys.exit(str(error))


def run_and_report(name: str, config: Any, workdir: pathlib.Path) -> None:
    """Compares methods, or prunes in rounds; writes and prints the results."""
    program: Any = comparison if isinstance(config, Config) else gradient_flow
    dataset = _dataset(load, config, workdir)
    environment = records.environment()  # Before the run.
    with bar("epochs", program.epochs(config)) as show:
        found = program.run(
            config,
            dataset,
            workdir / "runs",
            lambda words, epochs: show(advance=epochs, description=words),
        )
    content = records.summary(name, config, environment, dataset, found)
    _publish(content | report.conclusions(content), workdir)


def _publish(content: dict[str, Any], workdir: pathlib.Path) -> None:
    files, parts = report.files(content), report.parts(content)
    for file, data in files.items():
        records.write(workdir / file, data)
    console = rich.get_console()
    if not console.is_terminal:
        console.width = 160  # Files and pipes have no width.
    for part in parts:
        console.print(Markdown(part) if isinstance(part, str) else part)
    rich.print(f"Written to {workdir}: {', '.join(files)}")


def run_language(name: str, config: Language, workdir: pathlib.Path) -> None:
    """Prunes a language model; writes and prints the results."""
    environment = records.environment()  # Before the run.
    if config.quick:
        config = language.shortened(config)
    with bar("rows", len(language.plan(config))) as show:
        found = language.run(
            config,
            workdir / "runs",
            lambda done, doing: show(completed=done, description=doing),
        )
    content = {
        "name": name,
        "config": records.plain_config(config),
        "environment": environment,
        "seconds": sum(row["all_seconds"] for row in found),
        "results": found,
    }
    _publish(content, workdir)


def run_mesh(name: str, config: Scaled, workdir: pathlib.Path) -> None:
    """Trains one network on all devices, from where the run in the folder stopped."""
    del name
    if config.parallel.distributed:
        try:
            jax.distributed.initialize()  # Before anything else asks for a device.
        except ValueError as error:
            sys.exit(
                f"--parallel.distributed finds no other processes ({error}): use it "
                "under SLURM, Open MPI or on a TPU slice."
            )
    dataset = _dataset(read, config, workdir)
    leads = jax.process_index() == 0
    if leads:
        plain, environment = records.plain_config(config), records.environment()
        about = {"config": plain, "environment": environment}
        records.save(workdir / f"started-{time.time_ns()}.json", about)
    _, _, metrics = mesh.train(config, dataset, workdir, show=leads)
    if leads:
        records.save(workdir / "outcome.json", metrics)
        rich.print(metrics)
        rich.print(f"Written to {workdir}: metrics.jsonl, outcome.json, checkpoints")


PROGRAMS: dict[type, Callable[..., None]] = {
    Config: run_and_report,
    Language: run_language,
    Rounds: run_and_report,
    Scaled: run_mesh,
}


def _dataset(
    loader: Callable[..., Dataset], config: Training, workdir: pathlib.Path
) -> Dataset:
    """Loads the data, and makes the folder if there are enough images."""
    dataset = loader(config.data)
    if dataset.sizes["train"] < config.batch_size:
        sys.exit(
            f"batch_size={config.batch_size}, but there are only "
            f"{dataset.sizes['train']} images to train on: lower --batch-size."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    return dataset


def find_configs() -> dict[str, tuple[str, Any]]:
    """Every module of `experiments.configs`: its docstring's first line, its config."""
    names = [module.name for module in pkgutil.iter_modules(configs.__path__)]
    modules = [import_module(f"{configs.__name__}.{name}") for name in names]
    return {
        name: ((module.__doc__ or "").partition("\n")[0], module.config)
        for name, module in zip(names, modules, strict=True)
    }


if __name__ == "__main__":
    main()
