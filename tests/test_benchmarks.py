"""The benchmarks run, and the methods that they compare agree."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from benchmarks import (
    _argsort,
    _compile,
    _hlo,
    _leaves,
    dynamic,
    pod,
    scaling,
    scoring,
    selection,
    shrink,
    step,
)
from benchmarks import compile as cold
from benchmarks._measure import Bar, in_turn, ratio
from benchmarks._models import Networks
from experiments.config import Model
from experiments.models import network

SMALL = {"batch_size": 4, "widths": (8, 16, 10), "channels": 4, "side": 8}
MLP = Networks(names=("mlp",), **SMALL)


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


def test_the_networks_are_what_they_say_and_can_be_trained():
    mlp, resnet = Networks(**SMALL).build()
    assert "8-16-10, 314 weights, batches of 4" in mlp.description
    assert resnet.name == "ResNet-8" and "4 to 16 channels" in resnet.description
    for problem in (mlp, resnet):
        gradient = jax.eval_shape(
            jax.grad(problem.loss), problem.params, *problem.batch
        )
        chex.assert_trees_all_equal_shapes(gradient, problem.params)


def test_scoring_times_every_score(monkeypatch, capsys):
    options = scoring.Options(rounds=1, networks=MLP)
    rows = scoring.measure(options)
    assert rows[0].score == "jax.grad" and rows[0].gradients == 1
    assert [row.score for row in rows if row.bars] == ["snip", "all measures"]
    assert len({row.score for row in rows}) == len(rows) == 13
    monkeypatch.setattr(scoring, "measure", lambda _: rows)
    scoring.main(options)
    assert "in gradients" in capsys.readouterr().out


def test_step_times_every_transform(monkeypatch, capsys):
    options = step.Options(runs=2, every=3, networks=MLP)
    rows = step.measure(options)
    assert rows[0].step == "dense" and rows[0].ratio == 1
    barred = ["keep_sparse", "sparse", "gradual, off", "gradual, amortised"]
    assert [row.step for row in rows if row.bars] == barred
    assert rows[-1].step == "gradual, due" and rows[-1].seconds > 0
    monkeypatch.setattr(step, "measure", lambda _: rows)
    step.main(options)
    assert "to dense" in capsys.readouterr().out


def test_dynamic_times_due_steps_apart(monkeypatch, capsys):
    options = dynamic.Options(
        steps=("rigl", "ste", "argsort rigl"),
        runs=2,
        every=2,
        networks=Networks(names=()),
        vmapped=Networks(names=("mlp",), batch_size=4, widths=(8, 16, 12)),
        seeds=2,
    )
    rows = dynamic.measure(options)
    assert {row.problem for row in rows} == {"2 x MLP"}
    found = {row.step: row for row in rows}
    assert list(found) == ["dense", "dense, again", *options.steps]
    assert found["dense"].off_ratio == 1 and np.isnan(found["dense"].due_seconds)
    assert np.isnan(found["ste"].off_ratio) and found["ste"].due_seconds > 0
    assert [bool(row.bars) for row in rows] == [False, False, True, False, False]
    monkeypatch.setattr(dynamic, "measure", lambda _: rows)
    dynamic.main(options)
    assert "argsort rigl" in capsys.readouterr().out


@pytest.mark.parametrize("spent, dense", [(7, 6), (6, 7)], ids=["dense", "rigl"])
def test_ratios_are_of_the_rounds_that_both_took_part_in(spent, dense):
    times = np.array([2.0, 4.0, 9.0, 2.0, 8.0, 9.0, 99.0])[:spent]
    reference = np.array([2.0, 2.0, 3.0, 2.0, 2.0, 1.0, 1.0])[:dense]
    row = dynamic._row("MLP", "rigl", times, reference, 3)
    assert row == ("MLP", "rigl", 3.0, 1.5, 9.0, 6.0, ())


def test_the_bar_of_due_steps_is_that_of_large_networks():
    row = dynamic.Row("MLP", "rigl", 1.0, 1.0, 2.0, 2.0, ())
    bars = dynamic._with_bars(row, {"argsort rigl": 30.0}, large=True).bars
    assert [bar.value for bar in bars] == [1.0, 15.0]
    assert len(dynamic._with_bars(row, {"argsort rigl": 30.0}, large=False).bars) == 1


def test_the_restated_rigl_moves_as_many_weights_as_ours():
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (6, 10))}
    gradient = {"w": jax.random.normal(jax.random.key(1), (6, 10))}
    mask = jp.layerwise_mask(jp.magnitude(params), 0.5)
    params = jp.apply_mask(params, mask)
    theirs = _argsort.wrap(optax.sgd(0.1), mask, _argsort.rigl(0.3), 1)
    ours = jp.rigl(optax.sgd(0.1), mask, every=2, until=3, drop_fraction=0.3)
    _, moved = theirs.update(gradient, theirs.init(params), params)
    state = ours.init(params)
    for _ in range(2):
        _, state = ours.update(gradient, state, params)
    weights, size = np.asarray(params["w"]), np.abs(np.asarray(gradient["w"]))
    active = np.asarray(mask["w"])
    small = np.sort(np.abs(weights[active]))[round(0.3 * active.sum()) - 1]
    large = np.sort(size[~active])[-round(0.3 * active.sum())]
    expected = np.where(active, np.abs(weights) > small, size >= large)
    np.testing.assert_array_equal(moved.mask["w"], expected)
    assert int(jp.get_mask(state, params)["w"].sum()) == expected.sum()


TINY = Model("vgg", (8, 16), 1)


def test_shrink_prunes_what_it_says_and_finds_the_groups(monkeypatch, capsys):
    monkeypatch.setitem(shrink.PUBLISHED, "vgg13", TINY)
    monkeypatch.setitem(shrink.PUBLISHED, "resnet50", TINY)
    options = shrink.Options(
        networks=("vgg13", "resnet50"),
        sparsities=(0.0, 0.5),
        convolution="xla",
        batch_size=2,
        side=8,
        rounds=1,
        peer=False,
    )
    dense, half, graph = rows = shrink.measure(options)
    assert dense.groups == half.groups == graph.groups == 2
    # Kernels, scales and biases of two convolutions, and ten outputs.
    assert dense.params == (27 * 8 + 16) + (72 * 16 + 32) + 170
    assert half.params == (27 * 4 + 8) + (36 * 8 + 16) + 90
    for row in (dense, half):
        assert row.difference <= 1e-5 and row.bars[0].met
        assert row.masked_seconds > 0 and row.shrunk_seconds > 0 and row.speedup > 0
    products = 64 * 27 * 8 + 16 * 72 * 16 + 160  # Of one image, pixels times weights.
    assert dense.flops == options.batch_size * 2 * products
    assert np.isnan(graph.speedup) and graph.bars[0].limit == 0.5
    monkeypatch.setattr(shrink, "measure", lambda _: rows)
    monkeypatch.setattr(shrink, "_peer", lambda: None)
    shrink.main(options)
    shown = capsys.readouterr().out
    assert "speed-up" in shown and "Torch-Pruning was not run" in shown


@pytest.mark.parametrize("name", ["vgg13", "mobilenet_v1", "resnet56", "vit"])
def test_torch_twins_are_as_large_as_ours_before_and_after(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import _torch_models, _torch_pruning

    config = shrink.PUBLISHED[name]
    net = network(config, (32, 32, 3), 10)
    state = jax.eval_shape(net.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def fn(state, images):
        return net.apply(*state, images, train=False)[0]

    twin = _torch_models.build(config, 32)
    shapes = [sorted(leaf.shape) for leaf in jax.tree.leaves(state[0])]
    assert sorted(shapes) == sorted(sorted(leaf.shape) for leaf in twin.parameters())
    counted = FlopCounterMode(display=False)
    with counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # The one it counts.
        twin(torch.zeros(2, 3, 32, 32))
    assert counted.get_total_flops() == jp.cost(fn, state, images).flops

    groups = jp.structured.channel_groups(fn, state, images)
    scores = [np.arange(group.size) for group in groups]
    mask = jp.structured.structured_mask(scores, groups, state, 0.5, scope="group")
    left = sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask[0]))
    assert _torch_pruning.prune(config, 32, 2, 0.5).params == left


def test_alternatives_take_turns_in_many_orders_and_slow_ones_sit_out():
    calls = []
    times = in_turn({n: lambda n=n: calls.append(n) for n in "abc"}, 20)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 20
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert {r[0] for r in rounds} == {r[-1] for r in rounds} == set("abc")
    assert ratio(times["a"], times["a"]) == 1
    times = in_turn({"a": lambda: None}, 9, seconds=0)
    assert len(times["a"]) == 3


def test_a_bar_tells_whether_it_is_met():
    assert str(Bar(1.02, 1.03)) == "1.020 <= 1.03: met"
    assert str(Bar(23.0, 60, True, "speed-up")) == "speed-up 23.00 >= 60: MISSED"


def test_a_pods_programs_meet_their_bars_on_eight_devices(
    monkeypatch, capsys, tmp_path
):
    """The bars of the 8 and 70 billion, on a net that compiles in seconds."""
    out = tmp_path / "pod.json"
    options = pod.Options(("tiny",), (8,), model_shards=4, out=str(out))
    rows = {row.program: row for row in pod.measure(options)}
    assert {"dense step", "snip", "masked step", "rigl step"} < set(rows)
    (run,) = json.loads(out.read_text())
    matrices = {
        "query": 2 * 64 * 64,
        "out": 2 * 64 * 64,
        "key, value": 2 * 2 * 64 * 32,
        "mlp": 3 * 2 * 64 * 128,
        "ends": 2 * 256 * 64,
    }
    norms = 5 * 64
    assert run["weights"] == sum(matrices.values()) + norms
    assert run["weights_per_device"] == sum(matrices.values()) // 8 + norms
    scores = rows["global_mask"].arguments
    assert scores == 4 * run["weights_per_device"]
    held = rows["masked step"].arguments - rows["dense step"].arguments
    assert 0 <= held - run["weights_per_device"] < 100  # Masks; padding, a counter.
    for row in rows.values():
        assert row.sent > 0 and row.seconds > 0
        for bar in row.bars:
            # On Auto axes small leaves of one shape are counted as one, however cut.
            if bar.name != "masks sent, MB" or row.program == "masked step":
                assert bar.met, (row.program, str(bar))
    explicit = rows["global_mask, explicit"]
    assert {c.kind for c in explicit.found} == {"all-reduce"}
    assert all(bar.met for bar in explicit.bars)
    monkeypatch.setattr(pod, "measure", lambda _: list(rows.values()))
    pod.main(options)
    assert "gathered" in capsys.readouterr().out


HLO = """
HloModule m
%flag (s: (pred[], u32[])) -> pred[] {
  %s = (pred[], u32[]) parameter(0)
  ROOT %f = pred[] get-tuple-element(%s), index=0
}
%test (s: (pred[], u32[])) -> pred[] {
  %s.1 = (pred[], u32[]) parameter(0)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
%body (s: (pred[], u32[])) -> (pred[], u32[]) {
  %x = f32[8,4]{1,0} parameter(0)
  %r = f32[8]{0} reduce-scatter(%x), dimensions={1}, to_apply=%add
  ROOT %t = (pred[], u32[]) tuple(%p, %q)
}
ENTRY %main (a: bf16[4]) -> bf16[4] {
  %a = bf16[4]{0} parameter(0)
  %g = bf16[32]{0} all-gather(%a), dimensions={0}
  %n = (u32[], s32[2]) all-reduce(%c, %d), to_apply=%add
  %start = (pred[4], pred[16]) all-gather-start(%m), dimensions={0}
  %done = pred[16]{0} all-gather-done(%start)
  %w = (pred[], u32[]) while(%i), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %v = (pred[], u32[]) while(%i), condition=%flag, body=%body
  %u = (pred[], u32[]) while(%i), condition=%test, body=%body
  ROOT %o = bf16[4]{0} copy(%a)
}
"""  # noqa: E501


def test_collectives_are_counted_by_kind_type_and_turns():
    found = {(c.kind, c.dtype): c for c in _hlo.collectives(HLO, turns=100)}
    assert found["all-gather", "bf16"][2:] == (1, 64)
    assert found["all-gather", "pred"][2:] == (1, 16)
    assert found["all-reduce", "u32"][2:] == (1, 12)
    assert found["reduce-scatter", "f32"][2:] == (106, 106 * 128)
    assert len(found) == 4 and _hlo.total(list(found.values()), "all-gather") == 80


def test_compile_measures_from_cold_beside_the_alternative(monkeypatch, capsys):
    tiny = {"networks": ("tiny",), "runs": 1}
    (eager,) = cold.measure(cold.Options(items=("apply_mask",), **tiny))
    assert eager[:3] == ("tiny", "apply_mask", "eager") and np.isnan(eager.trace)
    assert eager.first > 2 * eager.second > 0 and not eager.bars

    def here(network, item, how, many=0):
        return _compile.measure(_compile.Options(network, item, how))

    monkeypatch.setattr(cold, "_run", here)
    options = cold.Options(items=("global_mask",), how=("jit",), **tiny)
    with jax.numpy_rank_promotion("allow"):
        sort, ours = rows = cold.measure(options)
    assert (sort.item, ours.item) == ("sort", "global_mask") and not sort.bars
    assert ours.first > ours.trace + ours.compile > 0
    ratio = (ours.trace + ours.compile) / (sort.trace + sort.compile + 0.5)
    assert ours.bars == (
        Bar(ratio, 1.5, name="to sort"),
        Bar(ours.maps, 40, name="maps"),
    )
    monkeypatch.setattr(cold, "measure", lambda _: rows)
    cold.main(options)
    assert "second call" in capsys.readouterr().out
    with pytest.raises(ValueError, match="No such items"):
        cold.Options(items=("rigel",))


def test_many_trees_are_masked_one_after_the_other(capsys):
    _compile.many(_compile.Options(how="jit", many=2))
    lines = capsys.readouterr().out.splitlines()
    first, second = (_compile.Many(*json.loads(line)) for line in lines)
    assert (first.masked, second.masked) == (1, 2)
    assert 0 < first.seconds < second.seconds


@pytest.mark.parametrize(
    "name, leaves", [("resnet50", 161), ("vit", 103), ("llama", 272)]
)
def test_the_networks_that_are_compiled_have_many_leaves(name, leaves):
    problem = _leaves.build(name)
    assert len(jax.tree.leaves(problem.params)) == leaves
    with jax.numpy_rank_promotion("allow"):
        loss = jax.eval_shape(problem.loss, problem.params, *problem.batch)
    assert loss.shape == ()


@pytest.mark.slow
def test_scaling_cuts_work_over_devices_and_times_every_step(monkeypatch, capsys):
    monkeypatch.setitem(scaling.PUBLISHED, "vgg13", TINY)
    tiny = {"batch_size": 4, "side": 8, "seeds": 2, "rounds": 1}
    tiny |= {"networks": ("vgg13",), "dtypes": ("bfloat16",)}
    options = scaling.Options("tiny", (1, 2), True, **tiny)
    rows = scaling.scaling(options)
    assert [(r.program, r.devices) for r in rows] == [
        (program, n) for program in ("snip", "global_mask") for n in (1, 2)
    ]
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert one.ideal == 1 and one.sent == 0 < two.sent
        # One device packs small leaves and so touches less than its share of two does.
        assert (0.3 if one.program == "global_mask" else 0.6) < two.ideal < 1.4
    speeds = scaling.throughput(options)
    kinds = ["dense", "masked", "shrunk", "2 seeds, vmapped", "2 in turn"]
    assert [(r.step, r.dtype) for r in speeds] == [(k, "bfloat16") for k in kinds]
    assert all(r.images > 0 for r in speeds)
    monkeypatch.setattr(scaling, "scaling", lambda _: rows)
    monkeypatch.setattr(scaling, "throughput", lambda _: speeds)
    scaling.main(options)
    assert "images/s" in capsys.readouterr().out
