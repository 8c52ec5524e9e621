"""The layers of Flax NNX, and how each follows from its narrowed arrays."""

import functools
import math
from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxprune.structured._layers import (
    Layer,
    Library,
    agree,
    array_at,
    check_size,
    hidden_size,
    kept_groups,
    lost,
    refusal,
    shape_at,
)


def arrays(model: Any) -> dict[str, Any]:
    """All arrays of a module, by path."""
    return {path: _value(leaf) for path, leaf in _variables(model).items()}


def replaced(model: Any, values: dict[str, Any]) -> Any:
    """A copy of a module that holds other arrays."""
    small = nnx.clone(model)
    variables = dict(nnx.to_flat_state(nnx.state(small)))
    paths = {"/".join(map(str, path)): path for path in variables}
    new = {paths[path]: _with(variables[paths[path]], v) for path, v in values.items()}
    nnx.update(small, nnx.from_flat_state(list(new.items())))
    return small


def modules(model: Any) -> dict[str, Any]:
    """All modules of a module by path, itself as ""."""
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model)}


def assign(module: Any, attribute: str, value: Any) -> None:
    """Sets an attribute of a module, or of a submodule, or the value of a variable."""
    *parents, name = attribute.split("/")
    owner = array_at(module, "/".join(parents)) if parents else module
    current = getattr(owner, name)
    if isinstance(current, nnx.Variable):
        current[...] = value
    else:
        setattr(owner, name, value)


def _variables(model: Any) -> dict[str, Any]:
    found = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): leaf for path, leaf in found}


def _value(leaf: Any) -> Any:
    """What a variable holds; a plain array is held as it is."""
    return leaf.get_value() if hasattr(leaf, "get_value") else leaf


def _with(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if hasattr(leaf, "get_value") else value


def _linear(layer: Layer) -> dict[str, Any]:
    inputs, outputs = shape_at(layer, "kernel")[-2:]
    agree(layer, outputs, "bias")
    return {"in_features": inputs, "out_features": outputs}


def _linear_general(layer: Layer) -> dict[str, Any]:
    old = layer.module
    counts = len(old.batch_axis), len(old.in_features), len(old.out_features)
    shape = shape_at(layer, "kernel")[-sum(counts) :]
    batch, inputs = shape[: counts[0]], shape[counts[0] : -counts[2]]
    outputs = shape[-counts[2] :]
    for axis, size in zip(range(-counts[2], 0), outputs, strict=True):
        agree(layer, size, "bias", axis=axis)
    batch_axis = type(old.batch_axis)(zip(old.batch_axis, batch, strict=True))
    return {"batch_axis": batch_axis, "in_features": inputs, "out_features": outputs}


def _einsum(layer: Layer) -> dict[str, Any]:
    old = layer.module
    kernel = shape_at(layer, "kernel")[-len(old.kernel_shape) :]
    if old.bias is None:
        return {"kernel_shape": kernel}
    bias = shape_at(layer, "bias")[-len(old.bias_shape) :]
    operands, _, result = (old.einsum_str or "").partition("->")
    names = operands.partition(",")[2]
    if len(names) == len(kernel):  # Known before the call, and without an ellipsis.
        sizes = [n for n, name in zip(kernel, names, strict=True) if name in result]
        check_size(layer, "bias", math.prod(bias), math.prod(sizes))
    return {"kernel_shape": kernel, "bias_shape": bias}


def _conv(layer: Layer) -> dict[str, Any]:
    old = layer.module
    shape = shape_at(layer, "kernel")[-len(old.kernel_shape) :]
    inputs, outputs = shape[-2:]
    groups = old.feature_group_count
    if groups > 1:  # Whole groups went.
        groups = outputs * groups // old.out_features
    agree(layer, outputs, "bias")
    return {
        "kernel_shape": shape,
        "in_features": inputs * groups,
        "out_features": outputs,
        "feature_group_count": groups,
    }


def _conv_transpose(layer: Layer) -> dict[str, Any]:
    shape = shape_at(layer, "kernel")[-len(layer.module.kernel_shape) :]
    inputs, outputs = shape[:-3:-1] if layer.module.transpose_kernel else shape[-2:]
    agree(layer, outputs, "bias")
    return {"kernel_shape": shape, "in_features": inputs, "out_features": outputs}


def _embed(layer: Layer) -> dict[str, Any]:
    rows, features = shape_at(layer, "embedding")[-2:]
    return {"num_embeddings": rows, "features": features}


def _norm(layer: Layer) -> dict[str, Any]:
    return {"num_features": agree(layer, None, "scale", "bias", "mean", "var")}


def _group_norm(layer: Layer) -> dict[str, Any]:
    agree(layer, None, "scale", "bias")
    gone = lost(layer, "scale" if layer.module.use_scale else "bias", -1)
    return {"num_groups": kept_groups(layer, gone, layer.module.num_groups)}


def _lora(layer: Layer) -> dict[str, Any]:
    inputs, outputs = shape_at(layer, "lora_a")[-2], shape_at(layer, "lora_b")[-1]
    return {"in_features": inputs, "out_features": outputs}


def _cell(layer: Layer, gates: int, inputs: str, states: str) -> dict[str, Any]:
    first, second = inputs.split(), states.split()
    size = hidden_size(
        layer,
        gates,
        produced=[(f"{part}/kernel", -1) for part in (*first, *second)],
        read=[(f"{part}/kernel", -2) for part in second],
    )
    inputs_size = shape_at(layer, f"{first[0]}/kernel")[-2]
    return {"in_features": inputs_size, "hidden_features": size}


def _attention(layer: Layer) -> dict[str, Any]:
    query, key, value, out = (
        shape_at(layer, f"{part}/kernel")[-3:]
        for part in ("query", "key", "value", "out")
    )
    (features, heads, dim), (kv_features, kv_heads, _) = query, key
    if value != key or out[:2] != (heads, dim) or key[2] != dim:
        raise refusal(
            layer,
            f"its query, key, value and out kernels become {query}, {key}, {value} "
            f"and {out}, which in_kv_features, num_heads and head_dim cannot express",
            'give its groups the same size with structured_mask(scope="group")',
        )
    old = layer.module
    _check_attention_fn(layer, heads, dim)
    if old.cached_key is not None and old.cached_key.shape[-2:] != key[1:]:
        raise refusal(
            layer, "its cache has the old sizes", "call init_cache afterwards"
        )
    # It divides by the root of the new head_dim, where the masked module does by the
    # root of the old one: the queries make up for it.
    scale = math.sqrt(dim / old.head_dim)
    parts = ["query_ln/scale"] if old.normalize_qk else ["query/kernel", "query/bias"]
    found = {part: array_at(old, part) for part in parts if scale != 1}
    return {
        **{part: v[...] * scale for part, v in found.items() if v is not None},
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "qkv_features": heads * dim,
        "in_features": features,
        "in_kv_features": kv_features,
        "out_features": out[-1],
    }


def _check_attention_fn(layer: Layer, heads: int, dim: int) -> None:
    """Raises if attention_fn may depend on the number of heads or of dimensions."""
    old = layer.module
    plain = old.attention_fn is nnx.dot_product_attention
    with_rope = getattr(nnx, "dot_product_attention_with_rope", None)
    rotary = getattr(old.attention_fn, "func", plain) is with_rope  # Not in old flax.
    if (dim != old.head_dim and not plain) or (
        heads != old.num_heads and not (plain or rotary)
    ):
        raise refusal(
            layer, "its attention_fn may depend on the number of heads or of dimensions"
        )


def _bare_group_norm(norm: Any) -> tuple[int, ...]:
    return (norm.num_groups,) if norm.scale is None and norm.bias is None else ()


def _rotary_sizes(rope: Any) -> tuple[int, ...]:
    return () if rope.cached_sin is None else (2 * rope.cached_sin.shape[-1],)


_LAYERS = {
    nnx.BatchNorm: _norm,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Einsum: _einsum,
    nnx.Embed: _embed,
    nnx.GRUCell: functools.partial(_cell, gates=3, inputs="dense_i", states="dense_h"),
    nnx.GroupNorm: _group_norm,
    nnx.InstanceNorm: _norm,
    nnx.LSTMCell: functools.partial(
        _cell, gates=1, inputs="ii if_ ig io", states="hi hf hg ho"
    ),
    nnx.LayerNorm: _norm,
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.LoRA: _lora,
    nnx.LoRALinear: _linear,
    nnx.MultiHeadAttention: _attention,
    nnx.OptimizedLSTMCell: functools.partial(
        _cell, gates=4, inputs="dense_i", states="dense_h"
    ),
    nnx.RMSNorm: _norm,
    nnx.SimpleCell: functools.partial(
        _cell, gates=1, inputs="dense_i", states="dense_h"
    ),
}
_CONTAINERS = nnx.Bidirectional, nnx.Dict, nnx.List, nnx.RNN, nnx.Sequential
_BARE: dict[type, Callable[[Any], tuple[int, ...]]] = {nnx.GroupNorm: _bare_group_norm}
if hasattr(nnx, "RoPE"):  # From Flax 0.12.9 on.
    _BARE[nnx.RoPE] = _rotary_sizes

LIBRARY = Library(
    nnx.Module, arrays, replaced, modules, assign, _LAYERS, _CONTAINERS, _BARE
)
