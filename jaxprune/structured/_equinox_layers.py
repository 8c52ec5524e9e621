"""The layers of Equinox, and how each follows from its narrowed arrays."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax

from jaxprune.core import _checks
from jaxprune.structured._layers import (
    Layer,
    Library,
    agree,
    array_at,
    heads_and_dims,
    hidden_size,
    kept_groups,
    lost,
    no_sizes,
    refusal,
    shape_at,
)


def arrays(model: Any) -> dict[str, Any]:
    """All arrays of a module, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {_checks.path_str(p): leaf for p, leaf in leaves if eqx.is_array_like(leaf)}


def replaced(model: Any, values: dict[str, Any]) -> Any:
    """A copy of a module, down to every submodule, that holds other arrays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(_checks.path_str(path), leaf), model
    )


def modules(model: Any) -> dict[str, Any]:
    """All modules of a module by path, itself as ""."""
    found = _modules(model, ())
    return {_checks.path_str(path) if path else "": module for path, module in found}


def _modules(module: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    yield path, module
    for below, node in jax.tree_util.tree_leaves_with_path(
        module, is_leaf=lambda n: isinstance(n, eqx.Module) and n is not module
    ):
        if isinstance(node, eqx.Module):
            yield from _modules(node, (*path, *below))


def assign(module: Any, attribute: str, value: Any) -> None:
    """Sets an attribute of a copied module, or of a submodule.

    Modules are frozen, and static fields are no leaves, which leaves this way to set
    them; Equinox rebuilds its modules in the same way.
    """
    *parents, name = attribute.split("/")
    owner = array_at(module, "/".join(parents)) if parents else module
    object.__setattr__(owner, name, value)


def _linear(layer: Layer) -> dict[str, Any]:
    outputs, inputs = shape_at(layer, "weight")[-2:]
    agree(layer, outputs, "bias")
    sizes = {"in_features": inputs, "out_features": outputs}
    return {
        name: n for name, n in sizes.items() if getattr(layer.module, name) != "scalar"
    }


def _conv(layer: Layer) -> dict[str, Any]:
    old = layer.module
    outputs, inputs = shape_at(layer, "weight")[-2 - old.num_spatial_dims :][:2]
    groups = old.groups
    if groups > 1:  # Whole groups went.
        groups = outputs * groups // old.out_channels
    agree(layer, outputs, "bias", axis=-1 - old.num_spatial_dims)
    return {
        "in_channels": inputs * groups,
        "out_channels": outputs,
        "groups": groups,
    }


def _embedding(layer: Layer) -> dict[str, Any]:
    rows, features = shape_at(layer, "weight")[-2:]
    return {"num_embeddings": rows, "embedding_size": features}


def _norm(layer: Layer) -> dict[str, Any]:
    rank = len(layer.module.shape)
    return {
        "shape": tuple(
            agree(layer, None, "weight", "bias", axis=axis) for axis in range(-rank, 0)
        )
    }


def _group_norm(layer: Layer) -> dict[str, Any]:
    size = agree(layer, None, "weight", "bias")
    groups = kept_groups(layer, lost(layer, "weight", -1), layer.module.groups)
    return {"channels": size, "groups": groups}


def _cell(layer: Layer, gates: int) -> dict[str, Any]:
    produced = [("weight_ih", -2), ("weight_hh", -2), ("bias", -1)]
    read = [("weight_hh", -1), ("bias_n", -1)]
    size = hidden_size(layer, gates, produced, read)
    return {"input_size": shape_at(layer, "weight_ih")[-1], "hidden_size": size}


def _mlp(layer: Layer) -> dict[str, Any]:
    shapes = [linear.weight.shape[-2:] for linear in layer.module.layers]
    (*widths, outputs), inputs = [shape[0] for shape in shapes], shapes[0][1]
    if len(set(widths)) > 1:
        raise refusal(
            layer,
            f"its hidden layers keep {widths} features, but it has one width_size",
            'give all the same size with structured_mask(scope="group")',
        )
    sizes = {"in_size": inputs, "out_size": outputs}
    found = {
        name: n for name, n in sizes.items() if getattr(layer.module, name) != "scalar"
    }
    return {**found, **({"width_size": widths[0]} if widths else {})}


def _attention(layer: Layer) -> dict[str, Any]:
    old = layer.module
    places = {"query": -2, "key": -2, "value": -2, "output": -1}
    cut = {
        part: heads_and_dims(layer, f"{part}_proj/weight", axis, old.num_heads)
        for part, axis in places.items()
    }
    pairs = ("query", "key"), ("query", "value"), ("value", "output")
    if any((cut[a][0] != cut[b][0]).any() for a, b in pairs):
        raise refusal(layer, "its projections lose different heads")
    qk_size, vo_size = (int((~cut[part][1]).sum()) for part in ("query", "value"))
    # It divides by the root of the new qk_size, where the masked module does by the
    # root of the old one: the queries make up for it.
    scale = math.sqrt(qk_size / old.qk_size)
    parts = ("query_proj/weight", "query_proj/bias") if scale != 1 else ()
    found = {part: array_at(old, part) for part in parts}
    outputs = shape_at(layer, "output_proj/weight")[-2]
    inputs = {
        f"{part}_size": shape_at(layer, f"{part}_proj/weight")[-1]
        for part in ("query", "key", "value")
    }
    return {
        **{part: v * scale for part, v in found.items() if v is not None},
        **inputs,
        "num_heads": int((~cut["query"][0]).sum()),
        "qk_size": qk_size,
        "vo_size": vo_size,
        "output_size": outputs,
    }


def _unless_affine(norm: Any, *sizes: int) -> tuple[int, ...]:
    return sizes if norm.weight is None and norm.bias is None else ()


_LAYERS = {
    eqx.nn.Conv: _conv,
    eqx.nn.Conv1d: _conv,
    eqx.nn.Conv2d: _conv,
    eqx.nn.Conv3d: _conv,
    eqx.nn.ConvTranspose: _conv,
    eqx.nn.ConvTranspose1d: _conv,
    eqx.nn.ConvTranspose2d: _conv,
    eqx.nn.ConvTranspose3d: _conv,
    eqx.nn.Embedding: _embedding,
    eqx.nn.GRUCell: functools.partial(_cell, gates=3),
    eqx.nn.GroupNorm: _group_norm,
    eqx.nn.LSTMCell: functools.partial(_cell, gates=4),
    eqx.nn.LayerNorm: _norm,
    eqx.nn.Linear: _linear,
    eqx.nn.MLP: _mlp,
    eqx.nn.MultiheadAttention: _attention,
    eqx.nn.PReLU: no_sizes,
    eqx.nn.RMSNorm: _norm,
}
_CONTAINERS = (eqx.nn.Sequential,)
_BARE = {
    eqx.nn.BatchNorm: lambda norm: _unless_affine(norm, norm.input_size),
    eqx.nn.GroupNorm: lambda norm: _unless_affine(norm, norm.groups),
    eqx.nn.LayerNorm: lambda norm: _unless_affine(norm, *norm.shape),
    eqx.nn.RMSNorm: lambda norm: _unless_affine(norm, *norm.shape),
    eqx.nn.RotaryPositionalEmbedding: lambda rope: (rope.embedding_size,),
}

LIBRARY = Library(
    eqx.Module, arrays, replaced, modules, assign, _LAYERS, _CONTAINERS, _BARE
)
