"""The peer: Torch-Pruning on the PyTorch twins. Needs the extra ``benchmarks``."""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch  # pyright: ignore[reportMissingImports]
import torch_pruning as tp  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks._torch_models import Attention, build
from experiments.config import Model


class Pruned(NamedTuple):
    """A network that Torch-Pruning has pruned.

    Attributes:
      params: its number of parameters.
      dense: runs the network before pruning on one batch.
      small: runs it after.
    """

    params: int
    dense: Callable[[], Any]
    small: Callable[[], Any]


def prune(config: Model, side: int, batch_size: int, sparsity: float) -> Pruned:
    """Prunes by magnitude, as large a part of every layer."""
    model, images = build(config, side), torch.randn(batch_size, 3, side, side)
    small: Any = copy.deepcopy(model)
    heads: dict[nn.Module, int] = {
        layer: module.heads
        for module in small.modules()
        if isinstance(module, Attention)
        for layer in (module.query, module.key, module.value)
    }
    pruner = tp.pruner.BasePruner(
        small,
        images[:1],
        tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[small.output],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=sparsity,
        unwrapped_parameters=_unwrapped(small),
    )
    pruner.step()
    params = sum(leaf.numel() for leaf in small.parameters())
    return Pruned(params, _runner(model, images), _runner(small, images))


def graph_seconds(config: Model, side: int) -> float:
    """Times the building of the dependency graph, tracing included."""
    model, images = build(config, side), torch.randn(1, 3, side, side)
    started = time.perf_counter()
    tp.DependencyGraph().build_dependency(
        model, images, unwrapped_parameters=_unwrapped(model)
    )
    return time.perf_counter() - started


def parameters(config: Model, side: int) -> int:
    """Counts the parameters of the twin before pruning."""
    return sum(leaf.numel() for leaf in build(config, side).parameters())


def _unwrapped(model: Any) -> Any:
    """The parameters in no layer, as pairs with the axis of their channels."""
    return [(model.positions, 2)] if hasattr(model, "positions") else []


def _runner(model: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(images)

    return run
