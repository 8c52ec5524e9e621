"""Sparse training: every transform, in every optimizer and wrapper of optax."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from tests.helpers import (
    MASK,
    PARAMS,
    QUICK,
    assert_pruned_are_zero,
    exact_count,
    jitted,
    kept,
    normal,
    numpy_global_mask,
    pull,
    train,
    training_step,
    types,
)

STEPS = 20
LR = 0.05


def _least_of_each(params, mask, step):
    del step
    return jp.layerwise_mask(jp.magnitude(params), 0.5, prior=mask)


# A new transform is one line here and inherits every test below: how it stands around
# or behind an optimizer. Some find their own mask, and are sparse from update 4 on.
LINKS = {
    "keep_sparse": lambda tx, mask: optax.chain(tx, jp.keep_sparse(mask)),
    "sparse": lambda tx, mask: jp.sparse(tx, mask),
    "gradual": lambda tx, _: optax.chain(tx, jp.gradual(0.5, every=4)),
    "update_mask": lambda tx, _: optax.chain(
        tx, jp.update_mask(_least_of_each, every=4, until=8)
    ),
    "k_starts": lambda tx, _: optax.chain(
        tx, jp.k_starts(jax.random.key(0), 3, 0.5, select_at=4)
    ),
    "dissipating": lambda tx, _: optax.chain(
        tx, jp.dissipating(0.5, every=4, until=None)
    ),
    "gradual_n_m": lambda tx, _: optax.chain(
        tx, jp.gradual_n_m(1, 2, every=4, prunable=jp.divisible_by(2))
    ),
    "rigl": lambda tx, mask: jp.rigl(tx, mask, every=4, until=None),
    "set_training": lambda tx, mask: jp.set_training(
        tx, mask, key=jax.random.key(3), every=4, until=None
    ),
    "granet": lambda tx, _: jp.granet(tx, 0.5, every=4, until=None),
}
STARTS_DENSE = (
    "gradual",
    "update_mask",
    "gradual_n_m",
    "granet",
    "k_starts",
    "dissipating",
)
FIRST_DUE = {link: 4 if link in STARTS_DENSE else 1 for link in LINKS}
each_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())


@functools.cache
def _behind_adamw(link):
    """A link, its update (compiled once for many tests) and the traces of it."""
    tx = link(optax.adamw(0.05, weight_decay=0.1), MASK)
    return tx, *jitted(tx.update)


def _train(update, params, state, steps):
    """As ``train``, by an update that is compiled already."""
    for _ in range(steps):
        updates, state = update(pull(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# Weights come back, and the optimizer must have a state for each of them. The three
# differ in which: all optimizers stand in one of them, the wrappers below in each.
REGROWS = ("rigl", "set_training", "granet")
SHARES_STATE = ("adafactor", "novograd", "sm3", "galore")

# Optimizers that take (updates, state, params) are found, not listed.
EXCLUDED = {
    "lbfgs": "its line search needs value, grad and value_fn",
    "polyak_sgd": "needs value",
    "momo": "needs value",
    "momo_adam": "needs value",
    "sophia": "its Hessian estimate needs obj_fn",
    "dpsgd": "takes one gradient an example",
    "schedule_free": "a wrapper, in the table of wrappers",
    "lookahead": "updates a pair of parameters: its slow ones go through apply_mask",
    "sam": "every other update goes up the loss, and does not end a step",
    "optimistic_adam": "deprecated: optimistic_adam_v2 is in",
}


def _optimizers():
    return {
        name: function
        for module in (optax, optax.contrib)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and "learning_rate" in inspect.signature(function).parameters
        and not name.startswith(("_", "scale_by_"))
        and name not in EXCLUDED
    }


OPTIMIZERS = _optimizers()

# A link behind an optimizer sees its updates and nothing else of it: two stand for all.
# Two links around an optimizer stand for all, of which one gives new weights new state.
IN_ALL = ("sparse", "rigl")
IN_SOME = ("adamw", "prodigy")
each_pair = pytest.mark.parametrize(
    ("link", "name"),
    [
        (link, name)
        for link in LINKS
        for name in (OPTIMIZERS if link in IN_ALL else IN_SOME)
        if link not in REGROWS or name not in SHARES_STATE
    ],
)


def _optimizer(name):
    """With weight decay and momentum wherever it takes them."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    options = {"weight_decay": 0.1, "weight_decay_rate": 0.1, "momentum": 0.9}
    options |= {"key": jax.random.key(0)}
    options = {k: v for k, v in options.items() if k in parameters}
    if parameters["learning_rate"].default is inspect.Parameter.empty:
        options["learning_rate"] = 0.01
    return OPTIMIZERS[name](**options)


def test_the_table_of_optimizers_is_neither_empty_nor_stale():
    assert {"sgd", "adamw", "lion", "adafactor", "muon", "prodigy"} <= set(OPTIMIZERS)
    assert not [n for n in EXCLUDED if n not in {*vars(optax), *vars(optax.contrib)}]


@each_pair
def test_pruned_weights_are_exactly_zero_in_every_optimizer(link, name):
    tx = LINKS[link](_optimizer(name), MASK)
    before, history = types(tx.init(PARAMS)), train(tx, PARAMS, STEPS)  # In one trace.
    for params, state in history[FIRST_DUE[link] - 1 :]:
        assert_pruned_are_zero(params, jp.get_mask(state, params))
    chex.assert_tree_all_finite(params)
    assert before == types(history[0][1]) == types(history[-1][1])


# Every wrapper of optax that may stand around a link, or between it and the optimizer;
# apply_if_finite has a test of its own. `linked` puts the link to the test on an
# optimizer, `inner` makes one.
WRAPPERS = {
    "masked": lambda linked, inner: optax.chain(
        optax.masked(linked(inner(LR)), jp.matrices),
        optax.masked(optax.scale(-LR), jp.by_path("bias")),
    ),
    "partition": lambda linked, inner: optax.partition(
        {"head": linked(inner(LR)), "rest": linked(optax.sgd(LR)), "bias": inner(LR)},
        {"kernel": "rest", "head": "head", "bias": "bias"},
    ),
    "MultiSteps": lambda linked, inner: optax.MultiSteps(
        linked(inner(LR)), every_k_schedule=2
    ).gradient_transformation(),
    "inject_hyperparams": lambda linked, inner: optax.inject_hyperparams(
        lambda learning_rate: linked(inner(learning_rate))
    )(learning_rate=LR),
    "schedule_free": lambda linked, inner: linked(
        optax.contrib.schedule_free(inner(LR), LR)
    ),
    "mechanize": lambda linked, inner: linked(optax.contrib.mechanize(inner(LR))),
    "flatten": lambda linked, inner: linked(optax.flatten(inner(LR))),
}
INNER = {
    "sgd": lambda learning_rate: optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(learning_rate, momentum=0.9)
    ),
    "adamw": lambda learning_rate: optax.adamw(learning_rate, weight_decay=0.1),
}


@pytest.mark.parametrize(
    ("link", "wrapper"),
    [
        (link, wrapper)
        for link in LINKS
        for wrapper in WRAPPERS
        if not (link in REGROWS and wrapper == "flatten")
        # A link that sees the head alone finds no pairs in its three rows.
        if (link, wrapper) != ("gradual_n_m", "partition")
    ],
)
def test_pruned_weights_are_exactly_zero_in_every_wrapper(link, wrapper):
    tx = WRAPPERS[wrapper](lambda tx: LINKS[link](tx, MASK), INNER["adamw"])
    # MultiSteps swallows calls, so start sparse, unless the link starts dense itself.
    start = PARAMS if link in STARTS_DENSE else jp.apply_mask(PARAMS, MASK)
    state = tx.init(start)
    history = train(tx, start, STEPS, state)
    for params, new in history[2 * FIRST_DUE[link] - 1 :]:
        mask = jp.get_mask(new, params)
        assert_pruned_are_zero(params, mask)
        assert types(new) == types(state)
        if wrapper in ("masked", "partition"):  # They hide the bias from the link.
            assert mask["bias"].all() and params["bias"].all()
    chex.assert_tree_all_finite(params)
    assert not np.array_equal(params["kernel"], start["kernel"])


@each_link
def test_apply_if_finite_swallows_a_bad_gradient_and_the_mask_still_holds(link):
    tx = optax.apply_if_finite(link(optax.sgd(0.1, momentum=0.9), MASK), 3)
    params = jp.apply_mask(PARAMS, MASK)
    state, (step, traces) = jp.set_mask(tx.init(params), MASK), jitted(tx.update)
    before = types(state)
    for k in range(1, 9):
        scale = jnp.nan if k in (1, 5) else 1.0
        gradient = jax.tree.map(lambda g, s=scale: g * s, pull(params))
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite(params)
        assert_pruned_are_zero(params, jp.get_mask(state, params))
    assert types(state) == before and len(traces) == 1


# Types and donation


@pytest.mark.parametrize(
    ("dtype", "inner"), [(jnp.bfloat16, "adamw"), (jnp.float16, "sgd")]
)
@each_link
def test_half_precision_parameters(link, dtype, inner):
    start = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = link(INNER[inner](0.05), MASK)
    params, state = train(tx, start, compiler_options=None)[-1]
    assert types(params) == types(start)
    assert_pruned_are_zero(params, jp.get_mask(state, params))


@each_link
def test_updates_of_less_precision_than_the_parameters(link):
    # -param rounded to bfloat16 would leave the weight's last bits behind.
    halves = {"kernel": jnp.bfloat16, "head": jnp.float16, "bias": jnp.bfloat16}
    to_half = optax.stateless(
        lambda u, _: jax.tree.map(lambda x, dtype: x.astype(dtype), u, halves)
    )
    tx = link(optax.chain(optax.sgd(0.05, momentum=0.9), to_half), MASK)
    updates, _ = jax.eval_shape(tx.update, pull(PARAMS), tx.init(PARAMS), PARAMS)
    assert types(updates) == types(PARAMS)
    params, state = train(tx, PARAMS, 4, compiler_options=None)[-1]
    assert_pruned_are_zero(params, jp.get_mask(state, params))


@each_link
def test_pruned_not_a_number_or_infinity_does_not_come_through(link):
    # NaN * 0 is NaN: the mask must choose, not multiply.
    tx, update, _ = _behind_adamw(link)
    params, state = PARAMS, jp.set_mask(tx.init(PARAMS), MASK)
    for worst in (np.nan, np.inf, -np.inf):
        gradient = jax.tree.map(
            lambda g, m, worst=worst: jnp.where(m, g, worst), pull(params), MASK
        )
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        assert_pruned_are_zero(params, MASK)
        chex.assert_tree_all_finite(params)


@each_link
def test_donating_the_state_spares_the_users_mask(link):
    mask = jax.tree.map(jnp.copy, MASK)
    tx = link(optax.adamw(0.1), mask)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = jp.set_mask(tx.init(params), mask)
    step, _ = jitted(training_step(tx), donate_argnums=(0, 1))
    first = state
    for _ in range(5):
        params, state = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))  # It was donated.
    chex.assert_trees_all_equal(mask, MASK)
    state = tx.init(params)  # And the mask still serves.
    params, state = step(params, state)


# States


@each_link
def test_abstract_init_gives_the_types_of_init(link):
    tx = link(optax.adamw(0.1), MASK)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert types(jax.eval_shape(tx.init, PARAMS)) == types(tx.init(PARAMS))
    assert types(jax.eval_shape(tx.init, shapes)) == types(tx.init(PARAMS))


@each_link
def test_init_under_jit_is_init(link):
    tx = link(optax.adamw(0.1), MASK)
    chex.assert_trees_all_equal(jax.jit(tx.init)(PARAMS), tx.init(PARAMS))


@each_link
def test_without_a_mask_nothing_is_pruned(link):
    tx = link(optax.sgd(0.1), None)
    assert kept(jp.get_mask(tx.init(PARAMS), PARAMS)) == 12 + 6 + 3


@each_link
def test_optax_maps_over_the_parameter_like_parts(link):
    tx = link(optax.adam(0.1), MASK)
    marked = optax.tree.map_params(
        tx, lambda _: "like", tx.init(PARAMS), transform_non_params=lambda _: "other"
    )
    like = jax.tree.map(lambda _: "like", PARAMS)
    assert optax.tree.get(marked, "mask") == like
    assert optax.tree.get(marked, "mu") == like
    assert optax.tree.get(marked, "step") == "other"


@each_link
def test_a_swap_by_optax_does_not_retrace(link):
    tx, update, traces = _behind_adamw(link)
    params, state = _train(update, PARAMS, tx.init(PARAMS), 1)
    swapped = jax.tree.map(jnp.logical_not, MASK)
    state = optax.tree.set(state, mask=swapped)
    params, state = _train(update, params, state, 1)
    assert_pruned_are_zero(params, swapped)
    chex.assert_trees_all_equal(optax.tree.get(state, "mask"), swapped)
    assert len(traces) == 1


@each_link
def test_step_counts_updates(link):
    tx, update, _ = _behind_adamw(link)
    params, state = PARAMS, tx.init(PARAMS)
    for k in (1, 2, 3):
        params, state = _train(update, params, state, 1)
        step = optax.tree.get(state, "step")
        assert step == k and step.dtype == jnp.int32


def _traced(tx, **extra):
    """The program of an update, with extra arguments that are known while tracing."""
    update = functools.partial(tx.update, **extra)
    return str(jax.make_jaxpr(update)(pull(PARAMS), tx.init(PARAMS), PARAMS))


@each_link
def test_unknown_extra_arguments_are_tolerated(link):
    tx = link(optax.sgd(0.1), MASK)
    assert _traced(tx, value=1.0, odd="x") == _traced(tx)


@each_link
def test_extra_arguments_reach_the_optimizer(link):
    def update(updates, state, params=None, *, factor, **_):
        factors.append(factor)
        return updates, state

    factors = []
    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    _traced(link(inner, MASK), factor=3.0)
    assert factors and set(factors) == {3.0}


@each_link
def test_an_update_without_params_says_what_to_do(link):
    tx = link(optax.sgd(0.1), MASK)
    with pytest.raises(ValueError, match=r"tx\.update\(grads, opt_state, params\)"):
        tx.update(pull(PARAMS), tx.init(PARAMS))


# Kept weights


@each_link
def test_an_all_true_mask_changes_nothing(link):
    tx, update, _ = _behind_adamw(link)
    dense = jax.tree.map(lambda p: jnp.ones_like(p, bool), PARAMS)
    params, state = PARAMS, jp.set_mask(tx.init(PARAMS), dense)
    for expected, _ in _adamw_alone():  # No link is due before update 4.
        params, state = _train(update, params, state, 1)
        chex.assert_trees_all_close(params, expected, rtol=1e-6)


@functools.cache
def _adamw_alone():
    return train(optax.adamw(0.05, weight_decay=0.1), PARAMS, 3)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
@pytest.mark.parametrize("link", ["keep_sparse", "sparse"])
def test_kept_weights_go_where_the_optimizer_alone_takes_them(link, inner):
    # The loss and both optimizers are elementwise, so nothing else may reach them.
    params, _ = train(LINKS[link](inner(0.05), MASK), PARAMS)[-1]
    alone, _ = train(inner(0.05), PARAMS)[-1]
    expected = jax.tree.map(lambda a, m: np.where(m, a, 0.0), alone, MASK)
    chex.assert_trees_all_close(params, expected, rtol=1e-5)


def test_sparse_clips_by_the_norm_of_the_kept_gradients():
    params, mask = {"w": jnp.ones(3)}, {"w": jnp.array([True, True, False])}
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    gradient = {"w": jnp.array([3.0, 4.0, 12.0])}  # Norm 5 if kept, 13 in all.

    def updates(tx):
        return tx.update(gradient, tx.init(params), params)[0]["w"]

    np.testing.assert_allclose(updates(jp.sparse(clipped, mask)), [-0.6, -0.8, -1])
    behind = optax.chain(clipped, jp.keep_sparse(mask))
    np.testing.assert_allclose(updates(behind), [-3 / 13, -4 / 13, -1], rtol=1e-6)


def test_sparse_keeps_the_moments_of_pruned_weights_at_zero():
    _, state = train(jp.sparse(optax.adam(0.1), MASK), PARAMS)[-1]
    for name in ("mu", "nu"):
        moments = optax.tree.get(state, name)
        assert_pruned_are_zero(moments, MASK)
        assert all(moments[leaf][MASK[leaf]].all() for leaf in MASK)


# gradual


def _sgd_reference(params, gradients, sparsity, every, lr=0.1):
    """Zhu & Gupta in NumPy and float64: masks and parameters after every step."""
    names = sorted(params)
    params = {n: np.asarray(params[n], np.float64) for n in names}
    prunable = [n for n in names if params[n].ndim >= 2]
    size = sum(params[n].size for n in prunable)
    mask = {n: np.ones(params[n].shape, bool) for n in names}
    for k, gradient in enumerate(gradients, start=1):
        if k % every == 0:
            new = numpy_global_mask(
                [np.abs(params[n]) for n in prunable],
                exact_count(sparsity(k), size),
                [mask[n] for n in prunable],
            )
            mask |= dict(zip(prunable, new, strict=True))
        params = {n: params[n] - lr * np.asarray(gradient[n]) for n in names}
        params = {n: np.where(mask[n], params[n], 0.0) for n in names}
        yield mask, params


SCHEDULES = {
    "cubic": optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=12),
    "begins_late": optax.polynomial_schedule(0.0, 0.7, 1, 6, transition_begin=4),
    "constant": 0.55,  # A Python number: the count is that of its float64.
    "falls": optax.linear_schedule(0.8, 0.1, 12),
}


@pytest.mark.parametrize(
    ("schedule", "every"),
    [("cubic", 1), ("cubic", 3), ("begins_late", 3), ("constant", 1), ("falls", 3)],
)
def test_gradual_is_zhu_and_gupta_in_numpy(schedule, every):
    sparsity = SCHEDULES[schedule]
    traced = jax.jit(sparsity) if callable(sparsity) else lambda _: sparsity
    params = normal(1, kernel=(7, 5), head=(5, 3), bias=(5,))
    gradients = [normal(k, kernel=(7, 5), head=(5, 3), bias=(5,)) for k in range(15)]
    tx = optax.chain(optax.sgd(0.1), jp.gradual(sparsity, every=every))
    state, (update, _) = tx.init(params), jitted(tx.update)
    before = jp.get_mask(state, params)
    reference = _sgd_reference(params, gradients, traced, every)
    for k, gradient in enumerate(gradients, start=1):
        mask, expected = next(reference)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        after = jp.get_mask(state, params)
        chex.assert_trees_all_equal(after, mask)
        chex.assert_trees_all_close(params, expected, atol=1e-5)
        assert not any(np.any(after[n] & ~before[n]) for n in after)  # None revives.
        assert k >= every or kept(after) == 35 + 15 + 5
        before = after
    assert kept(after) < 35 + 15 + 5


@pytest.mark.parametrize("sparsity", [0.05, 0.25, 0.75, 0.99])
def test_gradual_removes_what_python_rounds_to(sparsity):
    # 18 weights: 0.25 and 0.75 fall on halves, which go to even.
    tx = optax.chain(optax.sgd(0.1), jp.gradual(sparsity))
    _, state = train(tx, PARAMS, 1)[-1]
    mask = jp.get_mask(state, PARAMS)
    assert kept((mask["kernel"], mask["head"])) == 18 - round(sparsity * 18)
    assert mask["bias"].all()


def test_gradual_scores_the_parameters_that_it_is_given():
    params = {"w": jnp.array([[1.0, 2.0]])}
    gradient = {"w": jnp.array([[-5.0, 1.9]])}  # To 6.0 and 0.1: the order turns.
    tx = optax.chain(optax.sgd(1.0), jp.gradual(0.5))
    updates, state = tx.update(gradient, tx.init(params), params)
    np.testing.assert_array_equal(optax.tree.get(state, "mask")["w"], [[False, True]])
    np.testing.assert_allclose(updates["w"], [[-1.0, -1.9]])


def test_gradual_and_update_mask_stop_at_until():
    params = {"w": jnp.arange(1.0, 21.0).reshape(4, 5)}

    def smallest(params, mask, step):
        return jp.global_mask(jp.magnitude(params), step / 10, prior=mask)

    links = [
        jp.gradual(lambda step: step / 10, every=2, until=5),
        jp.update_mask(smallest, every=2, until=5),
    ]
    for link in links:
        history = train(optax.chain(optax.sgd(0.0), link), params, 8)
        counts = [kept(optax.tree.get(state, "mask")) for _, state in history]
        assert counts == [20, 16, 16, 12, 12, 12, 12, 12]


def test_update_mask_may_bring_weights_back():
    params = {"w": jnp.ones((1, 4))}

    def other_half(params, mask, step):
        del params, mask
        return {"w": (jnp.arange(4) % 2 == step % 2)[None]}

    tx = optax.chain(optax.sgd(0.5), jp.update_mask(other_half))
    (first, _), (second, _) = train(tx, params, 2, gradient=lambda p: p)
    np.testing.assert_array_equal(first["w"], [[0, 0.5, 0, 0.5]])
    np.testing.assert_array_equal(second["w"], [[0, 0, 0, 0]])


def test_a_mask_from_a_function_that_is_not_like_the_parameters():
    params = {"w": jnp.ones((1, 4))}
    tx = jp.update_mask(lambda params, mask, step: {"w": jnp.ones((2, 2), bool)})
    with pytest.raises(
        ValueError, match=r"update_mask: the new mask.*w has shape \(2, 2\)"
    ):
        tx.update(params, tx.init(params), params)


def test_links_that_score_refuse_integers_at_init():
    for link in (jp.gradual(0.5), jp.update_mask(_least_of_each)):
        with pytest.raises(TypeError, match="w is int32, not a floating-point"):
            link.init({"w": jnp.ones((2, 2), jnp.int32)})


def test_gradual_takes_a_score_and_a_choice_of_leaves():
    tx = optax.chain(
        optax.sgd(0.0),
        jp.gradual(
            0.5,
            score=lambda params: jax.tree.map(lambda p: -jnp.abs(p), params),
            prunable=jp.by_path("kernel"),
        ),
    )
    _, state = train(tx, PARAMS, 1)[-1]
    mask = jp.get_mask(state, PARAMS)
    sizes = np.abs(np.asarray(PARAMS["kernel"]))
    np.testing.assert_array_equal(mask["kernel"], sizes <= np.sort(sizes.ravel())[5])
    assert mask["head"].all() and mask["bias"].all()


def test_gradual_counts_what_a_link_before_it_has_removed():
    # 8 of 18 are gone; a score that would rather remove the largest adds just one.
    link = jp.gradual(0.5, score=lambda p: jax.tree.map(lambda x: -jnp.abs(x), p))
    tx = optax.chain(optax.sgd(0.1), jp.keep_sparse(MASK), link)
    params, state = train(tx, jp.apply_mask(PARAMS, MASK), 3)[-1]
    mask = jp.get_mask(state, params)
    assert kept((mask["kernel"], mask["head"])) == 9
    assert_pruned_are_zero(params, mask)


def _due_steps(tx, params, steps=12):
    """The calls after which the mask had changed."""
    history = [kept(jp.get_mask(s, params)) for _, s in train(tx, params, steps)]
    before = [sum(p.size for p in jax.tree.leaves(params)), *history]
    return [k for k in range(1, steps + 1) if before[k] != before[k - 1]]


def test_gradual_counts_real_steps_inside_multisteps_and_calls_outside():
    link = jp.gradual(optax.linear_schedule(0.0, 0.9, 6), every=2)
    inside = optax.MultiSteps(optax.chain(optax.sgd(0.1), link), 3)
    assert _due_steps(inside.gradient_transformation(), PARAMS) == [6, 12]
    multi = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    assert _due_steps(optax.chain(multi, link), PARAMS) == [2, 4, 6]


def test_gradual_takes_its_sparsity_from_inject_hyperparams():
    tx = optax.inject_hyperparams(
        lambda learning_rate, sparsity: optax.chain(
            optax.sgd(learning_rate), jp.gradual(sparsity, every=2)
        )
    )(learning_rate=0.1, sparsity=0.5)
    params, state = train(tx, PARAMS, 2)[-1]
    mask = jp.get_mask(state, params)
    assert kept((mask["kernel"], mask["head"])) == 9
    state = optax.tree.set(state, sparsity=jnp.float32(0.75))
    params, state = train(tx, params, 2, state)[-1]
    mask = jp.get_mask(state, params)
    assert kept((mask["kernel"], mask["head"])) == 18 - exact_count(0.75, 18)


# vmap


@each_link
def test_vmap_over_seeds_is_one_training_a_seed(link):
    tx, update, _ = _behind_adamw(link)
    seeds = [normal(s, kernel=(4, 3), head=(3, 2), bias=(3,)) for s in range(3)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    state, (step, _) = jax.vmap(tx.init)(params), jitted(jax.vmap(training_step(tx)))
    for _ in range(6):
        params, state = step(params, state)
    for i, start in enumerate(seeds):
        alone, alone_state = _train(update, start, tx.init(start), 6)
        lane, lane_state = jax.tree.map(lambda x, i=i: x[i], (params, state))
        mask = jp.get_mask(lane_state, lane)
        chex.assert_trees_all_equal(mask, jp.get_mask(alone_state, alone))
        chex.assert_trees_all_close(lane, alone, rtol=1e-5)
        assert_pruned_are_zero(lane, mask)


def test_gradual_works_on_due_steps_only_also_under_vmap():
    calls = []

    def score(params):
        jax.debug.callback(lambda: calls.append(None))
        return jp.magnitude(params)

    tx = optax.chain(optax.sgd(0.1), jp.gradual(0.5, every=4, score=score))
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    step, _ = jitted(jax.vmap(training_step(tx)))
    seen = []
    for _ in range(8):
        params, state = step(params, state)
        jax.block_until_ready(params)
        jax.effects_barrier()
        seen.append(len(calls))
    lanes = seen[3]  # As many calls as vmap makes of one, but none before step 4.
    assert lanes >= 1 and seen == [0, 0, 0, lanes, lanes, lanes, lanes, 2 * lanes]


def test_gradual_lets_each_lane_be_due_at_its_own_step():
    tx = optax.chain(optax.sgd(0.1), jp.gradual(0.5, every=4))
    params = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    state = optax.tree.set(state, step=jnp.array([0, 2], jnp.int32))
    step, _ = jitted(jax.vmap(training_step(tx)))
    counts = []
    for _ in range(4):
        params, state = step(params, state)
        mask = (
            optax.tree.get(state, "mask")["kernel"],
            optax.tree.get(state, "mask")["head"],
        )
        counts.append([kept(jax.tree.map(lambda m, i=i: m[i], mask)) for i in (0, 1)])
    assert counts == [[18, 18], [18, 9], [18, 9], [9, 9]]


# Devices; tests/test_parallel.py has pmap

LAYOUT = {"kernel": P("x", "y"), "head": P(None, "y"), "bias": P()}


@each_link
def test_sharded_training_is_unsharded_training_and_keeps_the_layout(link):
    params = normal(0, kernel=(8, 6), head=(6, 4), bias=(6,))
    mask = jp.layerwise_mask(params, 0.5)
    tx = link(optax.adamw(0.05), mask)  # The mask is on one device: the link moves it.
    expected, expected_state = train(tx, params, 5)[-1]
    for axis_type in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        with jax.set_mesh(mesh):
            layout = {n: NamedSharding(mesh, spec) for n, spec in LAYOUT.items()}
            new = jax.device_put(params, layout)
            state = tx.init(new)
            before = types(state)
            # On Auto axes jit forgets where constants lie, Adam's moments as well, and
            # small leaves may be gathered.
            explicit = axis_type is AxisType.Explicit
            if explicit:
                assert types(jax.jit(tx.init)(new)) == before
            step = jax.jit(training_step(tx), compiler_options=QUICK)
            step = step.lower(new, state).compile()  # Refuses other types and places.
            for _ in range(5):
                new, state = step(new, state)
            assert types(state) == before
            for name, leaf in optax.tree.get(state, "mask").items():
                assert leaf.sharding.is_equivalent_to(layout[name], leaf.ndim)
            text = step.as_text()
            assert " sort(" not in text and not (explicit and "all-gather" in text)
        chex.assert_trees_all_equal(
            jax.device_get(optax.tree.get(state, "mask")),
            jax.device_get(optax.tree.get(expected_state, "mask")),
        )
        chex.assert_trees_all_close(
            jax.device_get(new), jax.device_get(expected), rtol=1e-5
        )


@each_link
def test_under_shard_map_with_replicated_parameters(link):
    mesh = jax.make_mesh((4,), ("data",))
    data = jax.device_put(
        jax.random.normal(jax.random.key(7), (8, 4)), NamedSharding(mesh, P("data"))
    )

    def loss(params, batch):
        return jnp.mean((batch @ params["kernel"] @ params["head"] - 1.0) ** 2)

    tx, update, _ = _behind_adamw(link)

    def step(params, state, batch):
        gradient = jax.grad(loss)(params, batch)
        # The gradient by replicated parameters comes summed.
        gradient = jax.tree.map(lambda g: g / jax.lax.axis_size("data"), gradient)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    parallel, _ = jitted(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P(), P("data")),
            out_specs=(P(), P()),
        )
    )
    params = expected = PARAMS
    state = expected_state = tx.init(PARAMS)
    whole = jax.device_get(data)
    for _ in range(5):
        params, state = parallel(params, state, data)
        gradient = jax.grad(loss)(expected, whole)
        updates, expected_state = update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    mask = jp.get_mask(jax.device_get(state), PARAMS)
    chex.assert_trees_all_equal(mask, jp.get_mask(expected_state, PARAMS))
    chex.assert_trees_all_close(params, jax.device_get(expected), rtol=1e-4)
    assert_pruned_are_zero(params, mask)


def test_gradual_under_shard_map_decides_shard_by_shard():
    mesh = jax.make_mesh((4,), ("x",))
    tx = optax.chain(optax.sgd(0.0), jp.gradual(0.5))
    params = {"w": jnp.arange(1.0, 33.0).reshape(8, 4)}
    params = jax.device_put(params, NamedSharding(mesh, P("x")))
    specs = jax.tree.map(lambda x: P("x") if x.ndim else P(), tx.init(params))
    parallel = jax.shard_map(
        training_step(tx),
        mesh=mesh,
        in_specs=(P("x"), specs),
        out_specs=(P("x"), specs),
    )
    _, state = jax.jit(parallel)(params, tx.init(params))
    mask = np.asarray(optax.tree.get(state, "mask")["w"])
    np.testing.assert_array_equal(mask, np.tile([[False], [True]], (4, 4)))
