"""Runs a module in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_ROOT = pathlib.Path(__file__).parent.parent


def run_apart(
    module: str, *arguments: str, environment: Mapping[str, str], check: bool = True
) -> Any:
    """Runs ``python -m module``, and returns the JSON that it prints last.

    Args:
      module: a module of this repository.
      *arguments: its command line.
      environment: variables to set beside those of this process.
      check: whether a process that fails is an error; else its last line counts.
    """
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=check,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **environment,
        },
        cwd=_ROOT,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])
