"""The benchmarks run, and the methods that they compare agree."""

import pytest

from benchmarks import scoring, selection, step
from benchmarks._measure import Bar, in_turn, ratio
from benchmarks._models import Networks

SMALL = {"batch_size": 4, "widths": (8, 16, 10), "channels": 4, "side": 8}
each_network = pytest.mark.parametrize(
    "network", ["mlp", pytest.param("resnet", marks=pytest.mark.slow)]
)


def test_selection_methods_keep_as_many(monkeypatch, capsys):
    options = selection.Options(sizes=(20_000,), rounds=2)
    rows = selection.measure(options)
    assert len(rows) == 2 * 6  # dtypes, methods
    for row in rows:
        tenth = row.size // 10
        exact = row.method not in ("sort", "np.partition")
        assert row.kept == tenth if exact else row.kept >= tenth, row
        assert row.seconds > 0 and row.speedup > 0
        barred = row.method.startswith("ours") and row.dtype == "f32"
        assert len(row.bars) == (3 if barred else 0)
    monkeypatch.setattr(selection, "measure", lambda _: rows)
    selection.main(options)
    assert "np.partition" in capsys.readouterr().out


@each_network
def test_scoring_times_every_score(network, monkeypatch, capsys):
    options = scoring.Options(rounds=1, networks=Networks(names=(network,), **SMALL))
    rows = scoring.measure(options)
    assert rows[0].score == "jax.grad" and rows[0].gradients == 1
    assert [row.score for row in rows if row.bars] == ["snip", "all measures"]
    assert len({row.score for row in rows}) == len(rows) == 13
    monkeypatch.setattr(scoring, "measure", lambda _: rows)
    scoring.main(options)
    assert "in gradients" in capsys.readouterr().out


@each_network
def test_step_times_every_transform(network, monkeypatch, capsys):
    networks = Networks(names=(network,), **SMALL)
    options = step.Options(runs=2, every=3, networks=networks)
    rows = step.measure(options)
    assert rows[0].step == "dense" and rows[0].ratio == 1
    barred = ["keep_sparse", "sparse", "gradual, off", "gradual, amortised"]
    assert [row.step for row in rows if row.bars] == barred
    assert rows[-1].step == "gradual, due" and rows[-1].seconds > 0
    monkeypatch.setattr(step, "measure", lambda _: rows)
    step.main(options)
    assert "to dense" in capsys.readouterr().out


def test_alternatives_take_turns_and_slow_ones_sit_out():
    calls = []
    times = in_turn({n: lambda n=n: calls.append(n) for n in "ab"}, 3)
    assert "".join(calls) == "abbaab"
    assert ratio(times["a"], times["a"]) == 1
    times = in_turn({"a": lambda: None}, 9, seconds=0)
    assert len(times["a"]) == 3


def test_a_bar_tells_whether_it_is_met():
    assert str(Bar(1.02, 1.03)) == "1.020 <= 1.03: met"
    assert str(Bar(23.0, 60, True, "speed-up")) == "speed-up 23.00 >= 60: MISSED"
