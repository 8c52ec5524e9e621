"""What a comparison found, and how it is written: whole or not at all."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.config import Config


@dataclasses.dataclass(frozen=True)
class Result:
    """One method at one sparsity; lists have one entry a seed, accuracies in [0, 1].

    Attributes:
      method: its name.
      sparsity: fraction of prunable weights that was to be removed.
      sparsity_reached: the fraction that was removed.
      test_accuracy: after the last epoch.
      validation_accuracy: after the last epoch.
      best_epoch: the epoch best on validation, from 1, of those at the final sparsity.
      test_accuracy_at_best: after that epoch.
      score_seconds: median time to score one network and select its mask, after
        compilation; None where there is nothing to score before training.
      pruning_seconds: everything that one network takes before its last training: warm-
        up, score and mask; all earlier rounds of iterative pruning. Of methods that
        prune trained networks, what they take after it.
      train_seconds: of all seeds together, with compilation where it fell due.
      seconds: all of it, for all seeds.
      density: fraction kept of each prunable layer, averaged over seeds.
      fitness: how fit each of K-starts' masks was, for every seed.
      variant: a sanity check or an ablation of the method; "" for itself.
    """

    method: str
    sparsity: float
    sparsity_reached: list[float]
    test_accuracy: list[float]
    validation_accuracy: list[float]
    best_epoch: list[int]
    test_accuracy_at_best: list[float]
    score_seconds: float | None
    pruning_seconds: float
    train_seconds: float
    seconds: float
    density: dict[str, float]
    fitness: list[list[float]] | None = None
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything about a comparison that its tables, figures and files are made of."""

    name: str
    config: Config
    environment: dict[str, Any]
    images: dict[str, int]
    scored: str
    seconds: float
    results: tuple[Result, ...]


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the sample deviation: 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=min(1, len(values) - 1)))


def percent(values: Sequence[float]) -> str:
    """The mean of fractions in %, with the deviation of more than one."""
    mean, std = mean_and_std(values)
    spread = f" ±{100 * std:.1f}" if len(values) > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def environment() -> dict[str, Any]:
    """The commit, the packages and the machine that a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "scikit-learn")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "command": [a for a in sys.argv[1:] if not a.startswith(_PLACES)],
    }


def to_json(report: Report) -> bytes:
    plain = {**dataclasses.asdict(report), "config": plain_config(report.config)}
    text = json.dumps(plain, indent=2, default=str)
    return f"{text}\n".encode()


def plain_config(config: Any) -> dict[str, Any]:
    """A config as data, without where things lie on one machine."""
    data = dataclasses.replace(config.data, dir=None)
    return dataclasses.asdict(dataclasses.replace(config, data=data, workdir=None))


def write(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file in one step: whoever reads it sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_PLACES = ("--data.dir=", "--workdir=")  # Where things lie on one machine.


def _git(*args: str) -> str | None:
    folder = pathlib.Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
