"""k_starts and dissipating, each against the same written out in NumPy."""

import itertools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import (
    MASK,
    PARAMS,
    assert_pruned_are_zero,
    exact_count,
    jitted,
    kept,
    normal,
    numpy_global_mask,
    pull,
    train,
    training_step,
)

KEY = jax.random.key(3)
SHAPES = {"kernel": (7, 5), "head": (5, 3), "bias": (5,)}
START = normal(1, **SHAPES)
MATRICES = ("head", "kernel")  # In leaf order.


def _run(tx, steps, params=START, **extra):
    """Trains on random gradients; yields gradient, parameters given, state and new.

    ``extra`` makes extra arguments of the gradient.
    """
    state = tx.init(params)
    update, _ = jitted(lambda g, s, p, extra: tx.update(g, s, p, **extra))
    for k in range(steps):
        gradient = normal(100 + k, **SHAPES)
        more = {name: function(gradient) for name, function in extra.items()}
        updates, state = update(gradient, state, params, more)
        given, params = params, optax.apply_updates(params, updates)
        yield gradient, given, state, params


def _matrices(mask):
    return [np.asarray(mask[name]) for name in MATRICES]


# k_starts


def _candidates(k, sparsities):
    """The k masks by NumPy's sort of the noise that `random` makes of each key."""
    masks = []
    for key in jax.random.split(KEY, k):
        noise = jp.random(key)(START)
        mask = {"bias": np.ones(5, bool)}
        for n in MATRICES:
            removed = exact_count(sparsities[n], noise[n].size)
            (mask[n],) = numpy_global_mask([noise[n]], removed)
        masks.append(mask)
    return masks


def _shares(mask, sizes):
    """The mean over the matrices of the share of the size that a mask keeps."""
    sizes = {n: np.abs(np.asarray(sizes[n], np.float64)) for n in MATRICES}
    return np.mean([sizes[n][mask[n]].sum() / sizes[n].sum() for n in MATRICES])


SPARSITIES = {"number": 0.6, "tree": {"kernel": 0.8, "head": 0.25, "bias": 0.0}}
EXTRA = {"updates": {}, "grad": {"grad": lambda g: jax.tree.map(lambda x: 1 - x, g)}}


@pytest.mark.parametrize(
    ("fitness", "sparsity", "extra"),
    [
        ("magnitude", "tree", "updates"),
        ("gradient", "number", "updates"),
        ("both", "number", "grad"),
        ("both", "tree", "updates"),
    ],
)
def test_k_starts_in_numpy(fitness, sparsity, extra):
    sparsity = SPARSITIES[sparsity]
    link = jp.k_starts(KEY, 6, sparsity, select_at=4, fitness=fitness)
    tx = optax.chain(optax.sgd(0.1), link)
    each = sparsity if isinstance(sparsity, dict) else dict.fromkeys(SHAPES, sparsity)
    candidates = _candidates(6, each)
    evidence, expected = {n: 0.0 for n in SHAPES}, np.zeros(6)
    for k, (gradient, given, state, params) in enumerate(
        _run(tx, 6, **EXTRA[extra]), start=1
    ):
        if k <= 4:
            x = {
                n: 0.1 * g if extra == "updates" else 1 - g for n, g in gradient.items()
            }
            evidence = {n: evidence[n] + np.abs(np.asarray(x[n])) for n in x}
        if k == 4:
            parts = {
                "magnitude": [_shares(m, given) for m in candidates],
                "gradient": [_shares(m, evidence) for m in candidates],
            }
            parts["both"] = np.mean(list(parts.values()), axis=0)
            expected = parts[fitness]
        np.testing.assert_allclose(
            optax.tree.get(state, "fitness"), expected, rtol=1e-5
        )
        mask = jp.get_mask(state, params)
        if k < 4:
            assert kept(mask) == 35 + 15 + 5
        else:
            chex.assert_trees_all_equal(mask, candidates[np.argmax(expected)])
            assert_pruned_are_zero(params, mask)
        if fitness == "magnitude":
            assert optax.tree.get(state, "evidence") == ()
        else:  # After the choice no more is gathered.
            found = optax.tree.get(state, "evidence")
            chex.assert_trees_all_close(found, evidence, rtol=1e-5)


def test_the_union_is_trained_until_one_of_its_masks_is_chosen():
    each = dict.fromkeys(SHAPES, 0.8)
    candidates = _candidates(3, each)
    either = jax.tree.map(lambda *m: np.any(m, axis=0), *candidates)
    link = jp.k_starts(KEY, 3, 0.8, select_at=4, mode="union")
    tx = optax.chain(optax.sgd(0.1), link)
    chex.assert_trees_all_equal(jp.get_mask(tx.init(START), START), either)
    for k, (_, given, state, params) in enumerate(_run(tx, 5), start=1):
        mask = jp.get_mask(state, params)
        assert_pruned_are_zero(params, mask)
        if k < 4:
            chex.assert_trees_all_equal(mask, either)
        if k == 4:
            shares = [_shares(m, given) for m in candidates]
            seen = optax.tree.get(state, "evidence")
            shares = np.mean([shares, [_shares(m, seen) for m in candidates]], axis=0)
            np.testing.assert_allclose(
                optax.tree.get(state, "fitness"), shares, rtol=1e-5
            )
            chosen = candidates[np.argmax(shares)]
        if k >= 4:
            chex.assert_trees_all_equal(mask, chosen)


def test_the_candidates_differ_and_another_key_draws_others():
    def winner(key):
        tx = jp.k_starts(key, 1, 0.5, select_at=1)
        return tx.update(START, tx.init(START), START)[1].mask

    keys = jax.random.split(KEY, 40)
    masks = jitted(jax.vmap(winner))[0](keys)
    winners = np.concatenate([m.reshape(40, -1) for m in _matrices(masks)], axis=1)
    assert len(np.unique(winners, axis=0)) == 40
    # Each of 50 weights is kept about half the time: 4 standard deviations of 40 coins.
    assert (winners.sum(axis=1) == 35 - 18 + 15 - 8).all()  # Halves go to even.
    assert np.abs(winners.mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(40)


def test_the_fittest_wins_where_the_weights_are_made_to_suit_it():
    tx = jp.k_starts(KEY, 5, 0.5, select_at=1, fitness="magnitude")
    update, _ = jitted(tx.update)
    for j, mask in enumerate(_candidates(5, dict.fromkeys(SHAPES, 0.5))):
        params = {n: jnp.where(mask[n], 1.5, 1.0) * jnp.sign(START[n]) for n in START}
        _, state = update(pull(params), tx.init(params), params)
        assert np.argmax(state.fitness) == j
        chex.assert_trees_all_equal(state.mask, mask)


def test_fitness_is_the_share_kept_whatever_the_scale_of_a_leaf():
    scaled = {**START, "kernel": 1e6 * START["kernel"]}
    tx = jp.k_starts(KEY, 5, 0.5, select_at=1, fitness="magnitude")
    update, _ = jitted(tx.update)
    states = [update(p, tx.init(p), p)[1] for p in (START, scaled)]
    np.testing.assert_allclose(states[0].fitness, states[1].fitness, rtol=1e-5)
    assert np.ptp(states[0].fitness) > 0


def test_a_choice_is_made_whatever_the_gradients():
    tx = jp.k_starts(KEY, 3, 0.5, select_at=1, fitness="gradient")
    update, _ = jitted(tx.update)
    for value in (0.0, jnp.inf, jnp.nan):
        gradient = jax.tree.map(lambda p, x=value: jnp.full_like(p, x), START)
        _, state = update(gradient, tx.init(START), START)
        assert kept(_matrices(state.mask)) == 35 + 15 - round(17.5) - round(7.5)


def test_evidence_is_summed_in_float32_at_least():
    start = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = jp.k_starts(KEY, 2, 0.5, select_at=400)
    state = tx.init(start)._replace(
        evidence=jax.tree.map(lambda p: jnp.full(p.shape, 256.0), start)
    )
    ones = jax.tree.map(jnp.ones_like, start)
    _, state = jitted(tx.update)[0](ones, state, start)
    assert all((e == 257).all() for e in jax.tree.leaves(state.evidence))


def test_grad_is_narrowed_inside_masked():
    link = jp.k_starts(KEY, 3, 0.5, select_at=2)
    inside = optax.masked(link, jp.by_path("kernel"))
    state, gradient = inside.init(PARAMS), pull(PARAMS)
    update, _ = jitted(lambda s: inside.update(gradient, s, PARAMS, grad=gradient))
    for _ in range(2):
        _, state = update(state)
    evidence = 2 * np.abs(np.asarray(pull(PARAMS)["kernel"]))
    found = optax.tree.get(state, "evidence")["kernel"]
    np.testing.assert_allclose(found, evidence, rtol=1e-6)
    mask = jp.get_mask(state, PARAMS)
    assert kept(mask["kernel"]) == 6 and kept((mask["head"], mask["bias"])) == 9


def test_under_shard_map_every_shard_chooses_for_itself():
    mesh = jax.make_mesh((4,), ("x",))
    params = {"w": jax.random.normal(KEY, (8, 6))}
    params = jax.device_put(params, NamedSharding(mesh, P("x")))
    tx = jp.k_starts(KEY, 3, 0.5, select_at=1)
    specs = jax.tree.map(lambda x: P("x") if x.ndim == 2 else P(), tx.init(params))
    step, _ = jitted(
        jax.shard_map(
            training_step(tx),
            mesh=mesh,
            in_specs=(P("x"), specs),
            out_specs=(P("x"), specs),
            check_vma=False,
        )
    )
    _, state = step(params, tx.init(params))
    mask = np.asarray(state.mask["w"])
    assert (mask.reshape(4, 12).sum(axis=1) == 6).all()


def test_each_lane_draws_by_its_own_key():
    def made(key):
        return jp.k_starts(key, 4, 0.5, select_at=2)

    keys = jax.random.split(KEY, 3)
    states = jax.vmap(lambda key: made(key).init(PARAMS))(keys)
    params = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    step, _ = jitted(jax.vmap(training_step(made(KEY))))  # The state's key counts.
    for _ in range(2):
        params, states = step(params, states)
    for i, key in enumerate(keys):
        _, alone = train(made(key), PARAMS, 2)[-1]
        lane = jax.tree.map(lambda m, i=i: m[i], states.mask)
        chex.assert_trees_all_equal(lane, alone.mask)
    assert not np.array_equal(states.mask["kernel"][0], states.mask["kernel"][1])


def test_a_fitness_that_is_not_a_number_is_beaten_by_any_that_is():
    params = {**START, "kernel": START["kernel"].at[0, 0].set(jnp.inf)}
    tx = jp.k_starts(KEY, 4, 0.6, select_at=1, fitness="magnitude")
    _, state = tx.update(START, tx.init(params), params)
    fitness = np.asarray(state.fitness)
    masks = _candidates(4, dict.fromkeys(SHAPES, 0.6))
    assert np.isnan(fitness).any()
    best = np.argmax(np.where(np.isnan(fitness), -1, fitness))
    chex.assert_trees_all_equal(state.mask, masks[best])


def test_the_union_spreads_over_a_leaf_that_starts_at_zero():
    zeros = {"w": jnp.zeros((10, 4))}
    tx = jp.k_starts(KEY, 3, 0.8, select_at=2, mode="union")
    mask = np.asarray(tx.init(zeros).mask["w"])
    drawn = [
        jp.layerwise_mask(jp.random(key)(zeros), 0.8)["w"]
        for key in jax.random.split(KEY, 3)
    ]
    np.testing.assert_array_equal(mask, np.any(drawn, axis=0))
    assert mask.any(axis=1).sum() > 3


# dissipating


def _remaining(mask, given, removed=None, threshold=None):
    """What stays of the weights in the mask, by float64 and NumPy's sort."""
    alive = [
        m & (np.asarray(given[n]) != 0) for n, m in zip(MATRICES, mask, strict=True)
    ]
    now, start = (
        [np.asarray(tree[n], np.float64) for n in MATRICES] for tree in (given, START)
    )
    moved = [np.abs(a - b) / np.abs(b) for a, b in zip(now, start, strict=True)]
    if threshold is not None:
        return [m & (r > threshold) for m, r in zip(mask, moved, strict=True)]
    return numpy_global_mask(moved, removed, alive)


MODES = {
    "cubic": {"sparsity": optax.polynomial_schedule(0.0, 0.9, 3, 9)},
    "constant": {"sparsity": 0.55},
    "threshold": {"threshold": 0.2},
    "threshold 0": {"threshold": 0.0},
    "late threshold": {"threshold": lambda k: jnp.where(k > 5, 0.2, -1.0)},
}


@pytest.mark.parametrize(
    ("mode", "every", "until"),
    [
        ("cubic", 2, None),
        ("cubic", 3, 6),
        ("constant", 2, 6),
        ("constant", 3, None),
        ("threshold", 3, 6),
        ("threshold 0", 2, None),
        ("late threshold", 2, None),
    ],
)
def test_dissipating_in_numpy(mode, every, until):
    options = MODES[mode]
    tx = optax.chain(
        optax.sgd(0.05), jp.dissipating(**options, every=every, until=until)
    )
    sparsity = options.get("sparsity")
    traced = jax.jit(sparsity) if callable(sparsity) else lambda _: sparsity
    expected = [np.ones(SHAPES[n], bool) for n in MATRICES]
    for k, (_, given, state, params) in enumerate(_run(tx, 10), start=1):
        if k % every == 0 and k <= (until or 10):
            if sparsity is None:
                threshold = options["threshold"]
                threshold = threshold(k) if callable(threshold) else threshold
                expected = _remaining(expected, given, threshold=float(threshold))
            else:
                removed = exact_count(traced(k), 50)
                expected = _remaining(expected, given, removed)
        mask = jp.get_mask(state, params)
        chex.assert_trees_all_equal(_matrices(mask), expected)
        assert mask["bias"].all()
        chex.assert_trees_all_equal(optax.tree.get(state, "start"), START)
        if kept(expected) < 50:
            assert_pruned_are_zero(params, mask)
    assert kept(expected) < 50 or mode == "threshold 0"


def test_it_is_the_relative_way_that_counts_not_the_size():
    params = {"w": jnp.array([[100.0, 0.1, -100.0, -0.1]])}
    moved = {"w": jnp.array([[105.0, 0.2, -80.0, -0.101]])}
    tx = jp.dissipating(0.5, every=2, until=None)
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(moved, state, moved)
    np.testing.assert_array_equal(state.mask["w"], [[False, True, True, False]])


def test_weights_that_start_at_zero_go_last_once_they_have_moved():
    params = {"w": jnp.array([[0.0, 0.0, 1.0, 1.0]])}
    moved = {"w": jnp.array([[1e-9, 0.0, 9.0, 1.5]])}
    masks = {}
    for sparsity in (0.25, 0.5, 0.75):
        tx = jp.dissipating(sparsity, every=2, until=None)
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(moved, state, moved)
        masks[sparsity] = np.asarray(state.mask["w"][0], int).tolist()
    assert masks == {0.25: [1, 0, 1, 1], 0.5: [1, 0, 1, 0], 0.75: [1, 0, 0, 0]}


def test_weight_decay_alone_moves_every_weight_unless_the_start_decays_too():
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    tx = optax.chain(decay, jp.dissipating(threshold=0.1, every=4, until=None))
    still = {n: jnp.zeros_like(p) for n, p in START.items()}
    for move_start, remain in ((False, 50), (True, 0)):
        params, state = START, tx.init(START)
        for k in range(4):  # Given to the fourth: 1 - 0.95**3 = 0.14 from the start.
            if move_start:
                factor = 0.95**k
                decayed = {n: factor * p for n, p in START.items()}
                state = optax.tree.set(state, start=decayed)
            updates, state = tx.update(still, state, params)
            params = optax.apply_updates(params, updates)
        assert kept(_matrices(jp.get_mask(state, params))) == remain


@pytest.mark.parametrize("init", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_donating_parameters_and_state_spares_the_start(init):
    tx = optax.chain(optax.sgd(0.1), jp.dissipating(0.5, every=2, until=None))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = init(tx.init)(params)
    step, _ = jitted(training_step(tx), donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state)
    chex.assert_trees_all_equal(optax.tree.get(state, "start"), PARAMS)


# Both


def test_dissipating_counts_what_k_starts_removed():
    schedule = optax.linear_schedule(0.0, 0.8, 3, transition_begin=4)
    tx = optax.chain(
        optax.sgd(0.05),
        jp.k_starts(KEY, 4, 0.4, select_at=4),
        jp.dissipating(schedule, every=2, until=8),
    )
    history = list(_run(tx, 10, grad=lambda g: g))
    masks = [jp.get_mask(state, params) for _, _, state, params in history]
    counts = [kept(_matrices(mask)) for mask in masks]
    # Of 50 weights 20 are drawn out; then 27 and 40 are gone in all, with those 20.
    assert counts == [50] * 3 + [30] * 2 + [23] * 2 + [10] * 3
    fittest = masks[3]
    _, given, _, _ = history[7]
    expected = _remaining(_matrices(masks[6]), given, 40)
    chex.assert_trees_all_equal(_matrices(masks[7]), expected)
    for before, after in itertools.pairwise(masks):
        assert not any((after[n] & ~before[n]).any() for n in after)
    assert not any((masks[-1][n] & ~fittest[n]).any() for n in MATRICES)
    for mask, (_, _, _, params) in zip(masks[3:], history[3:], strict=True):
        assert_pruned_are_zero(params, mask)


def test_k_starts_counts_what_dissipating_removed():
    tx = optax.chain(
        optax.sgd(0.05),
        jp.dissipating(0.3, every=2, until=2),
        jp.k_starts(KEY, 4, 0.6, select_at=5),
    )
    *_, (_, _, state, params) = _run(tx, 6)
    mask = jp.get_mask(state, params)
    assert kept(mask["kernel"]) == 35 - 21 and kept(mask["head"]) == 15 - 9
    assert_pruned_are_zero(params, mask)


def test_a_mask_set_by_hand_is_pruned_further():
    for link in (
        jp.k_starts(KEY, 3, 0.75, select_at=2),
        jp.dissipating(0.75, every=2, until=None),
    ):
        state = jp.set_mask(link.init(PARAMS), MASK)
        params, state = train(link, PARAMS, 3, state)[-1]
        assert not any((state.mask[n] & ~MASK[n]).any() for n in MASK)
        assert kept(state.mask["kernel"]) + kept(state.mask["head"]) in (4, 5)
        assert_pruned_are_zero(params, state.mask)


# Off the due steps nothing is done

DUE = {
    "k_starts": (jp.k_starts, "layerwise_mask", jp.k_starts(KEY, 2, 0.5, select_at=4)),
    "dissipating": (
        jp.dissipating,
        "global_mask",
        jp.dissipating(0.5, every=4, until=4),
    ),
}


@pytest.mark.parametrize("link", DUE)
def test_masks_are_made_on_due_updates_only_also_under_vmap(link, monkeypatch):
    function, name, tx = DUE[link]
    module = sys.modules[function.__module__]
    calls, original = [], getattr(module, name)

    def watched(*args, **options):
        jax.debug.callback(lambda: calls.append(None))
        return original(*args, **options)

    monkeypatch.setattr(module, name, watched)
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    step, _ = jitted(jax.vmap(training_step(tx)))
    seen = []
    for _ in range(8):
        params, state = step(params, state)
        jax.block_until_ready(params)
        jax.effects_barrier()
        seen.append(len(calls))
    assert seen[2] == 0 and seen[3] > 0 and seen[3:] == [seen[3]] * 5


@pytest.mark.parametrize("link", DUE)
def test_each_lane_is_due_at_its_own_step(link):
    *_, tx = DUE[link]
    params = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    state = jax.vmap(tx.init)(params)._replace(step=jnp.array([0, 2], jnp.int32))
    step, _ = jitted(jax.vmap(training_step(optax.chain(optax.sgd(0.1), tx))))
    state = (jax.vmap(optax.sgd(0.1).init)(params), state)
    counts = []
    for _ in range(4):
        params, state = step(params, state)
        masks = [jax.tree.map(lambda m, i=i: m[i], state[1].mask) for i in (0, 1)]
        counts.append([kept((m["kernel"], m["head"])) for m in masks])
    assert counts == [[18, 18], [18, 9], [18, 9], [9, 9]]
