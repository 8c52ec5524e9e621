"""Runs an experiment: ``python -m experiments.run digits``, or another config.

Every option of `experiments.config` is a flag: ``digits --help`` lists them.
"""

import pathlib
import pkgutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module

import jax
import rich
import tyro
from rich.markdown import Markdown

from experiments import comparison, configs, gradient_flow, mesh, records, report
from experiments.config import Config, Rounds, Scaled
from experiments.data import Dataset, DatasetMissingError, load, read
from experiments.log import bar


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
    with bar("epochs", config.epochs * len(comparison.plan(config))) as show:
        found = comparison.compare(
            config,
            dataset,
            workdir / "runs",
            lambda run, n: show(
                advance=n, description=f"{run.method} {run.sparsity:g} {run.variant}"
            ),
        )
    content = records.summary(name, config, environment, dataset, found)
    _publish(workdir, report.comparison(content))


def run_gradient_flow(
    name: str, config: Rounds, dataset: Dataset, workdir: pathlib.Path
) -> None:
    """Prunes in rounds behind a progress bar; writes and prints the results."""
    environment = records.environment()
    rows = len(gradient_flow.plan(config))
    with bar("epochs", config.epochs * config.seeds * rows) as show:
        found = gradient_flow.run(
            config,
            dataset,
            workdir / "runs",
            lambda row, seed, n: show(
                advance=n,
                description=f"{row.measure} {row.level} {row.fraction:g}, seed {seed}",
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
    for part in shown.text:
        rich.print(Markdown(part) if isinstance(part, str) else part)
    rich.print(f"Written to {workdir}: {', '.join(shown.files)}")


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
