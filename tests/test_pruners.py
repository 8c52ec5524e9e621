"""What the experiments' methods do to a small network."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments import comparison, data, lab
from experiments.config import Config, Data, Model, Pruning
from experiments.mesh import Phases
from experiments.methods import CHECKS, METHODS
from tests.test_scale import _quick  # noqa: F401  The fixture is used.

CONFIG = Config(
    data=Data("digits", train_size=64, test_size=50),
    model=Model("lenet", widths=(12, 8)),
    pruning=Pruning(every=2, k=3, k_independent=3, select_at=0.25, rounds=2),
    seeds=2,
    epochs=4,
    batch_size=16,
    over_seeds="vmap",
)


@pytest.fixture(scope="module")
def small():
    return lab.Lab(CONFIG, data.load(CONFIG.data))


def test_two_of_four_are_planned_once_at_their_own_sparsity():
    pruning = Pruning(methods=("sr_ste", "snip"), sparsities=(0.8, 0.9))
    rows = comparison.plan(Config(pruning=pruning))
    assert [(row.method, row.sparsity) for row in rows] == [
        ("dense", 0.0),
        ("sr_ste", 0.5),
        ("snip", 0.8),
        ("snip", 0.9),
    ]


FOUND = [n for n, r in METHODS.items() if r.needs in ("nothing", "data", "warm-up")]


@pytest.mark.parametrize("method", FOUND)
def test_masks_found_before_training_remove_what_is_asked(method, small):
    start = METHODS[method].start(small, 0.5)
    assert start.first == len(start.history) == (METHODS[method].needs == "warm-up")
    assert start.score_seconds is not None
    removed = np.asarray(jax.vmap(jp.sparsity)(start.mask, start.params))
    if method in ("blocks", "sparse_mup"):  # Some layers stay whole.
        assert ((removed > 0) & (removed < 0.5)).all()
    else:
        np.testing.assert_allclose(removed, 0.5, atol=2e-3)
    first, second = (
        np.concatenate([np.ravel(m[i]) for m in jax.tree.leaves(start.mask)])
        for i in (0, 1)
    )
    assert (first != second).any()  # Each seed has its own.


@pytest.mark.parametrize("method", ["snip", "force", "iterative_snip", "blocks"])
def test_inverted_scores_keep_other_weights(method, small):
    found = METHODS[method].start(small, 0.5).mask
    other = CHECKS["inverted"](small, METHODS[method].start, 0.5).mask
    pairs = zip(*map(jax.tree.leaves, (found, other)), strict=True)
    kept = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a.ndim == 3]
    both = sum((a & b).sum() for a, b in kept) / sum(a.sum() for a, _ in kept)
    assert both < 0.5


def test_independent_k_starts_trains_every_masked_network_alone(small):
    start = METHODS["k_starts_independent"].start(small, 0.5)
    fitness = np.array(start.fitness)
    assert fitness.shape == (2, 3) and start.first == len(start.history) == 1

    best, whole = fitness.argmax(1), small.dense(0)
    keys = [jax.random.split(small.keys.masks[s], 3)[best[s]] for s in range(2)]
    masks = jax.tree.map(
        lambda *m: jnp.stack(m),
        *(
            jp.layerwise_mask(
                jp.random(key)(jax.tree.map(lambda x, s=s: x[s], whole.params)), 0.5
            )
            for s, key in enumerate(keys)
        ),
    )
    for found, drawn in zip(
        jax.tree.leaves(start.mask), jax.tree.leaves(masks), strict=True
    ):
        np.testing.assert_array_equal(found, drawn)
    state, history = small.train(whole._replace(mask=masks), 1)
    np.testing.assert_allclose(history[0].validation, fitness.max(1), atol=0.01)
    for found, alone in zip(
        jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-5)


def test_orthogonal_weights_are_drawn_for_every_seed(small):
    start = METHODS["eoi"].start(small, 0.5)
    kernels = [np.asarray(p) for p in jax.tree.leaves(start.params) if p.ndim == 3]
    assert [k.shape for k in kernels] == [(2, 64, 12), (2, 12, 8), (2, 8, 10)]
    for kernel in kernels:
        assert (kernel[0] != kernel[1]).any()
        for w in kernel:
            gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
            np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)
    removed = [~np.asarray(m) for m in jax.tree.leaves(start.mask)]
    count, half = sum(m.sum() for m in removed), 64 * 12 + 12 * 8 + 8 * 10
    assert abs(count - half) <= 6 / 2  # Each of six kernels is rounded.


@pytest.mark.parametrize(("fires_at", "epochs"), [(1, 1), (2, 2), (9, 2)])
def test_a_trigger_ends_the_dense_epochs_at_half_of_training_at_most(
    fires_at, epochs, small
):
    trigger = jp.Trigger(
        lambda params: jnp.int32(0),
        lambda seen, count: (count + 1 >= fires_at, count + 1),
    )
    start = small.dense_until(trigger, lambda params: params, small.dense(0))
    assert start.first == len(start.history) == epochs
    plain = small.dense(epochs)
    for found, expected in zip(
        jax.tree.leaves((start.params, start.opt_state)),
        jax.tree.leaves((plain.params, plain.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("keep_optimizer", [False, True])
def test_tickets_start_from_the_saved_weights_bit_for_bit(keep_optimizer, monkeypatch):
    pruning = dataclasses.replace(
        CONFIG.pruning,
        methods=("imp",),
        sparsities=(0.75,),
        rewind=1,
        keep_optimizer=keep_optimizer,
        imp_fraction=0.5,
    )
    config = dataclasses.replace(CONFIG, pruning=pruning, epochs=2)
    own = lab.Lab(config, data.load(config.data))
    began, begin = [], own._begin

    def spied(*args):
        began.append(jax.device_get(begin(*args)))
        return begin(*args)

    monkeypatch.setattr(own, "_begin", spied)
    start = METHODS["imp"].start(own, 0.75)
    saved, _ = own.train(own.dense(0), 1)
    momentum = optax.tree.get(saved.opt_state, "trace")

    rounds = [s for s in began if optax.tree.get(s.opt_state, "count")[0] == 4]
    assert len(rounds) == 2  # Whole, and at 50 %; 75 % is trained by the row.
    masks = [jp.get_mask(s.opt_state, s.params) for s in rounds] + [start.mask]
    for state, mask in zip(rounds, masks, strict=False):
        for p, first, m in zip(
            *map(jax.tree.leaves, (state.params, saved.params, mask)), strict=True
        ):
            np.testing.assert_array_equal(p, np.where(m, first, 0))
        for v, first in zip(
            *map(jax.tree.leaves, (optax.tree.get(state.opt_state, "trace"), momentum)),
            strict=True,
        ):
            np.testing.assert_array_equal(v, first if keep_optimizer else 0 * first)
    for before, after in itertools.pairwise(masks):
        for b, a in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert not np.any(a & ~b)


def forward(params, images):
    """The network by NumPy: the inputs of its layers, and its logits."""
    x, inputs = np.asarray(images, np.float64).reshape(len(images), -1), []
    layers = [params["layers"][0], params["layers"][1], params["output"]]
    for i, layer in enumerate(layers):
        inputs.append(x)
        x = x @ np.asarray(layer["kernel"][...]) + np.asarray(layer["bias"][...])
        x = np.maximum(x, 0) if i < 2 else x
    return layers, inputs, x


def test_wanda_prunes_trained_networks_and_they_are_evaluated_as_they_are(small):
    start = METHODS["wanda"].start(small, 0.5)
    trained = small.dense(CONFIG.epochs)
    assert start.first == len(start.history) == CONFIG.epochs
    run = comparison.Row("wanda", 0.5)
    result = comparison.run_row(small, run, lambda: None)
    np.testing.assert_allclose(result.sparsity_reached, 0.5, atol=0.01)
    for seed in range(2):
        one = jax.tree.map(
            lambda x, i=seed: x[i], (trained.params, start.mask, start.params)
        )
        layers, inputs, _ = forward(one[0], small.batches[seed].images)
        masks, pruned = (forward(tree, np.zeros((1, 64)))[0] for tree in one[1:])
        for layer, x, mask, left in zip(layers, inputs, masks, pruned, strict=True):
            w, kept = (np.asarray(t["kernel"][...]) for t in (layer, mask))
            score = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
            np.testing.assert_array_equal(kept.sum(0), len(w) // 2)
            least = np.where(kept, score, np.inf).min(0)
            assert (np.where(kept, 0, score).max(0) <= 1.0001 * least).all()
            np.testing.assert_array_equal(left["kernel"][...], np.where(kept, w, 0))
        test = small.dataset.test
        _, _, logits = forward(one[2], small.dataset.standardize(test.images))
        right = (logits.argmax(1) == np.asarray(test.labels)).mean()
        np.testing.assert_allclose(result.test_accuracy[seed], right, atol=1e-6)


def test_sparse_mup_scales_hidden_weights_and_their_steps(small):
    start = METHODS["sparse_mup"].start(small, 0.75)
    layers = [
        (tree["layers"][0], tree["layers"][1], tree["output"])
        for tree in (small.dense(0).params, start.params, start.mask)
    ]
    for i, (old, new, mask) in enumerate(zip(*layers, strict=True)):
        scale, kept = (2, 24) if i == 1 else (1, old["kernel"][0].size)
        np.testing.assert_allclose(new["kernel"][...], scale * old["kernel"][...])
        np.testing.assert_array_equal(mask["kernel"][...].sum((1, 2)), kept)
    one = jax.tree.map(lambda x: x[0], start.params)
    tx = start.recipe.optimizer(small, optax.sgd(1.0), jnp.float32(0.75), None)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, one), tx.init(one), one)
    for i, layer in enumerate((*updates["layers"].values(), updates["output"])):
        np.testing.assert_allclose(layer["kernel"][...], -4.0 if i == 1 else -1.0)
        np.testing.assert_allclose(layer["bias"][...], -1.0)


def test_ac_dc_alternates_and_ends_sparse():
    setup = Phases(Pruning(every=1, until=0.6), None, 1, 20)
    recipe = METHODS["ac_dc"].start(setup, 0.75).recipe
    tx = recipe.optimizer(setup, optax.sgd(0.1), 0.75, None)
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    state, kept = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(20):
        updates, state = update({"w": jnp.full((2, 4), -1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        kept.append(int(jp.get_mask(state, params)["w"].sum()))
    # Pruning ends with update 12: phases of 2, which change with the second update.
    assert kept == [8, 2, 2, 8, 8, 2, 2, 8, 8, 2, 2, 2] + [2] * 8
    np.testing.assert_array_equal(params["w"][0], 0.0)
    assert (params["w"][1, :2] == 0).all() and (params["w"][1, 2:] > 7).all()


@pytest.mark.parametrize("method", ["ste", "random_dropout"])
def test_sparse_forward_passes_train_dense_weights(method, small):
    sparsity = 0.75
    start = METHODS[method].start(small, sparsity)
    state, history = small.train(start, 1, sparsity)
    mask = small.mask(start.recipe, state, small.keys.masks, sparsity)
    np.testing.assert_allclose(history[0].sparsity, sparsity, atol=1e-3)
    kernels = [
        (np.asarray(m), np.asarray(p))
        for m, p in zip(
            jax.tree.leaves(mask), jax.tree.leaves(state.params), strict=True
        )
        if m.ndim == 3
    ]
    removed = sum((~m).sum() for m, _ in kernels) / sum(m.size for m, _ in kernels)
    np.testing.assert_allclose(removed, sparsity, atol=1e-3)
    assert all((p != 0).all() for _, p in kernels)
    if method == "ste":  # The largest of each layer are kept.
        for m, p in kernels:
            for kept, size in zip(m, np.abs(p), strict=True):
                assert size[kept].min() >= size[~kept].max()
    if method == "random_dropout":
        again = small.mask(start.recipe, state, small.keys.params, sparsity)
        assert any(
            (m != n).any()
            for m, n in zip(jax.tree.leaves(mask), jax.tree.leaves(again), strict=True)
        )


def test_sr_ste_keeps_the_largest_two_of_four_inputs():
    recipe = METHODS["sr_ste"].start(Phases(CONFIG.pruning, None, 1, 1), 0.5).recipe
    params = {"w": jnp.array([[1.0], [-4.0], [3.0], [2.0]])}
    mask = recipe.mask(params, None, 0.5, None)
    np.testing.assert_array_equal(mask["w"], [[0], [1], [1], [0]])


def test_top_kast_reaches_twice_the_weights_that_it_runs():
    recipe = METHODS["top_kast"].start(Phases(CONFIG.pruning, None, 1, 1), 0.75).recipe
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    loss = recipe.sparse(lambda p: p["w"].sum(), 0.75, None)
    np.testing.assert_array_equal(
        jax.grad(loss)(params)["w"], [[0, 0, 0, 0], [1, 1, 1, 1]]
    )
    assert loss(params) == 7 + 8
