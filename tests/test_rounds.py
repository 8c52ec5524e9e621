"""The pipeline of Lubana & Dick: its ratios, its counts, and what it says of them."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import data, diagnostics, gradient_flow, records, report
from experiments.config import Data, Model, Rounds
from experiments.measures import MEASURES, Evidence
from experiments.report._tables import verdicts
from tests.helpers import normal
from tests.test_scale import _quick  # noqa: F401  The fixture is used.

SMALL = Rounds(
    data=Data("digits", train_size=40, test_size=50, validation_size=100),
    model=Model("lenet", widths=(6, 10)),
    measures=("magnitude", "grasp"),
    fractions=(0.75,),
    rounds=(2,),
    min_keep=1,
    examples_per_class=2,
    seeds=1,
    epochs=3,
    batch_size=20,
)
ROWS = [
    gradient_flow.Row("dense", "weights", 0.0, 0),
    *[
        gradient_flow.Row(measure, level, 0.75, 2)
        for measure in SMALL.measures
        for level in ("filters", "weights")
    ],
]
WORDS = [f"{row.measure} {row.level} {row.fraction:g}, seed 0" for row in ROWS]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def dataset():
    return data.load(SMALL.data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def found(dataset, folder):
    """All runs, of which the third was stopped and begun again."""
    seen = []

    def stop(words, epochs):
        seen.append((words, epochs))
        if len(seen) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_flow.run(SMALL, dataset, folder, stop)
    assert [seen[i] for i in (0, 3, 6)] == [(words, 1) for words in WORDS[:3]]
    assert len(list(folder.glob("*-0.json"))) == 2  # Nothing half written.
    return gradient_flow.run(SMALL, dataset, folder, lambda *_: None)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(found, dataset, tmp_path):
    one = dataclasses.replace(SMALL, measures=("magnitude",))
    whole = gradient_flow.run(one, dataset, tmp_path, lambda *_: None)
    assert [run["measure"] for run in whole] == ["dense", "magnitude", "magnitude"]
    for run, again in zip(found, whole, strict=False):
        assert _numbers(run) == _numbers(again)


def _numbers(run):
    """A run without its times, and without what depends on the other measures."""
    epochs = [{**epoch, "measures": None} for epoch in run["epochs"]]
    return {**run, "epochs": epochs, "latency": None, "seconds": None}


@pytest.mark.slow
def test_finished_runs_are_not_run_again(found, dataset, folder, monkeypatch):
    monkeypatch.setattr(gradient_flow, "prepare", None)
    seen = []
    again = gradient_flow.run(SMALL, dataset, folder, lambda *args: seen.append(args))
    assert again == found
    assert seen == [(words, SMALL.epochs) for words in WORDS]


@pytest.mark.slow
def test_runs_of_another_config_are_not_mixed_in(found, dataset, folder):
    other = dataclasses.replace(SMALL, learning_rate=0.2)
    with pytest.raises(ValueError, match=r"another config.*--workdir"):
        gradient_flow.run(other, dataset, folder, lambda *_: None)
    elsewhere = dataclasses.replace(SMALL.data, dir="moved")
    moved = dataclasses.replace(SMALL, data=elsewhere, workdir=folder)
    assert gradient_flow.run(moved, dataset, folder, lambda *_: None) == found


@pytest.mark.slow
def test_filters_follow_the_hyperbola_and_weights_follow_the_filters(found):
    runs = {(run["measure"], run["level"]): run for run in found}
    # 16 units of which 3/4 go in two rounds: 16 (1 - 0.6) = 6.4, then 4.
    for measure in SMALL.measures:
        filters, weights = runs[measure, "filters"], runs[measure, "weights"]
        assert [_filters(p["parameters"]) for p in filters["prunes"]] == [6, 4]
        assert [p["parameters"] for p in weights["prunes"]] == [
            p["parameters"] for p in filters["prunes"]
        ]
        assert filters["parameters"] == filters["prunes"][-1]["parameters"]
        assert weights["parameters"] == filters["parameters"]
        assert filters["latency"]["difference"] < 1e-5
        assert weights["latency"] is None


def _filters(parameters):
    """How many of the 6 + 10 units are left: the one sum that gives so many weights."""
    (count,) = {
        a + b
        for a in range(1, 7)
        for b in range(1, 11)
        if (64 + 1) * a + (a + 1) * b + (b + 1) * 10 == parameters
    }
    return count


@pytest.mark.slow
def test_the_report_holds_every_row_and_figure(found, dataset):
    summary = records.summary("small", SMALL, {}, dataset, found)
    summary |= report.conclusions(summary)
    files = report.files(summary)
    assert set(files) == {
        "results.json",
        "accuracy.png",
        "claims.png",
        "diagnostics.png",
    }
    for name in set(files) - {"results.json"}:
        assert files[name].startswith(PNG)
    content = json.loads(files["results.json"])
    assert not {"epochs", "prunes"} & content["results"][0].keys()
    assert [run["measure"] for run in content["results"]] == [r.measure for r in ROWS]
    assert content["images"] == {"train": 40, "validation": 100, "test": 50}
    assert len(content["claims"]) == 4  # Two at each level have their measures.


def test_more_rounds_than_epochs_are_refused():
    with pytest.raises(ValueError, match=r"rounds contains 5.*5 epochs"):
        Rounds(rounds=(1, 5), epochs=5)


def test_bn_scale_has_no_row_of_weights():
    config = dataclasses.replace(SMALL, measures=("bn_scale", "random"))
    assert [(r.measure, r.level) for r in gradient_flow.plan(config)] == [
        ("dense", "weights"),
        ("bn_scale", "filters"),
        ("random", "filters"),
        ("random", "weights"),
    ]


# Measures, on a layer of two filters and a layer that reads them.


def apply_fn(params, x):
    scale = params["norm"]["scale"][None]
    return jax.nn.relu(x @ params["first"] * scale) @ params["last"]


WEIGHTS = {
    "first": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
    "norm": {"scale": jnp.array([-1.5, 2.0])},
    "last": jnp.array([[1.0], [1.0]]),
}
GROUPS = jp.structured.channel_groups(apply_fn, WEIGHTS, jnp.ones((3, 2)))
LIKE = {"first": (2, 2), "last": (2, 1)}


def _tree(seed):
    return {**normal(seed, **LIKE), "norm": normal(seed + 1, scale=(2,))}


def _flow(seed):
    g, hg, squares = _tree(seed), _tree(seed + 2), _tree(seed + 4)
    return jp.Flow(WEIGHTS, g, hg, jax.tree.map(jnp.square, squares))


EVIDENCE = Evidence(
    _flow(0), _flow(10), _flow(20), _tree(30), _tree(40), jax.random.key(0)
)
W = np.asarray(WEIGHTS["first"])
G = np.asarray(EVIDENCE.flow.gradient["first"])
# For each measure: scores of the first layer's weights, and of its two filters.
BY_HAND = {
    "magnitude": (abs(W), np.sqrt((W**2).sum(0))),
    "loss_preservation": (abs(W * G), abs(W * G).sum(0)),
    "biased_loss": (W**2 * abs(G), (W**2 * abs(G)).sum(0)),
    "biased_loss_from_start": (
        abs(W - np.asarray(EVIDENCE.origin["first"])) * abs(W * G),
        (abs(W - np.asarray(EVIDENCE.origin["first"])) * abs(W * G)).sum(0),
    ),
    "biased_loss_tracked": (
        np.asarray(EVIDENCE.tracked["first"]),
        np.asarray(EVIDENCE.tracked["first"]).sum(0),
    ),
    "grasp": (
        W * np.asarray(EVIDENCE.grasp_flow.hessian_gradient["first"]),
        (W * np.asarray(EVIDENCE.grasp_flow.hessian_gradient["first"])).sum(0),
    ),
    "gradient_preservation": (
        abs(W * np.asarray(EVIDENCE.unit_flow.hessian_gradient["first"])),
        abs((W * np.asarray(EVIDENCE.unit_flow.hessian_gradient["first"])).sum(0)),
    ),
    "taylor": (abs(W * G), abs((W * G).sum(0))),
    "fisher": (
        W**2 * np.asarray(EVIDENCE.flow.squared_gradient["first"]),
        (W**2 * np.asarray(EVIDENCE.flow.squared_gradient["first"])).sum(0),
    ),
    "l1": (abs(W), abs(W).sum(0)),
    "bn_scale": (np.zeros((2, 2)), np.array([1.5, 2.0])),
}


@pytest.mark.parametrize("measure", BY_HAND)
def test_measures_are_those_of_the_table(measure):
    weights, filters = BY_HAND[measure]
    row = MEASURES[measure]
    np.testing.assert_allclose(row.weights(EVIDENCE)["first"], weights, rtol=1e-6)
    (scores,) = row.filters(EVIDENCE, GROUPS)
    np.testing.assert_allclose(scores, filters, rtol=1e-6)


def test_every_measure_is_in_the_table_above():
    assert set(BY_HAND) == set(MEASURES) - {"random", "uniform"}


# Diagnostics


def test_predicted_changes_are_exact_to_first_order():
    # L = sum(c p) / 2 + sum(p^2) / 2: the loss has curvature, so a small weight is cut.
    params = {"w": jnp.array([[1e-3, 2.0], [3.0, 4.0]]), "b": jnp.array([1.0])}

    def loss(p):
        return sum(jnp.sum(x**3) / 6 + 2 * jnp.sum(x) for x in jax.tree.leaves(p))

    flow = jp.gradient_flow(loss)(params)
    before = jax.tree.map(lambda p: jnp.ones_like(p, bool), params)
    after = {**before, "w": before["w"].at[0, 0].set(False)}
    cut = jp.apply_mask(params, after)
    predicted = diagnostics.predicted_changes(flow, before, after)
    assert predicted["loss"] == pytest.approx(float(loss(cut) - loss(params)), rel=1e-2)

    def squared(p):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(p)))

    # |g|^2 = (p^2 / 2 + 2)^2 falls by 2 p^2 in all, and by 4 p^2 at the slope in p.
    np.testing.assert_allclose(predicted["squared_gradient"], -4e-6, rtol=1e-3)
    slope = jax.grad(squared)(params)["w"][0, 0] * 1e-3
    assert predicted["squared_gradient"] == pytest.approx(-float(slope), rel=1e-3)
    assert diagnostics.predicted_changes(flow, after, after)["loss"] == 0


def test_rates_are_those_of_a_quadratic():
    # L = |p|^2 / 2: g = p, Hg = p.
    flow = jp.gradient_flow(lambda p: 0.5 * jnp.sum(p["w"] ** 2))(
        {"w": jnp.array([[3.0, 4.0]])}
    )
    assert diagnostics.rates(flow) == {
        "squared_norm": 25.0,
        "squared_gradient": 25.0,
        "rate_of_squared_norm": -50.0,
        "rate_of_squared_gradient": -50.0,
    }


def test_correlations_of_prunable_weights():
    a = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "b": jnp.array([9.0])}
    b = {"w": jnp.array([[1.0, 4.0, 9.0, 16.0]]), "b": jnp.array([-9.0])}
    c = jax.tree.map(jnp.negative, a)
    found = diagnostics.correlations({"a": a, "b": b, "c": c})
    assert list(found) == ["a, b", "a, c", "b, c"]
    assert found["a, b"]["spearman"] == pytest.approx(1)
    # Squares of 1..4 against 1..4: covariance 25 / 4, deviations sqrt(5/4, 129/4).
    assert found["a, b"]["pearson"] == pytest.approx(6.25 / np.sqrt(1.25 * 32.25))
    assert found["a, c"]["pearson"] == pytest.approx(-1)


def test_distances_and_shares_by_hand():
    whole = {"w": jnp.ones((2, 2), bool), "b": jnp.array([True])}
    part = {"w": jnp.array([[True, False], [False, True]]), "b": jnp.array([False])}
    assert diagnostics.mask_distance(whole, part) == 0.5  # Biases do not count.
    given = {"w": jnp.array([[5.0, 1.0], [2.0, 4.0]]), "b": jnp.array([100.0])}
    share = diagnostics.contribution_share(given, whole, part)
    assert share == pytest.approx(1.5 / 3)
    assert np.isnan(diagnostics.contribution_share(given, part, part))
    reference = np.array([[3.0, 4.0]])
    assert diagnostics.logit_distance(reference + 0.6, reference) == pytest.approx(
        0.6 * np.sqrt(2) / 5
    )


# Claims


def _made_up(measure, loss, distance, share, ratio, accuracy):
    """Two seeds' runs with the numbers that decide the claims."""
    row = {"measure": measure, "level": "weights", "fraction": 0.75, "rounds": 1}
    epoch = {"train_loss": loss, "distance_to_dense": distance}
    prune = {"contribution_share": share, "squared_gradient": [2.0, 2.0 * ratio]}
    run = {**row, "epochs": [epoch] * 3, "prunes": [prune], "test_accuracy": accuracy}
    return [run, run]


AGREEING = {
    "magnitude": (0.1, 0.5, 0.7, 0.9, 0.9),
    "loss_preservation": (0.2, 0.1, 0.8, 1.0, 0.8),
    "grasp": (0.4, 0.9, 1.1, 3.0, 0.5),
    "gradient_preservation": (0.3, 0.4, 1.0, 1.1, 0.7),
}
OPPOSED = {
    **AGREEING,
    "magnitude": (0.3, 0.1, 1.2, 0.9, 0.9),
    "loss_preservation": (0.2, 0.5, 0.8, 1.0, 0.8),
    "grasp": (0.4, 0.9, 1.1, 0.5, 0.8),
}
DIVERGED = {**AGREEING, "magnitude": (math.nan, 0.5, 0.7, 0.9, 0.9)}


@pytest.mark.parametrize(
    "numbers, held",
    [
        (AGREEING, [True] * 5),
        (OPPOSED, [False] * 5),
        (DIVERGED, [None, True, True, True, True]),
    ],
    ids=["agreeing", "opposed", "diverged"],
)
def test_claims_are_decided_by_their_numbers(numbers, held):
    config = {"measures": list(numbers), "levels": ["weights"], "seeds": 2}
    results = [run for name in numbers for run in _made_up(name, *numbers[name])]
    decided = report.claims(config, results)
    assert [claim["held"] for claim in decided] == held
    said = verdicts({"config": config, "claims": decided})
    assert len(said) == 5
    words = {True: "held", False: "did not hold", None: "is undecided"}
    assert f"converge faster (weights): **{words[held[0]]}**" in said[0]
    assert f"GraSP raises the gradient norm (weights): **{words[held[3]]}**" in said[3]
    assert f"grasp {numbers['grasp'][3]:.3g} ±0" in said[3]
