"""Checks at trace time, with errors in the user's words.

The checks read structures, shapes, dtypes and Python numbers, so they cost nothing in a
compiled program. `check_no_nans` and `check_keeps_something` also read values, if those
are concrete.
"""

import numbers
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.core._dtypes import precision_of


def path_str(path: tuple[Any, ...]) -> str:
    """Writes a leaf's path as ``layers/0/kernel``, or ``(root)`` for a bare array."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def leaf_paths(tree: Any) -> list[str]:
    """Lists the paths of a tree's leaves, in leaf order."""
    return [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def is_concrete(tree: Any) -> bool:
    """Returns whether every leaf is an array with values: not traced or abstract."""
    leaves = jax.tree.leaves(tree)
    return all(
        isinstance(leaf, np.ndarray | np.generic)
        or (isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer))
        for leaf in leaves
    )


def on_host(tree: Any) -> bool:
    """Returns whether every leaf is concrete, on one CPU device, and of NumPy's types.

    Random keys are not.
    """
    if not is_concrete(tree):
        return False
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if any(jnp.issubdtype(array.dtype, jax.dtypes.extended) for array in arrays):
        return False
    devices = {device for array in arrays for device in array.devices()}
    return len(devices) <= 1 and all(device.platform == "cpu" for device in devices)


def is_floating(leaf: Any) -> bool:
    """Returns whether a leaf is an array of real floating-point numbers."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def described(value: Any) -> str:
    """Describes an argument in a few words, however large it is."""
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and not isinstance(value, np.generic):
        return f"{value.dtype}{list(value.shape)}"
    if value is None or isinstance(value, str | numbers.Number | np.generic):
        return repr(value)
    name = getattr(value, "__name__", None)
    return f"the function {name}" if name else f"a {type(value).__name__}"


def check_callable(value: Any, name: str, call: str) -> None:
    """Raises unless ``value`` is callable; ``call`` shows how it will be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, {call}; got {described(value)}.")


def check_optimizer(inner: Any, caller: str) -> None:
    """Raises unless ``inner`` is an optax transformation."""
    made = not isinstance(inner, type)
    if not (made and hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"{caller} wraps an optax optimizer, such as optax.adam(1e-3), as its "
            f"first argument; got {described(inner)}."
        )


def check_batches(batches: Any) -> None:
    """Raises unless ``batches`` can be read batch by batch."""
    one = isinstance(batches, jax.Array | np.ndarray | dict | str)
    if one or not hasattr(batches, "__iter__"):
        raise TypeError(
            "batches must be an iterable of batches, such as a list or a data loader; "
            f"got {described(batches)}. For a single batch pass [batch]."
        )


def check_floating(tree: Any, name: str) -> None:
    """Raises unless ``tree`` has leaves and all of them are floating-point arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(
            f"{name} has no leaves. Pass a pytree of floating-point arrays, such as "
            "nnx.state(model, nnx.Param) or variables['params']."
        )
    for path, leaf in leaves:
        if not is_floating(leaf):
            kind = getattr(leaf, "dtype", f"a {type(leaf).__name__}")
            raise TypeError(
                f"{name}: the leaf {path_str(path)} is {kind}, not a floating-point "
                "array. Pass only the weights, and split off integers, keys and "
                "functions first: nnx.split(model, nnx.Param, ...) or "
                "equinox.partition(model, equinox.is_inexact_array)."
            )


def check_like(tree: Any, reference: Any, name: str, reference_name: str) -> None:
    """Raises unless two trees agree in structure and in every leaf's shape."""
    structure, expected = jax.tree.structure(tree), jax.tree.structure(reference)
    if structure != expected:
        ours, theirs = set(leaf_paths(tree)), set(leaf_paths(reference))
        missing, extra = sorted(theirs - ours), sorted(ours - theirs)
        details = (
            [f"it lacks {some(missing)}"] * bool(missing)
            + [f"it has {some(extra)} in addition"] * bool(extra)
        ) or [f"it has {structure}, expected {expected}"]
        raise ValueError(
            f"{name} must have the tree structure of {reference_name}: "
            f"{' and '.join(details)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), other in zip(leaves, jax.tree.leaves(reference), strict=True):
        if np.shape(leaf) != np.shape(other):
            raise ValueError(
                f"{name} must have the shapes of {reference_name}: the leaf "
                f"{path_str(path)} has shape {np.shape(leaf)}, expected "
                f"{np.shape(other)}."
            )


def check_mask(mask: Any, params: Any, name: str = "mask") -> None:
    """Raises unless ``mask`` is a tree of bool with the shapes of ``params``."""
    check_like(mask, params, name, "params")
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if dtype != jnp.bool_:
            raise TypeError(
                f"{name}: the leaf {path_str(path)} is {dtype}, but a mask is bool, "
                "True = kept. If non-zero means kept, pass "
                "jax.tree.map(lambda m: m != 0, mask)."
            )


def check_keeps_something(mask: Any) -> None:
    """Raises if a concrete mask keeps no weight of any leaf that could be pruned."""
    leaves = [leaf for leaf in jax.tree.leaves(mask) if np.size(leaf)]
    leaves = [leaf for leaf in leaves if np.ndim(leaf) >= 2] or leaves
    if not leaves or not is_concrete(leaves):
        return
    with jax.ensure_compile_time_eval():  # The mask is concrete even while tracing.
        kept = any(bool(jnp.any(leaf)) for leaf in leaves)
    if not kept:
        raise ValueError(
            "The mask keeps no weight of any prunable leaf. In a mask True means kept. "
            "If True means pruned in yours, pass "
            "jax.tree.map(jnp.logical_not, mask)."
        )


def is_python_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a Python or NumPy number, known while tracing."""
    known = isinstance(value, numbers.Real | np.generic)
    return known and not isinstance(value, bool | np.bool_ | np.str_)


def check_sparsity(value: Any, name: str = "sparsity") -> None:
    """Raises unless ``value`` is a scalar, in [0, 1) if its value is known."""
    check_fraction(value, name, "of prunable weights to remove")


def check_fraction(value: Any, name: str, of: str) -> None:
    """Raises unless ``value`` is a scalar, in [0, 1) if its value is known."""
    if is_python_number(value):
        number = float(value)
    elif isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"{name} is {value.dtype}; pass the fraction {of}, a float in [0, 1)."
            )
        number = float(value) if is_concrete(value) else 0.0
    else:
        raise TypeError(
            f"{name} must be a number in [0, 1), the fraction {of}; got "
            f"{described(value)}."
        )
    if not 0 <= number < 1:
        raise ValueError(
            f"{name} is the fraction {of}, in [0, 1); got {number}. For 90 %, pass 0.9."
        )


def static_sparsity(value: Any, caller: str, name: str) -> float:
    """Converts a checked sparsity to a float; raises if it is traced."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{caller} needs a sparsity that is known while tracing, a Python number "
            f"in [0, 1); got a traced value for {name}."
        )
    return float(value)


def check_key(key: Any) -> None:
    """Raises unless ``key`` is a single JAX random key, typed or raw uint32."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (new and shape == ()) and not (dtype == jnp.uint32 and len(shape) == 1):
        given = described(key) if dtype is None else f"{dtype} of shape {shape}"
        raise TypeError(
            f"key must be a random key, such as jax.random.key(0); got {given}."
        )


def check_count(value: Any, name: str, unit: str, least: int = 1) -> Any:
    """Raises unless a count is a whole number >= ``least`` that fits in an int32.

    Returns:
      The count as an int, or unchanged if it is traced.
    """
    if isinstance(value, Tracer):
        return value
    known = is_python_number(value) or isinstance(value, jax.Array | np.ndarray)
    number = np.asarray(value if known else np.nan)
    if number.ndim or not number >= least or number % 1 != 0:
        raise ValueError(
            f"{name} must be a whole number of {unit}, at least {least}; got {value!r}."
        )
    count = int(number)
    if count >= 2**31:
        raise ValueError(f"{name} must be below 2**31 {unit}; got {value!r}.")
    return count


def static_count(value: Any, name: str, unit: str, least: int = 1) -> int:
    """Checks a count as `check_count` does, and raises if it is traced."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be known while tracing, a whole number of {unit}; got a "
            f"traced {described(value)}. Pass a Python int."
        )
    return check_count(value, name, unit, least)


def check_group(n: Any, m: Any) -> tuple[Any, int]:
    """Raises unless ``n`` of every ``m`` weights can be kept; returns both as ints.

    ``n`` may be traced.
    """
    m = static_count(m, "m", "weights in a group")
    n = check_count(n, "n", "weights kept in a group", least=0)
    if not isinstance(n, Tracer) and n > m:
        raise ValueError(
            f"n of every m weights are kept, so n <= m; got n={n} and m={m}. For 2:4 "
            "pass n=2, m=4."
        )
    return n, m


def check_axis(value: Any, name: str = "axis") -> int:
    """Converts an axis to an int; raises unless it is a Python or NumPy integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be an integer, such as -2, the input axis of a Flax kernel; "
            f"got {described(value)}."
        )
    return int(value)


def check_no_nans(tree: Any, name: str) -> None:
    """Raises if a concrete tree holds a NaN."""
    leaves = jax.tree.leaves(tree)
    if not leaves or not is_concrete(leaves):
        return
    if on_host(leaves):
        found = [bool(np.any(np.isnan(np.asarray(leaf)))) for leaf in leaves]
    else:
        with precision_of(leaves), jax.ensure_compile_time_eval():
            found = np.asarray(_has_nan(leaves))
    paths = [p for p, nan in zip(leaf_paths(tree), found, strict=True) if nan]
    if paths:
        raise ValueError(
            f"{name} contain NaN in {some(paths)}. Look for a loss that overflows or "
            "divides by zero. To always keep a weight score it inf, and to remove it "
            "first -inf."
        )


@jax.jit
def _has_nan(leaves: list[Any]) -> Any:
    # max propagates NaN, and needs no temporary of the leaf's size.
    return jnp.stack([jnp.isnan(jnp.max(x, initial=-jnp.inf)) for x in leaves])


def some(paths: list[str], shown: int = 3) -> str:
    """Lists the first of several paths."""
    listed = ", ".join(paths[:shown])
    rest = len(paths) - shown
    return f"{listed} and {rest} more" if rest > 0 else listed
