"""Files that are written whole or not at all: finished runs, results, figures."""

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

from experiments.data import Dataset


def write(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file in one step: readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: pathlib.Path, data: Any) -> None:
    """Writes data as JSON."""
    write(path, f"{json.dumps(data, indent=1, default=str)}\n".encode())


def load(path: pathlib.Path) -> Any:
    """Reads JSON; None if there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def claim(folder: pathlib.Path, config: Any, **same: Any) -> None:
    """Writes the config into a new folder, or raises if another config is there.

    The fields in ``same`` may differ; the folder records the values given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    plain = json.loads(json.dumps(plain_config(dataclasses.replace(config, **same))))
    if not path.exists():
        save(path, plain)
    elif load(path) != plain:
        raise ValueError(
            f"{folder} holds runs of another config. Pass another --workdir, or remove "
            "it."
        )


def plain_config(config: Any) -> dict[str, Any]:
    """A config as data, without the paths of one machine."""
    plain = dataclasses.asdict(dataclasses.replace(config, workdir=None))
    if "dir" in plain["data"]:
        plain["data"]["dir"] = None
    return _named(plain)


def _named(value: Any) -> Any:
    """Data with the names of files for their paths."""
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    return value.name if isinstance(value, pathlib.PurePath) else value


def summary(
    name: str,
    config: Any,
    environment: dict[str, Any],
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {
        "name": name,
        "config": plain_config(config),
        "environment": environment,
        "images": dataset.sizes,
        "scored": "with BatchNorm in eval mode",
        "seconds": sum(result["seconds"] for result in results),
        "results": results,
    }


def environment() -> dict[str, Any]:
    """The commit, the packages and the machine that a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "scikit-learn")
    # Paths of one machine.
    places = ("--data.dir=", "--data.text=", "--model.path=", "--workdir=")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "command": [a for a in sys.argv[1:] if not a.startswith(places)],
    }


def _git(*args: str) -> str | None:
    folder = pathlib.Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
