"""The time and the memory that a call takes."""

import contextlib
import ctypes
import gc
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax


def observe(make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Calls a function; the seconds it took, and the memory above what was in use.

    Only Linux says how much memory a process took at most; elsewhere it is None.
    """
    _release()
    before = _memory("VmRSS", reset=True)
    started = time.perf_counter()
    result = jax.block_until_ready(make())
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM")
    above = None if before is None or peak is None else peak - before
    return result, {"seconds": seconds, "peak_bytes": above}


def _release() -> None:
    """Gives memory that nothing uses back to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # Of glibc alone.
        ctypes.CDLL(None).malloc_trim(0)


def _memory(field: str, reset: bool = False) -> int | None:
    """A field of the process's status, in bytes; optionally restarts the peak."""
    process = pathlib.Path("/proc/self")
    try:
        if reset:
            (process / "clear_refs").write_text("5")
        status = (process / "status").read_text()
    except OSError:
        return None
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])
