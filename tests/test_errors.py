"""Bad input: what is raised, and that it says what to do about it."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxprune as jp
from tests.helpers import normal, pull

PARAMS = {"dense": normal(0, kernel=(4, 6), bias=(6,))}
TRUE = jax.tree.map(lambda p: jnp.ones_like(p, bool), PARAMS)
SCORES = jp.magnitude(PARAMS)
BIAS = {"bias": jnp.ones(3)}
X = jnp.ones((2, 4))
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
nan = float("nan")


pytestmark = pytest.mark.usefixtures("no_type_checker")


def _loss(params, x):
    return jnp.mean(
        (x @ params["dense"]["kernel"] + params["dense"]["bias"][None]) ** 2
    )


def _dense(tree, **leaves):
    """The tree with other leaves in its layer; None removes one."""
    layer = {**tree["dense"], **leaves}
    return {"dense": {k: v for k, v in layer.items() if v is not None}}


def _rigl(inner=SGD, mask=None, **options):
    return jp.rigl(inner, mask, **{"every": 2, "until": 4, **options})


def _expect(call, error, *patterns):
    with pytest.raises(error) as info:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(info.value), re.S), str(info.value)


# A number that is not a fraction to remove

TAKES_SPARSITY = {
    "global_mask": lambda s: jp.global_mask(SCORES, s),
    "layerwise_mask": lambda s: jp.layerwise_mask(SCORES, s),
    "layerwise_mask, tree": lambda s: jp.layerwise_mask(
        SCORES, {"dense": {"kernel": s, "bias": 0.0}}
    ),
    "block_mask": lambda s: jp.block_mask(SCORES, s, (2, 3)),
    "erk": lambda s: jp.erk(PARAMS, s),
    "iterative_mask": lambda s: jp.iterative_mask(
        jp.magnitude, PARAMS, sparsity=s, rounds=2
    ),
    "force_mask": lambda s: jp.force_mask(_loss, PARAMS, X, sparsity=s, rounds=2),
    "sparse_mup": lambda s: jp.sparse_mup(PARAMS, s, hidden=jp.matrices),
    "sparse_mup, base": lambda s: jp.sparse_mup(
        PARAMS, 0.5, hidden=jp.matrices, base_sparsity=s
    ),
    "exact_orthogonal_init": lambda s: jp.exact_orthogonal_init(KEY, PARAMS, s),
    "gradual": lambda s: jp.gradual(s),
    "k_starts": lambda s: jp.k_starts(KEY, 2, s, select_at=1),
    "dissipating": lambda s: jp.dissipating(s, every=2, until=None),
    "granet": lambda s: jp.granet(SGD, s, every=2, until=4),
    "drop_fraction": lambda s: _rigl(drop_fraction=s),
    "earlycrop_trigger": lambda s: jp.earlycrop_trigger(s),
    "hyperbolic_schedule": lambda s: jp.hyperbolic_schedule(s, 3),
    "exponential_schedule": lambda s: jp.exponential_schedule(s, 3),
}
each_taker = pytest.mark.parametrize(
    "call", TAKES_SPARSITY.values(), ids=TAKES_SPARSITY.keys()
)


@each_taker
def test_sparsity_out_of_range(call):
    for sparsity in (-0.1, 1.0, 1, 90, nan, np.float32(1.5)):
        got = re.escape(str(float(sparsity)))
        _expect(
            lambda s=sparsity: call(s), ValueError, r"\[0, 1\)", f"got {got}", "0.9"
        )


@each_taker
def test_sparsity_that_is_no_number(call):
    for sparsity in (None, "0.9", True, np.array([0.5, 0.5])):
        _expect(
            lambda s=sparsity: call(s),
            (TypeError, ValueError),
            "(sparsity|fraction).*number",
        )


@pytest.mark.parametrize(
    "name",
    [
        "global_mask",
        "layerwise_mask",
        "gradual",
        "k_starts",
        "dissipating",
        "granet",
        "drop_fraction",
    ],
)
def test_sparsity_in_an_array_is_checked_too(name):
    call = TAKES_SPARSITY[name]
    _expect(lambda: call(jnp.array(1.5)), ValueError, r"\[0, 1\)", "got 1.5")
    _expect(lambda: call(jnp.array(1)), TypeError, r"int32.*float in \[0, 1\)")


# Masks that do not fit

TAKES_MASK = {
    "apply_mask": lambda m: jp.apply_mask(PARAMS, m),
    "keep_sparse": lambda m: jp.keep_sparse(m).init(PARAMS),
    "sparse": lambda m: jp.sparse(optax.sgd(0.1), m).init(PARAMS),
    "rigl": lambda m: _rigl(mask=m).init(PARAMS),
    "set_training": lambda m: jp.set_training(SGD, m, key=KEY, every=2, until=4).init(
        PARAMS
    ),
    "forward_sparse": lambda m: jp.forward_sparse(_loss, lambda _: m)(PARAMS, X),
    "forward_sparse, backward": lambda m: jp.forward_sparse(
        _loss, lambda _: TRUE, backward=lambda _: m
    )(PARAMS, X),
    "set_mask": lambda m: jp.set_mask(jp.keep_sparse().init(PARAMS), m),
    "global_mask, prior": lambda m: jp.global_mask(SCORES, 0.5, prior=m),
    "layerwise_mask, prior": lambda m: jp.layerwise_mask(SCORES, 0.5, prior=m),
    "block_mask, prior": lambda m: jp.block_mask(SCORES, 0.5, (2, 3), prior=m),
    "sparsity": lambda m: jp.sparsity(m, PARAMS),
    "summary": lambda m: jp.summary(PARAMS, m),
}
each_mask_taker = pytest.mark.parametrize(
    "call", TAKES_MASK.values(), ids=TAKES_MASK.keys()
)


@each_mask_taker
def test_mask_that_does_not_fit(call):
    _expect(lambda: call(_dense(TRUE, bias=None)), ValueError, "lacks.*dense/bias")
    more = _dense(TRUE, scale=jnp.ones(6, bool))
    _expect(lambda: call(more), ValueError, "dense/scale")
    shape = _dense(TRUE, kernel=jnp.ones((6, 4), bool))
    _expect(lambda: call(shape), ValueError, r"dense/kernel.*\(6, 4\).*\(4, 6\)")


@each_mask_taker
def test_mask_of_another_dtype(call):
    for dtype in (jnp.int8, jnp.float32):
        wrong = _dense(TRUE, kernel=jnp.ones((4, 6), dtype))
        name = jnp.dtype(dtype).name
        _expect(lambda m=wrong: call(m), TypeError, f"dense/kernel.*{name}.*bool")


@pytest.mark.parametrize(
    "name",
    [
        "apply_mask",
        "keep_sparse",
        "sparse",
        "rigl",
        "set_training",
        "forward_sparse",
        "set_mask",
    ],
)
def test_mask_that_keeps_nothing_is_of_the_wrong_polarity(name):
    # The biases are kept, as every mask builder keeps them: the matrices decide.
    mask = _dense(TRUE, kernel=jnp.zeros((4, 6), bool))
    _expect(
        lambda: TAKES_MASK[name](mask), ValueError, "keeps no weight", "True means kept"
    )


def test_one_emptied_leaf_is_legal():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    mask = {"a": jnp.zeros((2, 2), bool), "b": jnp.ones((2, 2), bool)}
    assert not jp.apply_mask(params, mask)["a"].any()
    jp.set_mask(jp.keep_sparse(mask).init(params), mask)


# Trees that cannot be pruned

TAKES_TREE = {
    "k_starts": lambda p: _updated(jp.k_starts(KEY, 2, 0.5, select_at=1), p),
    "dissipating": lambda p: _updated(jp.dissipating(0.5, every=2, until=None), p),
    "earlycrop_trigger": lambda p: jp.earlycrop_trigger(0.5).init(p),
    "magnitude": lambda p: jp.magnitude(p),
    "lamp": lambda p: jp.lamp(p),
    "exact_orthogonal_init": lambda p: jp.exact_orthogonal_init(KEY, p, 0.5),
    "random": lambda p: jp.random(jax.random.key(0))(p),
    "snip": lambda p: jp.snip(_loss)(p, X),
    "biased_loss": lambda p: jp.biased_loss(_loss)(p, X),
    "grasp": lambda p: jp.grasp(_loss)(p, X),
    "gradient_preservation": lambda p: jp.gradient_preservation(_loss)(p, X),
    "fisher": lambda p: jp.fisher(_loss)(p, X),
    "drive": lambda p: jp.drive(_loss)(p, X),
    "prospr": lambda p: jp.prospr(_loss)(p, (X[None],), X),
    "wanda": lambda p: jp.wanda(lambda p, x: x @ p["dense"]["kernel"])(p, X),
    "sparse_gpt": lambda p: jp.sparse_gpt(
        lambda p, x: x @ p["dense"]["kernel"], p, [X], sparsity=0.5
    ),
    "row_mask": lambda p: jp.row_mask(p, 0.5),
    "synflow": lambda p: jp.synflow(lambda p, x: x @ p["dense"]["kernel"])(p, X),
    "gradient_flow": lambda p: jp.gradient_flow(_loss)(p, X),
    "mean_flow": lambda p: jp.mean_flow(_loss, p, [X]),
    "iterative_mask": lambda p: jp.iterative_mask(
        jp.magnitude, p, sparsity=0.5, rounds=2
    ),
    "force_mask": lambda p: jp.force_mask(_loss, p, X, sparsity=0.5, rounds=2),
    "global_mask": lambda p: jp.global_mask(p, 0.5),
    "layerwise_mask": lambda p: jp.layerwise_mask(p, 0.5),
    "n_m_mask": lambda p: jp.n_m_mask(p, 2, 4),
    "block_mask": lambda p: jp.block_mask(p, 0.5, (2, 3)),
}
each_tree_taker = pytest.mark.parametrize(
    "call", TAKES_TREE.values(), ids=TAKES_TREE.keys()
)


@each_tree_taker
def test_leaf_that_is_not_floating(call):
    tree = _dense(PARAMS, count=jnp.zeros((), jnp.int32))
    _expect(lambda: call(tree), TypeError, "dense/count.*int32.*floating")


@pytest.mark.parametrize(
    "tx",
    [
        _rigl(),
        jp.set_training(SGD, None, key=KEY, every=2, until=4),
        jp.granet(SGD, 0.5, every=2, until=4),
    ],
    ids=["rigl", "set_training", "granet"],
)
def test_parameter_that_is_not_floating(tx):
    tree = _dense(PARAMS, count=jnp.zeros((), jnp.int32))
    _expect(lambda: tx.init(tree), TypeError, "dense/count.*int32.*floating")


@each_tree_taker
def test_tree_without_leaves(call):
    _expect(lambda: call({}), ValueError, "no leaves")


def _updated(tx, params):
    """One update by the parameters themselves."""
    return tx.update(params, tx.init(params), params)


SELECTS = {
    "global_mask": lambda **k: jp.global_mask(BIAS, 0.5, **k),
    "layerwise_mask": lambda **k: jp.layerwise_mask(BIAS, 0.5, **k),
    "n_m_mask": lambda **k: jp.n_m_mask(BIAS, 2, 4, **k),
    "block_mask": lambda **k: jp.block_mask(BIAS, 0.5, (2, 3), **k),
    "erk": lambda **k: jp.erk(BIAS, 0.5, **k),
    "iterative_mask": lambda **k: jp.iterative_mask(
        jp.magnitude, BIAS, sparsity=0.5, rounds=1, **k
    ),
    "force_mask": lambda **k: jp.force_mask(
        lambda p: jnp.sum(p["bias"]), BIAS, sparsity=0.5, rounds=1, **k
    ),
    "drive": lambda **k: jp.drive(lambda p: jnp.sum(p["bias"]), **k)(BIAS),
    "earlycrop_trigger": lambda **k: jp.earlycrop_trigger(0.5, **k).init(BIAS),
    "epi_trigger": lambda **k: jp.epi_trigger(0.9, **k).init(BIAS),
    "exact_orthogonal_init": lambda **k: jp.exact_orthogonal_init(KEY, BIAS, 0.5, **k),
    "sparsity": lambda **k: jp.sparsity({"bias": jnp.ones(3, bool)}, BIAS, **k),
    "summary": lambda **k: jp.summary(BIAS, {"bias": jnp.ones(3, bool)}, **k),
    "gradual": lambda **k: _updated(jp.gradual(0.5, **k), BIAS),
    "k_starts": lambda **k: _updated(jp.k_starts(KEY, 2, 0.5, select_at=1, **k), BIAS),
    "dissipating, sparsity": lambda **k: _updated(
        jp.dissipating(0.5, every=2, until=None, **k), BIAS
    ),
    "dissipating, threshold": lambda **k: _updated(
        jp.dissipating(threshold=0.1, every=2, until=None, **k), BIAS
    ),
    "gradual_n_m": lambda **k: jp.gradual_n_m(2, 4, **k).update(
        BIAS, jp.gradual_n_m(2, 4).init(BIAS), BIAS
    ),
    "granet": lambda **k: jp.granet(SGD, 0.5, every=2, until=4, **k).update(
        BIAS, jp.granet(SGD, 0.5, every=2, until=4).init(BIAS), BIAS
    ),
}
each_selection = pytest.mark.parametrize("call", SELECTS.values(), ids=SELECTS.keys())


@each_selection
def test_nothing_is_prunable(call):
    _expect(call, ValueError, "[Nn]othing is prunable.*bias.*jp.matrices.*jp.by_path")
    _expect(lambda: call(prunable=jp.by_path("kernel")), ValueError, "[Nn]othing")


@each_selection
def test_prunable_that_does_not_return_bools(call):
    def by_value(tree):
        return jax.tree.map(lambda leaf: jnp.any(leaf > 0), tree)

    _expect(lambda: call(prunable=by_value), TypeError, "prunable.*bools.*bias")
    _expect(lambda: call(prunable=lambda _: True), ValueError, "prunable.*structure")


# Losses

LOSS_BUILT = {
    "snip": jp.snip,
    "biased_loss": jp.biased_loss,
    "grasp": jp.grasp,
    "gradient_preservation": jp.gradient_preservation,
    "fisher": jp.fisher,
    "drive": jp.drive,
    "prospr": lambda loss: lambda p, x: jp.prospr(loss)(p, (x[None],), x),
    "gradient_flow": jp.gradient_flow,
    "mean_flow": lambda loss: lambda p, x: jp.mean_flow(loss, p, [x]),
    "force_mask": lambda loss: (
        lambda p, x: jp.force_mask(loss, p, x, sparsity=0.5, rounds=1)
    ),
}


@pytest.mark.parametrize("build", LOSS_BUILT.values(), ids=LOSS_BUILT.keys())
def test_loss_that_is_not_one_scalar(build):
    def call(loss_fn):
        return lambda: build(loss_fn)(PARAMS, X)

    _expect(
        call(lambda p, x: (_loss(p, x), {"accuracy": 1.0})),
        TypeError,
        "scalar",
        r"loss_fn\(params, \*batch\)\[0\]",
    )
    _expect(
        call(lambda p, x: jnp.sum(x @ p["dense"]["kernel"], 1)),
        TypeError,
        r"scalar.*float32\[2\].*jnp.mean",
    )
    _expect(
        call(lambda p, x: jnp.sum(p["dense"]["kernel"] > 0)), TypeError, "scalar.*int32"
    )
    _expect(call(lambda p, x: None), TypeError, "scalar")


# Values

TAKES_SCORES = {
    "global_mask": lambda s: jp.global_mask(s, 0.5),
    "layerwise_mask": lambda s: jp.layerwise_mask(s, 0.5),
    "n_m_mask": lambda s: jp.n_m_mask(s, 2, 4),
    "block_mask": lambda s: jp.block_mask(s, 0.5, (2, 1)),
}


@pytest.mark.parametrize("call", TAKES_SCORES.values(), ids=TAKES_SCORES.keys())
def test_nan_scores_raise_outside_jit_and_go_first_inside(call):
    scores = jnp.arange(1.0, 9.0).reshape(4, 2).at[3, 1].set(nan).at[2, 1].set(-jnp.inf)
    _expect(lambda: call({"a": {"w": scores}}), ValueError, "NaN in a/w")
    mask = jax.jit(call)({"a": {"w": scores}})["a"]["w"]
    assert not mask[3, 1] and mask.sum() == 4


@pytest.mark.parametrize("call", TAKES_SCORES.values(), ids=TAKES_SCORES.keys())
def test_scores_at_hand_are_checked_while_something_else_is_traced(call):
    scores = {"w": jnp.arange(8.0).reshape(4, 2)}
    mask = jax.jit(lambda x: jax.tree.map(lambda m: x * m, call(scores)))(1.0)
    np.testing.assert_array_equal(mask["w"], call(scores)["w"])


def test_infinite_scores_are_legal():
    scores = {"w": jnp.array([[-jnp.inf, 1.0, 2.0, jnp.inf]])}
    for sparsity, kept in ((0.25, [0, 1, 1, 1]), (0.75, [0, 0, 0, 1])):
        mask = jp.global_mask(scores, sparsity)["w"]
        np.testing.assert_array_equal(mask, np.array([kept], bool))


def test_nan_in_one_of_the_rounds():
    def score(params):  # Divides by zero as soon as a weight is gone.
        smallest = jnp.min(jnp.abs(params["w"]))
        return {"w": jnp.abs(params["w"]) * smallest / smallest}

    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4)}
    _expect(
        lambda: jp.iterative_mask(score, params, sparsity=0.5, rounds=3),
        ValueError,
        "NaN",
    )
    assert jp.iterative_mask(score, params, sparsity=0.5, rounds=1)["w"].sum() == 4


# Everything else: a bad call, what it raises, what it must say


class _Shrinking:
    """Batches that are fewer at every reading."""

    def __init__(self):
        self.length = 4  # One reading asks whether it can be read again.

    def __iter__(self):
        self.length -= 1
        return iter([X] * self.length)


def _jit(function):
    """Calls a function with a traced number."""
    return lambda: jax.jit(function)(0.5)


STATE = jp.keep_sparse().init(PARAMS)
BAD_CALLS = {
    "n > m": (lambda: jp.n_m_mask(SCORES, 5, 4), ValueError, "n=5 and m=4"),
    "n < 0": (lambda: jp.n_m_mask(SCORES, -1, 4), ValueError, "n must be.*-1"),
    "n is no count": (lambda: jp.n_m_mask(SCORES, 1.5, 4), ValueError, "n must.*1.5"),
    "m = 0": (lambda: jp.n_m_mask(SCORES, 0, 0), ValueError, "m must be.*at least 1"),
    "gradual, n > m": (lambda: jp.gradual_n_m(5, 4), ValueError, "n=5 and m=4"),
    "gradual, m = 0": (lambda: jp.gradual_n_m(0, 0), ValueError, "m must be"),
    "gradual, axis not divisible": (
        lambda: jp.gradual_n_m(2, 4, axis=-1).update(PARAMS, STATE, PARAMS),
        ValueError,
        r"dense/kernel.*6 entries.*axis -1.*m=4.*jp.divisible_by\(4\)",
    ),
    "gradual_n_m without params": (
        lambda: jp.gradual_n_m(2, 4).update(PARAMS, STATE),
        ValueError,
        r"gradual_n_m needs.*tx.update\(grads, opt_state, params\)",
    ),
    "axis not divisible": (
        lambda: jp.n_m_mask(SCORES, 2, 4, axis=-1),
        ValueError,
        r"dense/kernel.*\(4, 6\).*6 entries.*axis -1.*m=4.*jp.divisible_by\(4\)",
    ),
    "block does not divide": (
        lambda: jp.block_mask(SCORES, 0.5, (2, 4)),
        ValueError,
        r"dense/kernel.*\(4, 6\).*blocks of \(2, 4\).*"
        r"jp.divisible_by\(\(2, 4\), axis=\(-2, -1\)\)",
    ),
    "block of a vector": (
        lambda: jp.block_mask(SCORES, 0.5, (1, 1), prunable=jp.by_path("bias")),
        ValueError,
        "dense/bias.*last two axes",
    ),
    "block of three axes": (
        lambda: jp.block_mask(SCORES, 0.5, (2, 2, 2)),
        ValueError,
        r"block must be.*such as \(4, 4\).*\(2, 2, 2\)",
    ),
    "block of nothing": (
        lambda: jp.block_mask(SCORES, 0.5, (0, 1)),
        ValueError,
        "block must be.*at least 1; got 0",
    ),
    "block, unknown scope": (
        lambda: jp.block_mask(SCORES, 0.5, (2, 3), scope="layer"),
        ValueError,
        "scope must be one of 'global', 'layerwise'; got 'layer'",
    ),
    "block, unknown reduce": (
        lambda: jp.block_mask(SCORES, 0.5, (2, 3), reduce="norm"),
        ValueError,
        "reduce must be one of 'sum', 'max'; got 'norm'",
    ),
    "divisible by sizes for other axes": (
        lambda: jp.divisible_by((2, 4)),
        ValueError,
        r"one size for every axis.*axis=-2.*axis=\(-2, -1\)",
    ),
    "orthogonal, too sparse": (
        lambda: jp.exact_orthogonal_init(KEY, PARAMS, 0.9),
        ValueError,
        r"dense/kernel.*\(4, 6\) keeps 2 of 24.*at least 4",
    ),
    "orthogonal vector": (
        lambda: jp.exact_orthogonal_init(KEY, PARAMS, 0.5, prunable=jp.by_path("bias")),
        ValueError,
        r"dense/bias.*\(6,\) has fewer than two axes.*jp.matrices",
    ),
    "orthogonal, traced sparsity": (
        _jit(lambda s: jp.exact_orthogonal_init(KEY, PARAMS, s)),
        TypeError,
        "known while tracing.*traced value for dense/kernel",
    ),
    "orthogonal, no key": (
        lambda: jp.exact_orthogonal_init(jnp.ones(2), PARAMS, 0.5),
        TypeError,
        "key must be a random key",
    ),
    "sparse_mup, traced base": (
        _jit(
            lambda s: (
                jp.sparse_mup(PARAMS, 0.5, hidden=jp.matrices, base_sparsity=s).output
            )
        ),
        TypeError,
        "known while tracing.*traced value for base_sparsity",
    ),
    "sparse_mup, no width": (
        lambda: jp.sparse_mup(PARAMS, 0.5, hidden=jp.matrices, width=0),
        ValueError,
        "width must be a positive number.*got 0",
    ),
    "sparse_mup, nothing is hidden": (
        lambda: jp.sparse_mup(PARAMS, 0.5, hidden=jp.by_path("body")),
        ValueError,
        "[Nn]othing is prunable",
    ),
    "scale_leaves of another tree": (
        lambda: jp.scale_leaves({"dense": 0.5}).update(PARAMS, optax.EmptyState()),
        ValueError,
        "factors must have one number per leaf",
    ),
    "axis out of range": (
        lambda: jp.n_m_mask(SCORES, 2, 4, axis=2),
        ValueError,
        r"dense/kernel.*\(4, 6\).*no axis 2",
    ),
    "divisible_by 0": (lambda: jp.divisible_by(0), ValueError, "m must be"),
    "sparsities of another structure": (
        lambda: jp.layerwise_mask(SCORES, {"dense": {"kernel": 0.5}}),
        ValueError,
        "sparsity must be a number, or a tree.*structure",
    ),
    "one bad sparsity in a tree": (
        lambda: jp.layerwise_mask(SCORES, {"dense": {"kernel": 90, "bias": 0.0}}),
        ValueError,
        r"dense/kernel.*\[0, 1\).*got 90",
    ),
    "min_keep too large": (
        lambda: jp.global_mask(SCORES, 0.9, min_keep=3),
        ValueError,
        "min_keep=3.*sparsity=0.9 keeps only 2 of 24",
    ),
    "min_keep negative": (
        lambda: jp.global_mask(SCORES, 0.9, min_keep=-1),
        ValueError,
        "min_keep must be.*-1",
    ),
    "erk, traced": (_jit(lambda s: jp.erk(PARAMS, s)), TypeError, "outside jit"),
    "force_mask, traced rounds": (
        _jit(lambda r: jp.force_mask(_loss, PARAMS, X, sparsity=0.5, rounds=r)),
        TypeError,
        "rounds must be a Python int",
    ),
    "no rounds": (
        lambda: jp.iterative_mask(jp.magnitude, PARAMS, sparsity=0.5, rounds=0),
        ValueError,
        "rounds must be.*at least 1; got 0",
    ),
    "force_mask, no rounds": (
        lambda: jp.force_mask(_loss, PARAMS, X, sparsity=0.5, rounds=0),
        ValueError,
        "rounds must be.*at least 1; got 0",
    ),
    "half a round": (
        lambda: jp.iterative_mask(jp.magnitude, PARAMS, sparsity=0.5, rounds=1.5),
        ValueError,
        "rounds must be a whole number.*1.5",
    ),
    "schedule without rounds": (
        lambda: jp.hyperbolic_schedule(0.5, 0),
        ValueError,
        "rounds must be.*at least 1",
    ),
    "exponential, no rounds": (
        lambda: jp.exponential_schedule(0.5, 0),
        ValueError,
        "rounds must be.*at least 1",
    ),
    "scores unlike the parameters": (
        lambda: jp.iterative_mask(lambda p: p["dense"], PARAMS, sparsity=0.5, rounds=1),
        ValueError,
        "scores must have the tree structure of params.*dense/bias",
    ),
    "gradual, scores unlike the parameters": (
        lambda: jp.gradual(0.5, score=lambda p: p["dense"]).update(
            PARAMS, STATE, PARAMS
        ),
        ValueError,
        "scores must have the tree structure of params.*dense/bias",
    ),
    "every = 0": (lambda: jp.gradual(0.5, every=0), ValueError, "every.*got 0"),
    "every < 0": (lambda: jp.gradual(0.5, every=-2), ValueError, "every.*got -2"),
    "every is no count": (
        lambda: jp.gradual(0.5, every=1.5),
        ValueError,
        "every must be a whole number of updates, at least 1; got 1.5",
    ),
    "no masks to choose from": (
        lambda: jp.k_starts(KEY, 0, 0.5, select_at=1),
        ValueError,
        "k must be a whole number of masks, at least 1; got 0",
    ),
    "select_at = 0": (
        lambda: jp.k_starts(KEY, 2, 0.5, select_at=0),
        ValueError,
        "select_at must be a whole number of updates, at least 1; got 0",
    ),
    "fitness": (
        lambda: jp.k_starts(KEY, 2, 0.5, select_at=1, fitness="loss"),
        ValueError,
        "'magnitude', 'gradient' or 'both'; got 'loss'",
    ),
    "mode of k_starts": (
        lambda: jp.k_starts(KEY, 2, 0.5, select_at=1, mode="turns"),
        ValueError,
        "mode must be 'shared' or 'union'; got 'turns'",
    ),
    "sparsities of one leaf only": (
        lambda: _updated(
            jp.k_starts(KEY, 2, {"dense": {"kernel": 0.5}}, select_at=1), PARAMS
        ),
        ValueError,
        "sparsity must be a number, or a tree.*structure",
    ),
    "k_starts, grad of another structure": (
        lambda: jp.k_starts(KEY, 2, 0.5, select_at=1).update(
            PARAMS,
            jp.k_starts(KEY, 2, 0.5, select_at=1).init(PARAMS),
            PARAMS,
            grad=PARAMS["dense"],
        ),
        ValueError,
        "grad must have the tree structure of params.*dense/bias",
    ),
    "neither sparsity nor threshold": (
        lambda: jp.dissipating(every=2, until=None),
        ValueError,
        "exactly one of sparsity.*and threshold.*None and threshold=None",
    ),
    "both sparsity and threshold": (
        lambda: jp.dissipating(0.5, threshold=0.1, every=2, until=None),
        ValueError,
        "exactly one of sparsity.*and threshold.*0.5 and threshold=0.1",
    ),
    "threshold < 0": (
        lambda: jp.dissipating(threshold=-0.1, every=2, until=None),
        ValueError,
        "threshold.*at least 0; got -0.1",
    ),
    "threshold is NaN": (
        lambda: jp.dissipating(threshold=nan, every=2, until=None),
        ValueError,
        "threshold.*at least 0; got nan",
    ),
    "a look before anything has moved": (
        lambda: jp.dissipating(0.5, every=1, until=None),
        ValueError,
        "every must be a whole number of updates, at least 2; got 1",
    ),
    "until = 0": (
        lambda: jp.dissipating(0.5, every=2, until=0),
        ValueError,
        "until must be a whole number of updates, at least 1; got 0",
    ),
    "a mask that moves on every update": (
        lambda: _rigl(every=1),
        ValueError,
        "every must be a whole number of updates, at least 2; got 1",
    ),
    "granet, every = 1": (
        lambda: jp.granet(SGD, 0.5, every=1, until=4),
        ValueError,
        "every.*at least 2; got 1",
    ),
    "set_training, until < 0": (
        lambda: jp.set_training(SGD, None, key=KEY, every=2, until=-1),
        ValueError,
        "until must be a whole number of updates, at least 0; got -1",
    ),
    "a seed for a key": (
        lambda: jp.set_training(SGD, None, key=0, every=2, until=4),
        TypeError,
        r"key must be a random key, such as jax.random.key\(0\); got 0",
    ),
    "several keys": (
        lambda: jp.set_training(
            SGD, None, key=jax.random.split(KEY, 3), every=2, until=4
        ),
        TypeError,
        r"key must be a random key.*of shape \(3,\)",
    ),
    "factored moments": (
        lambda: _rigl(optax.adafactor(0.1)).init(PARAMS),
        ValueError,
        r"jaxprune.rigl.*dense/bias of shape \(6,\) it has the shape \(1,\)",
        "adafactor.*jp.sparse",
    ),
    "one moment a leaf": (
        lambda: jp.granet(optax.novograd(0.1), 0.5, every=2, until=4).init(PARAMS),
        ValueError,
        r"jaxprune.granet.*dense/bias of shape \(6,\) it has the shape \(\)",
        "novograd.*jp.sparse",
    ),
    "moments of rows and columns": (
        lambda: _rigl(optax.sm3(0.1)).init(PARAMS),
        ValueError,
        "jaxprune.rigl.*its tree is different.*sm3.*jp.sparse",
    ),
    "moments of a projection": (
        lambda: _rigl(optax.contrib.galore(0.1, rank=2)).init(PARAMS),
        ValueError,
        "jaxprune.rigl.*dense/.*galore.*jp.sparse",
    ),
    "moments in one vector": (
        lambda: jp.set_training(
            optax.flatten(optax.adam(0.1)), None, key=KEY, every=2, until=4
        ).init(PARAMS),
        ValueError,
        "jaxprune.set_training.*its tree is different.*optax.flatten.*jp.sparse",
    ),
    "decay < 0": (
        lambda: jp.forward_sparse(_loss, jp.magnitude, decay=-0.1),
        ValueError,
        "decay must be a finite number, at least 0; got -0.1",
    ),
    "decay that is no number": (
        lambda: jp.forward_sparse(_loss, jp.magnitude, decay="2e-4"),
        TypeError,
        "decay must be a number, at least 0; got '2e-4'",
    ),
    "rigl without params": (
        lambda: _rigl().update(PARAMS, _rigl().init(PARAMS)),
        ValueError,
        r"rigl needs.*tx.update\(grads, opt_state, params\)",
    ),
    "one-shot iterator": (
        lambda: jp.mean_flow(_loss, PARAMS, iter([X, X])),
        ValueError,
        "twice at order 2.*once.*order=1",
    ),
    "generator": (
        lambda: jp.mean_flow(_loss, PARAMS, (X for _ in range(2))),
        ValueError,
        "twice at order 2.*once.*order=1",
    ),
    "batches change": (
        lambda: jp.mean_flow(_loss, PARAMS, _Shrinking()),
        ValueError,
        r"read \d batches with \d examples, and the second time.*the same",
    ),
    "no batches": (lambda: jp.mean_flow(_loss, PARAMS, []), ValueError, "no batches"),
    "order 3": (lambda: jp.gradient_flow(_loss, order=3), ValueError, "order.*got 3"),
    "mean_flow, order 0": (
        lambda: jp.mean_flow(_loss, PARAMS, [X], order=0),
        ValueError,
        "order.*got 0",
    ),
    "measure of Hg at order 1": (
        lambda: jp.measures.grasp(jp.gradient_flow(_loss, order=1)(PARAMS, X)),
        ValueError,
        "Hg.*order=2",
    ),
    "origin of another structure": (
        lambda: jp.measures.biased_loss(
            jp.gradient_flow(_loss)(PARAMS, X), origin=PARAMS["dense"]
        ),
        ValueError,
        "origin.*dense/kernel",
    ),
    "normalize": (
        lambda: jp.drive(_loss, normalize="max"),
        ValueError,
        "'sum', 'mean', 'rank' or 'none'; got 'max'",
    ),
    "combine": (
        lambda: jp.drive(_loss, combine="mean"),
        ValueError,
        "'sum' or 'product'.*got 'mean'",
    ),
    "weights of nothing": (
        lambda: jp.drive(_loss, weights=(0, 0, 0)),
        ValueError,
        r"weights.*not all 0.*got \(0, 0, 0\)",
    ),
    "negative weights": (
        lambda: jp.measures.drive(
            jp.gradient_flow(_loss, order=1)(PARAMS, X), weights=(1, -1, 1)
        ),
        ValueError,
        r"weights.*non-negative.*got \(1, -1, 1\)",
    ),
    "synflow of integers": (
        lambda: jp.synflow(lambda p, x: jnp.argmax(x @ p["dense"]["kernel"], 1))(
            PARAMS, X
        ),
        TypeError,
        "floating outputs.*none",
    ),
    "get_mask without a mask": (
        lambda: jp.get_mask(optax.adam(0.1).init(PARAMS), PARAMS),
        ValueError,
        r"holds no mask.*jp.keep_sparse\(mask\)",
    ),
    "set_mask without a mask": (
        lambda: jp.set_mask(optax.adam(0.1).init(PARAMS), TRUE),
        ValueError,
        r"holds no mask.*jp.keep_sparse\(mask\)",
    ),
    "get_mask of other parameters": (
        lambda: jp.get_mask(STATE, _dense(PARAMS, bias=None)),
        ValueError,
        "mask.*dense/bias",
    ),
    "get_mask of other shapes": (
        lambda: jp.get_mask(STATE, _dense(PARAMS, kernel=jnp.ones((6, 4)))),
        ValueError,
        r"mask.*dense/kernel.*\(4, 6\)",
    ),
    "summary inside jit": (
        lambda: jax.jit(lambda m: jp.summary(PARAMS, m).prunable.kept)(TRUE),
        TypeError,
        r"dense/.*outside jit.*jp.sparsity\(mask, params\)",
    ),
    "shuffling what is no mask": (
        lambda: jp.shuffle_mask(KEY, PARAMS),
        TypeError,
        "dense/bias is float32.*a mask is bool",
    ),
    "shuffling nothing": (
        lambda: jp.shuffle_mask(KEY, {"w": jnp.ones((0, 2), bool)}),
        ValueError,
        "mask has no leaves, or only empty ones",
    ),
    "earlycrop of other parameters": (
        lambda: jp.earlycrop_trigger(0.5).update(
            _dense(PARAMS, bias=None), jp.earlycrop_trigger(0.5).init(PARAMS)
        ),
        ValueError,
        "params must have.*of the reference.*dense/bias",
    ),
    "epi threshold in percent": (
        lambda: jp.epi_trigger(98.3),
        ValueError,
        r"threshold.*\(0, 1\].*got 98.3",
    ),
    "epi without a window": (
        lambda: jp.epi_trigger(0.9, window=0),
        ValueError,
        "window must be.*earlier masks.*at least 1",
    ),
    "epi of another tree": (
        lambda: jp.epi_trigger(0.9).update(
            _dense(TRUE, bias=None), jp.epi_trigger(0.9).init(PARAMS)
        ),
        ValueError,
        "mask has 1 leaves.*has 2",
    ),
    "lamp of a giant leaf": (
        lambda: jax.eval_shape(
            jp.lamp, {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
        ),
        ValueError,
        r"leaf w has 2147483648",
    ),
    "sparsity of nothing": (lambda: jp.sparsity({}), ValueError, "no leaves"),
    "keep_sparse without params": (
        lambda: jp.keep_sparse().update(PARAMS, STATE),
        ValueError,
        r"keep_sparse needs.*tx.update\(grads, opt_state, params\)",
    ),
    "k_starts without params": (
        lambda: jp.k_starts(KEY, 2, 0.5, select_at=1).update(PARAMS, STATE),
        ValueError,
        r"k_starts needs.*tx.update\(grads, opt_state, params\)",
    ),
    "dissipating without params": (
        lambda: jp.dissipating(0.5, every=2, until=None).update(PARAMS, STATE),
        ValueError,
        r"dissipating needs.*tx.update\(grads, opt_state, params\)",
    ),
    "gradual without params": (
        lambda: jp.gradual(0.5).update(PARAMS, STATE),
        ValueError,
        r"gradual needs.*tx.update\(grads, opt_state, params\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name):
    _expect(*BAD_CALLS[name])


# What looks bad and is not


def test_legal_after_all():
    jp.mean_flow(_loss, PARAMS, iter([X, X]), order=1)
    assert jp.global_mask(SCORES, np.float64(0.5))["dense"]["kernel"].sum() == 12
    assert jp.global_mask(SCORES, 0)["dense"]["kernel"].all()
    assert jp.global_mask(SCORES, 0.5, min_keep=12)["dense"]["kernel"].sum() == 12
    assert not jp.n_m_mask(SCORES, 0, 4)["dense"]["kernel"].any()
    optimizer = jp.gradual(0.5, every=np.int64(2))
    optimizer.update(pull(PARAMS), optimizer.init(PARAMS), PARAMS)


def test_the_first_leaves_are_named_and_the_rest_counted():
    many = {f"w{i}": jnp.ones((2, 2)) for i in range(9)}
    mask = {k: jnp.ones((2, 2), bool) for k in itertools.islice(many, 2)}
    _expect(lambda: jp.apply_mask(many, mask), ValueError, "w2, w3, w4 and 4 more")


def test_a_bare_array_is_called_the_root():
    _expect(
        lambda: jp.apply_mask(jnp.ones((2, 2)), jnp.ones((2, 2))), TypeError, "root"
    )
