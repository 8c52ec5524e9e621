"""Finished runs in a folder, one JSON file each: what is there is not run again."""

import dataclasses
import json
import pathlib
from typing import Any

from experiments import results


def claim(folder: pathlib.Path, config: Any, **same: Any) -> None:
    """Writes the config into a new folder, or checks that it is the one there.

    The same data elsewhere are the same experiment.

    Args:
      folder: where the runs go.
      config: the experiment.
      **same: fields of the config that may differ, with the value that is written.

    Raises:
      ValueError: if the folder holds runs of another config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = results.plain_config(dataclasses.replace(config, **same))
    text = json.dumps(plain, indent=1)
    path = folder / "config.json"
    if not path.exists():
        results.write(path, text.encode())
    elif path.read_text() != text:
        raise ValueError(
            f"{folder} holds runs of another config. Pass another --workdir, or remove "
            "it."
        )


def save(path: pathlib.Path, run: Any) -> None:
    """Writes one run, whole or not at all."""
    results.write(path, json.dumps(run, indent=1).encode())


def load(path: pathlib.Path) -> Any:
    """Reads one run; None if it is not there."""
    return json.loads(path.read_text()) if path.exists() else None
