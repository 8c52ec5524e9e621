"""What a new user gets wrong, one row a mistake, and what the answer must say.

Every public function has a row, of a mistake that test_errors.py does not make: one
argument for another, a model's or an optimizer's part for the whole, percent for
fractions. The answer says what was given, what is allowed, and what to do.
"""

import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import measures, structured
from tests.helpers import normal
from tests.test_errors import _expect

pytestmark = pytest.mark.usefixtures("no_type_checker")

P = {"dense": normal(0, kernel=(4, 6), bias=(6,))}
MASK = jax.tree.map(lambda p: jnp.ones_like(p, bool), P)
SCORES = jax.tree.map(jnp.abs, P)
KEY, X, SGD = jax.random.key(0), jnp.ones((2, 4)), optax.sgd(0.1)
GRADUAL = optax.linear_schedule(0.0, 0.9, 10)


def loss_fn(params, x):
    return jnp.mean(
        (x @ params["dense"]["kernel"] + params["dense"]["bias"][None]) ** 2
    )


def apply_fn(params, x):
    return x @ params["dense"]["kernel"]


# Two layers, whose hidden channels can be removed.


def two(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


T, TX = {"a": np.arange(32.0).reshape(8, 4), "b": np.ones((4, 3))}, np.ones((5, 8))
GROUPS = structured.channel_groups(two, T, TX)
WORTH = (np.arange(4.0),)
CHANNELS = structured.structured_mask(WORTH, GROUPS, T, 0.5)
REMOVE = structured.structured_mask
T32 = jax.tree.map(np.float32, T)
PRODUCED = structured.slice_groups(T, {"a": 1}, 4)


def updated_by(tx):
    """The first update by a transformation."""
    return tx.update(P, tx.init(P), P)


def updated(tx):
    """An update by a transformation that is asked for too late."""
    return tx.update(P, jp.keep_sparse().init(P), P)


NO_LOSS = r"loss_fn must be a function, loss_fn\(params, \*batch\) -> loss; got a dict"
NO_FLOW = r"flow must be a jp.Flow, as jp.gradient_flow\(loss_fn\).*got a dict of 1"
ONE_BATCH = (
    r"batches must be an.*got float32\[2, 4\]. For a single batch pass \[batch\]"
)
NO_INNER = r"wraps an optax optimizer, such as optax.adam\(1e-3\)"
NO_KEY = r"key must be a random key, such as jax.random.key\(0\); got "
NO_GROUPS = r"groups must be what channel_groups\(fn, params, \*inputs\) returned; got"
PERCENT = r"sparsity is the fraction .* in \[0, 1\); got 90.0. For 90 %, pass 0.9"

# "public name: the mistake": (the call, the error, what it says)
ROWS = {
    # Scores
    "magnitude: numbers for arrays": (
        lambda: jp.magnitude({"w": [1.0, 2.0]}),
        TypeError,
        "the leaf w/0 is a float, not a floating-point array.*Pass only the weights",
    ),
    "random: a seed": (lambda: jp.random(0), TypeError, NO_KEY + "0"),
    "random: several keys": (
        lambda: jp.random(jax.random.split(KEY)),
        TypeError,
        NO_KEY + r".*of shape \(2,\)",
    ),
    **{
        f"{name}: parameters for the loss": (
            lambda name=name: getattr(jp, name)(P),
            TypeError,
            NO_LOSS,
        )
        for name in (
            *("snip", "biased_loss", "grasp", "gradient_preservation", "fisher"),
            *("drive", "gradient_flow", "prospr"),
        )
    },
    "drive: two weights for three terms": (
        lambda: jp.drive(loss_fn, weights=(1, 1)),
        ValueError,
        r"weights must be three non-negative numbers.*got \(1, 1\)",
    ),
    "prospr: a learning rate in quotes": (
        lambda: jp.prospr(loss_fn, learning_rate="0.1"),
        TypeError,
        "learning_rate must be a number.*got '0.1'",
    ),
    "prospr: a learning rate a weight": (
        lambda: jp.prospr(loss_fn, learning_rate=jnp.ones(6)),
        TypeError,
        r"learning_rate must be a number.*got float32\[6\]",
    ),
    "prospr: no steps": (
        lambda: jp.prospr(loss_fn)(P, X),
        TypeError,
        r"batches must be a tuple like batch, here of length 0.*got float32\[2, 4\]",
    ),
    "prospr: arrays of unlike length": (
        lambda: jp.prospr(lambda p, x, y: jnp.sum(p))(
            jnp.ones(2), (jnp.ones((3, 2)), jnp.ones((2, 2))), jnp.ones(2), jnp.ones(2)
        ),
        ValueError,
        r"one entry per step.*of one length; got the shapes \[\(3, 2\), \(2, 2\)\]",
    ),
    "synflow: parameters for the function": (
        lambda: jp.synflow(P),
        TypeError,
        r"apply_fn must be a function, apply_fn\(params, \*inputs\).*got a dict of 1",
    ),
    "synflow: computed in integers": (
        lambda: jp.synflow(apply_fn, dtype=jnp.int32),
        TypeError,
        "dtype must be a floating-point.*such as jnp.float64; got int32",
    ),
    "lamp: a mask for scores": (
        lambda: jp.lamp(MASK),
        TypeError,
        "scores: the leaf dense/bias is bool, not a floating-point array",
    ),
    "wanda: parameters for the function": (
        lambda: jp.wanda(P),
        TypeError,
        r"fn must be a function, fn\(params, \*inputs\) -> outputs; got a dict",
    ),
    # Flows and measures
    "mean_flow: one batch for many": (
        lambda: jp.mean_flow(loss_fn, P, X),
        TypeError,
        ONE_BATCH,
    ),
    "flow_rates: parameters for a flow": (
        lambda: jp.flow_rates(P),
        TypeError,
        NO_FLOW,
    ),
    **{
        f"measures.{name}: parameters for a flow": (
            lambda name=name: getattr(measures, name)(P),
            TypeError,
            NO_FLOW,
        )
        for name in (
            *("magnitude", "taylor", "loss_preservation", "biased_loss", "grasp"),
            *("gradient_preservation", "fisher", "drive"),
        )
    },
    # What is prunable, and how much of it
    "by_path: several patterns": (
        lambda: jp.by_path(["stem", "head"]),
        TypeError,
        r"pattern must be a regular expression.*'stem\|head'; got a list of 2",
    ),
    "by_path: no regular expression": (
        lambda: jp.by_path("layers/(0"),
        ValueError,
        r"got 'layers/\(0'.*unterminated.*re.escape",
    ),
    "divisible_by: a size in quotes": (
        lambda: jp.divisible_by("4"),
        ValueError,
        "m must be a whole number of weights in a group, at least 1; got '4'",
    ),
    "erk: a pattern for prunable": (
        lambda: jp.erk(P, 0.5, prunable="kernel"),
        TypeError,
        r"prunable must be a function.*jp.by_path\('kernel'\).*got 'kernel'",
    ),
    "hyperbolic_schedule: rounds in quotes": (
        lambda: jp.hyperbolic_schedule(0.5, "3"),
        ValueError,
        "rounds must be a whole number.*got '3'",
    ),
    "exponential_schedule: no number of rounds": (
        lambda: jp.exponential_schedule(0.5, None),
        ValueError,
        "rounds must be a whole number.*got None",
    ),
    # Masks
    "global_mask: a schedule for a number": (
        lambda: jp.global_mask(SCORES, GRADUAL),
        TypeError,
        r"sparsity must be a number in \[0, 1\).*got the function schedule",
    ),
    "global_mask: a NumPy bool for a number": (
        lambda: jp.global_mask(SCORES, np.False_),
        TypeError,
        r"sparsity must be a number in \[0, 1\).*got np.False_",
    ),
    "global_mask: a mask for prunable": (
        lambda: jp.global_mask(SCORES, 0.5, prunable=MASK),
        TypeError,
        "prunable must be a function, such as jp.matrices.*got a dict of 1",
    ),
    "global_mask: a function for scores": (
        lambda: jp.global_mask(jp.magnitude, 0.5),
        TypeError,
        r"scores: the leaf \(root\) is a function, not a floating-point array",
    ),
    "layerwise_mask: a schedule for a number": (
        lambda: jp.layerwise_mask(SCORES, GRADUAL),
        TypeError,
        "sparsity of dense/kernel must be a number.*got the function schedule",
    ),
    "n_m_mask: n and m in one string": (
        lambda: jp.n_m_mask(SCORES, "2:4", 4),
        ValueError,
        "n must be a whole number.*got '2:4'",
    ),
    "n_m_mask: an axis by its name": (
        lambda: jp.n_m_mask(SCORES, 2, 4, axis="inputs"),
        TypeError,
        "axis must be an integer, such as -2.*got 'inputs'",
    ),
    "n_m_mask: a traced size": (
        lambda: jax.jit(lambda m: jp.n_m_mask(SCORES, 1, m))(2),
        TypeError,
        r"m must be known while tracing.*traced int32\[\]. Pass a Python int",
    ),
    "divisible_by: no axis": (
        lambda: jp.divisible_by(2, axis=None),
        TypeError,
        "axis must be an integer, such as -2.*got None",
    ),
    "sparsities: pairs for a mapping": (
        lambda: jp.sparsities(P, [("kernel", 0.5)]),
        TypeError,
        "patterns must be a mapping.*got a list of 1",
    ),
    "stacked: a function of parameters": (
        lambda: jp.stacked(jp.matrices),
        TypeError,
        "pattern must be a regular expression.*got the function matrices",
    ),
    "unstack: a name that no leaf has": (
        lambda: jp.unstack(P, "layers"),
        ValueError,
        "'layers' matches no leaf. The paths are dense/bias, dense/kernel",
    ),
    "block_mask: one number for a shape": (
        lambda: jp.block_mask(SCORES, 0.5, 2),
        ValueError,
        r"block must be the shape of a block.*such as \(4, 4\); got 2",
    ),
    "row_mask: percent": (lambda: jp.row_mask(SCORES, 90), ValueError, PERCENT),
    "row_mask: an axis by its name": (
        lambda: jp.row_mask(SCORES, 0.5, axis="rows"),
        TypeError,
        "axis must be an integer, such as -2.*got 'rows'",
    ),
    "row_mask: an axis that is not there": (
        lambda: jp.row_mask(SCORES, 0.5, axis=2),
        ValueError,
        r"dense/kernel of shape \(4, 6\).*one or more axes from -2 to 1",
    ),
    "iterative_mask: scores for the function": (
        lambda: jp.iterative_mask(SCORES, P, sparsity=0.5, rounds=2),
        TypeError,
        r"score_fn must be a function, score_fn\(params, \*batch\).*got a dict",
    ),
    "iterative_mask: a loss for the score": (
        lambda: jp.iterative_mask(loss_fn, P, X, sparsity=0.5, rounds=2),
        ValueError,
        "scores must have the tree structure of params: it lacks dense/bias",
    ),
    "force_mask: a measure by its name": (
        lambda: jp.force_mask(
            loss_fn, P, X, sparsity=0.5, rounds=2, measure="loss_preservation"
        ),
        TypeError,
        "measure must be a function, such as jp.measures.*got 'loss_preservation'",
    ),
    "force_mask: a score for the measure": (
        lambda: jp.force_mask(loss_fn, P, X, sparsity=0.5, rounds=2, measure=jp.snip),
        TypeError,
        "loss_fn must be a function",
    ),
    "shuffle_mask: a seed": (
        lambda: jp.shuffle_mask(0, MASK),
        TypeError,
        NO_KEY + "0",
    ),
    "apply_mask: the arguments swapped": (
        lambda: jp.apply_mask(MASK, P),
        TypeError,
        r"mask: the leaf dense/bias is float32, but a mask is bool, True = kept",
    ),
    "apply_mask: one bool a leaf": (
        lambda: jp.apply_mask(P, jp.matrices(P)),
        ValueError,
        r"shapes of params: the leaf dense/bias has shape \(\), expected \(6,\)",
    ),
    "apply_mask: a function for a mask": (
        lambda: jp.apply_mask(P, jp.matrices),
        ValueError,
        "mask must have the tree structure of params: it lacks dense/bias",
    ),
    "sparsity: parameters for a mask": (
        lambda: jp.sparsity(P),
        TypeError,
        "mask: the leaf dense/bias is float32, but a mask is bool",
    ),
    "summary: the arguments swapped": (
        lambda: jp.summary(MASK, P),
        TypeError,
        "mask: the leaf dense/bias is float32, but a mask is bool",
    ),
    "cost: the arguments swapped": (
        lambda: jp.cost(P, apply_fn, X),
        TypeError,
        r"params: the leaf \(root\) is a function, not an array",
    ),
    # Transformations
    "keep_sparse: a sparsity for a mask": (
        lambda: jp.keep_sparse(0.9).init(P),
        ValueError,
        r"mask must have the tree structure of params.*has \(root\) in addition",
    ),
    "sparse: the arguments swapped": (
        lambda: jp.sparse(MASK, SGD),
        TypeError,
        f"sparse {NO_INNER}.*got a dict of 1",
    ),
    "rigl: a learning rate for an optimizer": (
        lambda: jp.rigl(0.1, MASK, every=2, until=4),
        TypeError,
        f"rigl {NO_INNER}.*got 0.1",
    ),
    "rigl: an end that no step number reaches": (
        lambda: jp.rigl(SGD, MASK, every=100, until=sys.maxsize),
        ValueError,
        r"until must be below 2\*\*31 updates; got 9223372036854775807",
    ),
    "rigl: gradients of one layer": (
        lambda: jp.rigl(SGD, MASK, every=2, until=4).update(
            {"dense": {"kernel": SCORES["dense"]["kernel"]}},
            jp.rigl(SGD, MASK, every=2, until=4).init(P),
            P,
        ),
        ValueError,
        r"jaxprune.rigl: grads must have the tree structure.*it lacks dense/bias",
    ),
    "keep_sparse: what value_and_grad returns": (
        lambda: jp.keep_sparse().update((1.0, P), jp.keep_sparse().init(P), P),
        ValueError,
        r"grads must have the tree structure of params.*it has 0, 1/dense/bias",
    ),
    "rigl: a link whose state changes its structure": (
        lambda: updated_by(
            jp.rigl(
                optax.chain(SGD, optax.monitor({"norm": optax.tree.norm})),
                MASK,
                every=2,
                until=4,
            )
        ),
        ValueError,
        r"state keeps its tree structure.*chain\(jp.rigl\(\.\.\.\), optax.monitor\(",
    ),
    "rigl: an end before the first due update": (
        lambda: jp.rigl(SGD, MASK, every=100, until=75),
        ValueError,
        "until=75 comes before.*every=100.*Pass until >= every, or None",
    ),
    "set_training: an optimizer that was not made": (
        lambda: jp.set_training(optax.sgd, MASK, key=KEY, every=2, until=4),
        TypeError,
        f"set_training {NO_INNER}.*got the function sgd",
    ),
    "granet: a mask for the sparsity": (
        lambda: jp.granet(SGD, MASK, every=2, until=4),
        TypeError,
        r"sparsity must be a number in \[0, 1\).*got a dict of 1",
    ),
    "gradual: a score by its name": (
        lambda: jp.gradual(0.5, score="magnitude"),
        TypeError,
        r"score must be a function, score\(params\) -> scores; got 'magnitude'",
    ),
    "gradual: a period of None": (
        lambda: jp.gradual(0.5, every=None),
        ValueError,
        "every must be a whole number of updates, at least 1; got None",
    ),
    "gradual: a pattern for prunable": (
        lambda: updated(jp.gradual(0.5, prunable="kernel")),
        TypeError,
        r"prunable must be a function.*jp.by_path\('kernel'\).*got 'kernel'",
    ),
    "gradual: a schedule of counts": (
        lambda: updated(jp.gradual(lambda step: step)),
        TypeError,
        r"sparsity is int32; pass the fraction.*a float in \[0, 1\)",
    ),
    "gradual_n_m: scores for the function": (
        lambda: jp.gradual_n_m(2, 4, score=SCORES),
        TypeError,
        r"score must be a function, score\(params\) -> scores; got a dict of 1",
    ),
    "update_mask: a mask for the function": (
        lambda: jp.update_mask(MASK),
        TypeError,
        r"fn must be a function, fn\(params, mask, step\) -> mask; got a dict of 1",
    ),
    "k_starts: a seed": (
        lambda: jp.k_starts(0, 2, 0.5, select_at=1),
        TypeError,
        NO_KEY + "0",
    ),
    "dissipating: a threshold in quotes": (
        lambda: jp.dissipating(threshold="0.1", every=2, until=None),
        TypeError,
        "threshold must be a number.*or a schedule; got '0.1'",
    ),
    "dissipating: an end before the first look": (
        lambda: jp.dissipating(0.5, every=10, until=5),
        ValueError,
        "until=5 comes before.*every=10.*Pass until >= every",
    ),
    "forward_sparse: a mask for the function": (
        lambda: jp.forward_sparse(loss_fn, MASK),
        TypeError,
        r"mask_fn must be.*\(for a fixed mask pass lambda _: mask\); got a dict",
    ),
    "forward_sparse: scores for the mask": (
        lambda: jp.forward_sparse(loss_fn, jp.magnitude)(P, X),
        TypeError,
        "mask: the leaf dense/bias is float32, but a mask is bool",
    ),
    "get_mask: the arguments swapped": (
        lambda: jp.get_mask(P, jp.keep_sparse().init(P)),
        ValueError,
        r"optimizer state holds no mask. Put jp.keep_sparse\(mask\)",
    ),
    "set_mask: the transformation for its state": (
        lambda: jp.set_mask(jp.keep_sparse(), MASK),
        ValueError,
        r"optimizer state holds no mask. Put jp.keep_sparse\(mask\)",
    ),
    "earlycrop_trigger: a mask for the sparsity": (
        lambda: jp.earlycrop_trigger(MASK),
        TypeError,
        r"sparsity must be a number in \[0, 1\).*got a dict of 1",
    ),
    "epi_trigger: parameters for the mask": (
        lambda: jp.epi_trigger(0.9).update(P, jp.epi_trigger(0.9).init(P)),
        TypeError,
        "mask: the leaf dense/bias is float32, but a mask is bool",
    ),
    # Initialisation and scaling
    "exact_orthogonal_init: the arguments swapped": (
        lambda: jp.exact_orthogonal_init(P, KEY, 0.5),
        TypeError,
        NO_KEY + "a dict of 1",
    ),
    "exact_orthogonal_init: no gain": (
        lambda: jp.exact_orthogonal_init(KEY, P, 0.5, gain=float("nan")),
        ValueError,
        "gain must be a number above 0.*got nan",
    ),
    "sparse_mup: a pattern for the hidden layers": (
        lambda: jp.sparse_mup(P, 0.5, hidden="kernel"),
        TypeError,
        r"must be a function, such as.*jp.by_path\('kernel'\).*got 'kernel'",
    ),
    "scale_leaves: the factors of one layer": (
        lambda: jp.scale_leaves({"kernel": 1.0, "bias": 1.0}).update(
            P, optax.EmptyState()
        ),
        ValueError,
        "factors must have one number per leaf of the parameters",
    ),
    "scale_leaves: a factor a weight": (
        lambda: jp.scale_leaves(P),
        TypeError,
        r"factors: the leaf dense/bias must be a number.*got float32\[6\]",
    ),
    # Layers of large models
    "input_axes: the arguments swapped": (
        lambda: jp.input_axes(P, apply_fn, X),
        TypeError,
        r"params: the leaf \(root\) is a function, not a floating-point array",
    ),
    "sparse_gpt: one batch for many": (
        lambda: jp.sparse_gpt(apply_fn, P, X, sparsity=0.5),
        TypeError,
        ONE_BATCH,
    ),
    "sparse_gpt: n and m in one string": (
        lambda: jp.sparse_gpt(apply_fn, P, [X], n_m="2:4"),
        ValueError,
        r"n_m must be two numbers, \(2, 4\) for 2:4; got '2:4'",
    ),
    "sparse_gpt: damping too small for float32": (
        lambda: jp.sparse_gpt(
            lambda p, x: x @ p,
            normal(0, w=(8, 4))["w"],
            [normal(1, x=(3, 8))["x"]],
            sparsity=0.5,
            damping=1e-8,
        ),
        ValueError,
        r"The leaf \(root\) came out with a NaN.*no Cholesky factor.*pass a larger one",
    ),
    "sparse_gpt: damping in quotes": (
        lambda: jp.sparse_gpt(apply_fn, P, [X], sparsity=0.5, damping="a"),
        TypeError,
        "damping must be a number above 0, such as 0.01; got 'a'",
    ),
    "sparse_gpt: a NaN among the data": (
        lambda: jp.sparse_gpt(
            lambda p, x: x @ p, jnp.ones((4, 2)), [X.at[0].set(jnp.nan)], sparsity=0.5
        ),
        ValueError,
        r"The inputs of the leaf \(root\) hold a NaN or an infinity",
    ),
    "admm: a damping of 0": (
        lambda: jp.admm(apply_fn, P, [X], sparsity=0.5, damping=0),
        ValueError,
        "damping must be a finite number above 0, such as 0.01; got 0",
    ),
    "by_score: scores for the function": (
        lambda: jp.by_score(P),
        TypeError,
        "score must be a function, score.*got a dict of 1",
    ),
    "dsnot: a mask for the method": (
        lambda: jp.dsnot(MASK),
        TypeError,
        "method must be a function, such as jp.by_score.*got a dict of 1",
    ),
    "owl: one batch for many": (
        lambda: jp.owl(jnp.dot, [jnp.ones((4, 4))], X, 0.5),
        TypeError,
        ONE_BATCH,
    ),
    "prune_blocks: a method that was called": (
        lambda: jp.prune_blocks(MASK, jnp.dot, [X], [X], sparsity=0.5),
        TypeError,
        "method must be a function, such as jp.sparse_gpt; got a dict of 1",
    ),
    "ria: a power in quotes": (
        lambda: jp.ria(apply_fn, power="a"),
        TypeError,
        "power must be a number; got 'a'",
    ),
    # Files
    "save_mask: a folder that is not there": (
        lambda: jp.save_mask("no/such/folder/mask.npz", MASK),
        FileNotFoundError,
        "There is no folder no/such/folder. Make it first",
    ),
    "load_mask: a mask that was never saved": (
        lambda: jp.load_mask("no/such/mask.npz", P),
        FileNotFoundError,
        "no/such/mask.npz",
    ),
    "read_gguf: a file that is not there": (
        lambda: jp.read_gguf("no/such/model.gguf"),
        FileNotFoundError,
        "There is no file no/such/model.gguf",
    ),
    "read_safetensors: a file that is not there": (
        lambda: jp.read_safetensors("no/such/model.safetensors"),
        FileNotFoundError,
        "There is no file no/such/model.safetensors",
    ),
    "save_model: the arguments swapped": (
        lambda: jp.save_model("folder", P, apply_fn, X),
        TypeError,
        r"fn must be a function, fn\(params, \*inputs\) -> outputs; got a dict of 1",
    ),
    "save_model: one platform for several": (
        lambda: jp.save_model("folder", apply_fn, P, X, platforms="tpu"),
        TypeError,
        r"platforms must be a tuple of names, such as \('cpu', 'tpu'\); got 'tpu'",
    ),
    "load_model: a folder without a model": (
        lambda: jp.load_model("no/such/folder"),
        FileNotFoundError,
        "There is no no/such/folder/.*jaxprune.save_model",
    ),
    # Channels
    "structured.channel_groups: the arguments swapped": (
        lambda: structured.channel_groups(T, two, TX),
        TypeError,
        r"params: the leaf \(root\) is a function, not an array",
    ),
    "structured.group_scores: the arguments swapped": (
        lambda: structured.group_scores(GROUPS, T),
        TypeError,
        NO_GROUPS + " a dict of 2",
    ),
    "structured.group_scores: a mask for scores": (
        lambda: structured.group_scores(CHANNELS, GROUPS),
        TypeError,
        "scores: the leaf a is bool, not a floating-point array",
    ),
    "structured.group_scores: scores of a smaller model": (
        lambda: structured.group_scores({"a": np.ones((8, 3)), "b": T["b"]}, GROUPS),
        ValueError,
        r"leaf a of scores is \(8, 3\).*group a has a channel at position 3 .*axis 1",
    ),
    "structured.structured_mask: percent": (
        lambda: REMOVE(WORTH, GROUPS, T, 90),
        ValueError,
        PERCENT,
    ),
    "structured.structured_mask: other parameters": (
        lambda: REMOVE(WORTH, GROUPS, P, 0.5),
        ValueError,
        "group a has a member a, which params lacks. Pass groups found for the same",
    ),
    "structured.structured_mask: a budget without a number": (
        lambda: REMOVE(WORTH, GROUPS, T, 0.5, budget=lambda mask: None),
        ValueError,
        "budget must return a finite number.*got None",
    ),
    "structured.structured_mask: a budget of NaN": (
        lambda: REMOVE(WORTH, GROUPS, T, 0.5, budget=lambda mask: float("nan")),
        ValueError,
        "budget must return a finite number.*got nan",
    ),
    "structured.channel_report: the arguments swapped": (
        lambda: structured.channel_report(GROUPS, CHANNELS),
        TypeError,
        NO_GROUPS + " a dict of 2",
    ),
    "structured.shrink: the arguments swapped": (
        lambda: structured.shrink(two, T, GROUPS, CHANNELS),
        TypeError,
        NO_GROUPS + " a dict of 2",
    ),
    "structured.narrow: the arguments swapped": (
        lambda: structured.narrow(T, GROUPS, CHANNELS),
        TypeError,
        NO_GROUPS + " a dict of 2",
    ),
    "structured.narrow_module: parameters for the module": (
        lambda: structured.narrow_module(T, CHANNELS, GROUPS),
        TypeError,
        "model must be an nnx.Module or an equinox.Module; got a dict of 2.*narrow",
    ),
    "structured.save: the whole parameters for the small": (
        lambda: structured.save("small.npz", T, CHANNELS, GROUPS),
        ValueError,
        r"shapes of what mask leaves: the leaf a has shape \(8, 4\), expected \(8, 2\)",
    ),
    "structured.standardize: the scores of one group": (
        lambda: structured.standardize(WORTH[0]),
        ValueError,
        r"one array of shape \(size,\) for each group, .*; got np.float64\(0.0\)",
    ),
    "structured.minitron: a batch for a list of batches": (
        lambda: structured.minitron(two, T32, TX, GROUPS),
        TypeError,
        r"batches must be an iterable of batches.*For a single batch pass \[batch\]",
    ),
    "structured.minitron: groups that are read by no product": (
        lambda: structured.minitron(two, T32, [TX], PRODUCED),
        ValueError,
        "No matrix product reads the channels of the group a.*score it with group_sc",
    ),
    "structured.flap: a batch without sequences": (
        lambda: structured.flap(two, T32, [np.float32(1.0)], GROUPS),
        ValueError,
        "leading axis of a batch's first array must number its sequences",
    ),
    "structured.compensate: a model without biases": (
        lambda: structured.compensate(two, T32, [TX], CHANNELS, GROUPS),
        ValueError,
        "No layer that reads a removed channel has a bias.*biases of 0, or leave",
    ),
    "structured.slice_groups: the path of a layer": (
        lambda: structured.slice_groups(P, {"dense": 1}, 2),
        ValueError,
        "params has no leaf dense; its leaves are dense/bias, dense/kernel",
    ),
    "structured.reap: the outputs for their norms": (
        lambda: structured.reap(jnp.ones((5, 4)), jnp.ones((5, 4, 8))),
        ValueError,
        r"must both be of shape \(..., experts\); got .*\[5, 4\] and .*\[5, 4, 8\]",
    ),
    "structured.block_influence: a batch for a list of batches": (
        lambda: structured.block_influence(lambda w, x: x @ w, [np.eye(8)], TX),
        TypeError,
        r"For a single batch pass \[batch\]",
    ),
    "structured.angular_distance: the arguments swapped": (
        lambda: structured.angular_distance([np.eye(8)], two, [TX], 1),
        TypeError,
        r"block_fn must be a function, block_fn\(block, hidden\) -> hidden; got a list",
    ),
    "structured.drop_blocks: scores for indices": (
        lambda: structured.drop_blocks([1, 2, 3], np.array([0.1, 0.2, 0.3])),
        TypeError,
        r"drop must be the indices of blocks, such as \[3, 4\]; got float64\[3\]",
    ),
    "structured.load: the arguments swapped": (
        lambda: structured.load("small.npz", T, two),
        TypeError,
        r"params: the leaf \(root\) is a function, not an array",
    ),
}

# Cannot be wrong: it tells of any tree which leaves are matrices of floats.
TOTAL = {"matrices"}


@pytest.mark.parametrize("row", ROWS)
def test_the_answer_says_what_to_do(row):
    _expect(*ROWS[row])


def test_every_public_function_has_a_row():
    public = {
        prefix + name
        for prefix, module in (
            ("", jp),
            ("measures.", measures),
            ("structured.", structured),
        )
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
        if module is not measures or value.__module__ == measures.__name__
    }
    # The classes are what functions return: a user does not make them.
    named = {row.split(":")[0] for row in ROWS}
    assert named | TOTAL == public
