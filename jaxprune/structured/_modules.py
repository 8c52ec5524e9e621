"""Flax NNX modules at their narrowed sizes: the layers stay layers.

Each kind of layer that can be narrowed has a line in `_resizers`, which reads its sizes
off its arrays. Whatever has none is refused: the code of another module may depend on
its sizes in ways that no attribute tells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.core import _checks
from jaxprune.structured._groups import Group
from jaxprune.structured._narrow import removed_positions, without_removed

_REFUSED = "Use shrink, which replays the model's function, or protect its group."


def narrow_module(model: Any, mask: Any, groups: Sequence[Group]) -> Any:
    """Removes channels from a Flax NNX module, layer by layer.

    The copy has the same layers with fewer features each: arrays are narrowed as in
    `shrink`, and the layers' numbers (``out_features``, ``num_features``, ...) follow.
    Norms mean over what they are given, so the module computes what ``shrink(...,
    mean_width="new")`` does. Code of your own that names a width (a reshape to 32 * 49)
    is not seen: compare the outputs once with those of `shrink`.

    Linear, Conv (grouped ones lose whole groups), ConvTranspose, Embed, BatchNorm,
    LayerNorm, RMSNorm, GroupNorm (whole groups) and InstanceNorm can be narrowed.

    Args:
      model: an ``nnx.Module``; it is left as it is.
      mask: a concrete tree of bool, True = kept, like the model's state or a part of
        it.
      groups: the groups, found for that state: ``nnx.split(model)[1]``, running
        statistics included, as a State or as a pure dict.

    Returns:
      A narrowed copy of the module.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values; or if a narrowed array
        belongs to a module of another kind (attention, whose scale and heads depend on
        its width), naming it.
      ValueError: if ``mask`` removes all channels of a group or has a leaf that the
        model lacks, or if a layer's arrays do not all become narrower (running
        statistics that the groups were found without), naming it.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> from flax import nnx
      >>> up, down = (nnx.Linear(*n, rngs=nnx.Rngs(0)) for n in ((8, 4), (4, 2)))
      >>> model, x = nnx.Sequential(up, nnx.relu, down), jnp.ones((10, 8))
      >>> graphdef, state = nnx.split(model)
      >>> def apply_fn(state, x):
      ...     return nnx.merge(graphdef, state, copy=True)(x)
      >>> groups = jp.structured.channel_groups(apply_fn, state, x)
      >>> scores = jp.structured.group_scores(jp.magnitude(state), groups)
      >>> mask = jp.structured.structured_mask(scores, groups, state, 0.5)
      >>> small = jp.structured.narrow_module(model, mask, groups)
      >>> small.layers[0].out_features, small(x).shape
      (2, (10, 2))
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be an nnx.Module; got {_checks.described(model)}. A function "
            "and its parameters are for shrink, a tree of parameters for narrow."
        )
    small = nnx.clone(model)
    variables = dict(nnx.to_flat_state(nnx.state(small)))
    names = {"/".join(map(str, path)): path for path in variables}
    removed = removed_positions(mask, mask, groups)
    masks = dict(zip(_checks.leaf_paths(mask), jax.tree.leaves(mask), strict=True))
    owners = {path: _variable(path, names) for path in masks}
    values = {path: _value(variables[owner]) for path, owner in owners.items()}
    _checks.check_mask(masks, values)
    found = without_removed(values, masks, removed)
    new = [(owners[p], _with(variables[owners[p]], found[p])) for p in found]
    nnx.update(small, nnx.from_flat_state(new))

    resizers = _resizers(nnx)
    narrowed = {owners[path][:-1]: gone for (path, _), gone in removed.items()}
    for path, module in nnx.iter_modules(small):
        if path in narrowed:
            name = "/".join(map(str, path)) or "(root)"
            if type(module) not in resizers:
                raise TypeError(
                    f"{name} is a {type(module).__name__}, of which narrow_module does "
                    f"not know what depends on its width. {_REFUSED}"
                )
            resizers[type(module)](name, module, narrowed[path])
    return small


def _variable(path: str, names: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The model's variable that a leaf of its state or of its pure dict is."""
    for name in (path, path.removesuffix("/value")):
        if name in names:
            return names[name]
    raise ValueError(
        f"The mask has a leaf {path}, but the model has no such variable. Find groups "
        "and mask for the model's own state, nnx.split(model)[1]."
    )


def _value(leaf: Any) -> Any:
    """What a variable holds; a plain array is held as it is."""
    return leaf.get_value() if hasattr(leaf, "get_value") else leaf


def _with(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if hasattr(leaf, "get_value") else value


def _resizers(nnx: Any) -> dict[type, Callable[[str, Any, np.ndarray], None]]:
    return {
        nnx.Linear: _linear,
        nnx.Conv: _conv,
        nnx.ConvTranspose: _conv_transpose,
        nnx.Embed: _embed,
        nnx.BatchNorm: _norm,
        nnx.LayerNorm: _norm,
        nnx.RMSNorm: _norm,
        nnx.InstanceNorm: _norm,
        nnx.GroupNorm: _group_norm,
    }


def _linear(name: str, layer: Any, gone: np.ndarray) -> None:
    del gone
    layer.in_features, layer.out_features = layer.kernel.shape[-2:]
    _agree(name, layer, layer.out_features, "bias")


def _conv(name: str, layer: Any, gone: np.ndarray) -> None:
    del gone
    groups, old = layer.feature_group_count, layer.out_features
    layer.kernel_shape = layer.kernel.shape[-len(layer.kernel_shape) :]
    inputs, layer.out_features = layer.kernel_shape[-2:]
    if groups > 1:  # Whole groups went.
        groups = layer.out_features * groups // old
    layer.feature_group_count, layer.in_features = groups, inputs * groups
    _agree(name, layer, layer.out_features, "bias")


def _conv_transpose(name: str, layer: Any, gone: np.ndarray) -> None:
    del gone
    layer.kernel_shape = layer.kernel.shape[-len(layer.kernel_shape) :]
    features = layer.kernel_shape[-2:]
    layer.in_features, layer.out_features = (
        features[::-1] if layer.transpose_kernel else features
    )
    _agree(name, layer, layer.out_features, "bias")


def _embed(name: str, layer: Any, gone: np.ndarray) -> None:
    del name, gone
    layer.num_embeddings, layer.features = layer.embedding.shape[-2:]


def _norm(name: str, layer: Any, gone: np.ndarray) -> None:
    del gone
    parts = "scale", "bias", "mean", "var"
    layer.num_features = _agree(name, layer, None, *parts)


def _group_norm(name: str, layer: Any, gone: np.ndarray) -> None:
    size = _agree(name, layer, None, "scale", "bias")
    groups = gone.reshape(layer.num_groups, layer.group_size)
    if (groups.any(1) != groups.all(1)).any():
        raise TypeError(
            f"{name} is a GroupNorm that keeps {size} channels, but not whole groups "
            f"of {layer.group_size}. {_REFUSED}"
        )
    layer.num_groups = size // layer.group_size


def _agree(name: str, layer: Any, size: int | None, *parts: str) -> int:
    """The one size of the parts that a layer has; raises if they differ."""
    for part in parts:
        array = getattr(layer, part, None)
        if array is None:
            continue
        size = array.shape[-1] if size is None else size
        if array.shape[-1] != size:
            raise ValueError(
                f"{name}: its {part} has {array.shape[-1]} channels, but the layer now "
                f"has {size}. Find the groups for the model's whole state, "
                "nnx.split(model)[1], so that all of its arrays are narrowed."
            )
    assert size is not None  # The layer was narrowed, so it has one of the parts.
    return size
