r"""Predictions of the gradient flow, and measured changes.

With the weights :math:`P` removed, to first order

.. math:: \Delta L = -\theta_P^T g, \qquad \Delta |g|^2 = -2\,\theta_P^T (Hg)_P .
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy.stats

import jaxprune as jp


def predicted_changes(flow: jp.Flow, before: Any, after: Any) -> dict[str, float]:
    """The changes predicted for removing the weights that ``after`` lacks."""
    lost = [b & ~a for b, a in zip(_leaves(before), _leaves(after), strict=True)]

    def over_lost(tree: Any) -> float:
        parts = zip(_leaves(flow.params), _leaves(tree), lost, strict=True)
        return float(sum(np.sum(p * x, where=gone) for p, x, gone in parts))

    return {
        "loss": -over_lost(flow.gradient),
        "squared_gradient": -2 * over_lost(flow.hessian_gradient),
    }


def rates(flow: jp.Flow) -> dict[str, float]:
    """The total rates of change along the flow, and the norms that they change."""
    found = jp.flow_rates(flow)
    return {
        "squared_norm": float(sum(np.sum(p**2) for p in _leaves(flow.params))),
        "squared_gradient": -float(found.loss.total),
        "rate_of_squared_norm": float(found.squared_norm.total),
        "rate_of_squared_gradient": float(found.squared_gradient.total),  # pyright: ignore[reportOptionalMemberAccess]
    }


def correlations(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of every two scores of prunable weights."""
    flat = {name: _flat(tree) for name, tree in scores.items()}
    ranks = {name: scipy.stats.rankdata(x) for name, x in flat.items()}
    return {
        f"{a}, {b}": {
            "pearson": _correlation(flat[a], flat[b]),
            "spearman": _correlation(ranks[a], ranks[b]),
        }
        for a, b in itertools.combinations(flat, 2)
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def mask_distance(before: Any, after: Any) -> float:
    """The fraction of the prunable weights where two masks differ."""
    return float(np.mean(_flat(before) != _flat(after)))


def contribution_share(contribution: Any, before: Any, after: Any) -> float:
    """The mean contribution of removed weights, divided by the mean over all weights.

    It is 1 for a random choice, and below 1 for weights that contributed little.
    """
    there, left, given = _flat(before), _flat(after), _flat(contribution)
    lost = there & ~left
    if not lost.any() or not given[there].any():
        return float("nan")
    return float(given[lost].mean() / given[there].mean())


def logit_distance(logits: np.ndarray, reference: np.ndarray) -> float:
    """The distance between outputs and a reference, relative to the reference."""
    return float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))


def _leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _flat(tree: Any) -> np.ndarray:
    """The leaves that `jaxprune.matrices` prunes, end to end."""
    return np.concatenate([leaf.ravel() for leaf in _leaves(tree) if leaf.ndim >= 2])
