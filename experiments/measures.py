"""The measures of Lubana & Dick by name: scores of single weights, and of filters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from jaxprune import measures


class Evidence(NamedTuple):
    """The input of a measure; trees are like the parameters."""

    flow: jp.Flow  # The gradient flow of the training loss, of order 2.
    grasp_flow: jp.Flow  # At GraSP's temperature.
    unit_flow: jp.Flow  # At temperature 1.
    origin: Any  # The initial parameters.
    tracked: Any  # The moving average of the biased loss over the last minibatches.
    key: jax.Array


class Measure(NamedTuple):
    """A measure at both levels; larger scores stay."""

    weights: Callable[[Evidence], Any]
    filters: Callable[[Evidence, Sequence[Any]], Sequence[Any]]  # An array a group.
    scope: str = "global"  # "group": each group loses the same fraction.
    has_weights: bool = True  # Whether it can prune single weights.


def _reduced(
    weights: Callable[[Evidence], Any],
    *,
    filters: Callable[[Evidence], Any] | None = None,
    reduce: str = "sum",
) -> Measure:
    """Scores a filter by a reduction over the scores of its weights."""

    def of_filters(evidence: Evidence, groups: Sequence[Any]) -> Sequence[Any]:
        scores = (filters or weights)(evidence)
        return jp.structured.group_scores(scores, groups, reduce=reduce)

    return Measure(weights, of_filters)


def _random_filters(evidence: Evidence, groups: Sequence[Any]) -> Sequence[Any]:
    keys = jax.random.split(evidence.key, len(groups))
    pairs = zip(keys, groups, strict=True)
    return [jax.random.normal(key, (group.size,)) for key, group in pairs]


def _random_weights(evidence: Evidence) -> Any:
    return jp.random(evidence.key)(evidence.flow.params)


def _scales(evidence: Evidence) -> Any:
    """The size of every BatchNorm scale, 0 elsewhere."""
    scales = jp.by_path(r"norm/scale")(evidence.flow.params)
    return jax.tree.map(
        lambda p, is_norm: jnp.abs(p) if is_norm else jnp.zeros_like(p),
        evidence.flow.params,
        scales,
    )


def _filter_scales(evidence: Evidence, groups: Sequence[Any]) -> Sequence[Any]:
    return jp.structured.group_scores(_scales(evidence), groups, members="all")


MEASURES: dict[str, Measure] = {
    "magnitude": _reduced(lambda e: measures.magnitude(e.flow), reduce="l2"),
    "loss_preservation": _reduced(lambda e: measures.loss_preservation(e.flow)),
    "biased_loss": _reduced(lambda e: measures.biased_loss(e.flow)),
    "biased_loss_from_start": _reduced(
        lambda e: measures.biased_loss(e.flow, origin=e.origin)
    ),
    "biased_loss_tracked": _reduced(lambda e: e.tracked),
    "grasp": _reduced(lambda e: measures.grasp(e.grasp_flow)),
    "gradient_preservation": _reduced(
        lambda e: measures.gradient_preservation(e.unit_flow),
        filters=lambda e: measures.grasp(e.unit_flow),
        reduce="abs_sum",
    ),
    "taylor": _reduced(
        lambda e: measures.loss_preservation(e.flow),
        filters=lambda e: measures.taylor(e.flow),
        reduce="abs_sum",
    ),
    "fisher": _reduced(lambda e: measures.fisher(e.flow)),
    "l1": _reduced(lambda e: measures.magnitude(e.flow)),
    "bn_scale": Measure(_scales, _filter_scales, has_weights=False),
    "random": Measure(_random_weights, _random_filters),
    "uniform": Measure(_random_weights, _random_filters, scope="group"),
}
