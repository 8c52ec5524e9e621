"""What a run writes: JSON lines, events for TensorBoard, a trace when asked for."""

import builtins
import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import pytest

from experiments.config import Logging
from experiments.log import Log
from tests.processes import SHARED


def write(folder, steps, total=9, show=False, **options):
    """Runs a log over steps whose loss is their number."""
    config = dataclasses.replace(SHARED, logging=Logging(**options))
    with Log(config, folder, steps.start, total, show) as log:
        for step in steps:
            log.step(step + 1, jnp.float32(step + 1))
            if (step + 1) % 4 == 0:
                log.write(step + 1, {"test": 0.5})
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_lines_hold_losses_throughput_and_metrics(tmp_path):
    lines = write(tmp_path, range(6), every=2)
    assert [line["step"] for line in lines] == [2, 4, 4, 6]
    assert [line["loss"] for line in lines if "loss" in line] == [2.0, 4.0, 6.0]
    assert all(line["images_per_second"] > 0 for line in lines if "loss" in line)
    assert lines[2] == {"step": 4, "test": 0.5}


def test_what_was_written_after_the_checkpoint_is_dropped(tmp_path):
    write(tmp_path, range(6), every=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # Cut short.
    lines = write(tmp_path, range(3, 9), every=1)
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 10))
    assert [x["step"] for x in lines if "test" in x] == [4, 8]


def events(folder):
    """Reads TensorBoard's records: a length, its check, the data, its check."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events*")
    content, found = path.read_bytes(), {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        content = content[16 + length :]
    return found


def test_tensorboard_gets_the_same(tmp_path):
    lines = write(tmp_path, range(6), every=2, tensorboard=True)
    found = events(tmp_path / "tensorboard")
    assert found["loss"] == {x["step"]: x["loss"] for x in lines if "loss" in x}
    assert found["test"] == {4: 0.5}
    assert set(found["images_per_second"]) == {2, 4, 6}


def test_a_missing_tensorboard_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'jaxprune\[tensorboard\]'"):
        write(tmp_path, range(2), tensorboard=True)


@pytest.mark.parametrize("total", [9, 5])  # Cut short by the end in the second.
def test_a_trace_of_some_steps_is_written(total, tmp_path, monkeypatch):
    calls, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", calls.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(None))
    config = dataclasses.replace(SHARED, logging=Logging(profile=4))
    with Log(config, tmp_path, 0, total, False) as log:
        for step in range(min(total, 7)):
            log.step(step + 1, jnp.float32(0))
            seen.append(len(calls))
    assert calls == [str(tmp_path / "profile"), None]
    assert seen == ([0, 0, 1, 1, 1, 1, 2] if total == 9 else [0, 0, 1, 1, 2])


def test_the_bar_tells_throughput_and_time_left(tmp_path, capsys):
    write(tmp_path, range(9), show=True, every=3)
    shown = capsys.readouterr().out
    assert "loss 9.000" in shown and "images/s" in shown and "9/9" in shown
