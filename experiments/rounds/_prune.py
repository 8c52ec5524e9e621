"""One pruning: what is scored, what goes, and what that was predicted to change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments.config import Rounds
from experiments.data import Dataset, Split
from experiments.models import Network
from experiments.rounds import _diagnostics
from experiments.rounds._measures import CRITERIA, Evidence
from experiments.rounds._train import State, Trainer


class Row(NamedTuple):
    """A row of the results: what is pruned by what, how much, in how many rounds."""

    measure: str
    level: str
    fraction: float
    rounds: int

    def file(self, seed: int) -> str:
        """The name of the file of one run."""
        return (
            f"{self.measure}-{self.level}-{self.fraction:g}-{self.rounds}-{seed}.json"
        )


DENSE = Row("dense", "weights", 0.0, 0)


class Lab(NamedTuple):
    """What all runs of one seed share; the state is that after the first epoch."""

    config: Rounds
    dataset: Dataset
    network: Network
    train: Trainer
    groups: Any
    scored: Split
    origin: Any
    state: State
    loss: float
    epoch_keys: jax.Array
    score_keys: jax.Array


def gather_evidence(lab: Lab, state: State, key: jax.Array) -> Evidence:
    at = (lab.config.temperature, lab.config.grasp_temperature, 1.0)
    flows = [lab.train.flow(state, lab.scored, temperature) for temperature in at]
    return Evidence(*flows, lab.origin, state.tracked, key)  # pyright: ignore[reportCallIssue]


def prune(
    lab: Lab, row: Row, done: int, evidence: Evidence, mask: Any, count: int | None
) -> Any:
    """The mask after ``done`` rounds, inside the mask so far."""
    criterion = CRITERIA[row.measure]
    fraction = float(jp.hyperbolic_schedule(row.fraction, row.rounds)(done))
    if row.level == "weights":
        if count is not None:  # As many parameters in all as the filters have left.
            sizes = _sizes(lab.origin)
            fraction = (sum(sizes.values()) - count) / sizes[True]
        return jp.global_mask(criterion.weights(evidence), fraction, prior=mask)
    kept = jax.tree.map(jnp.float32, mask)
    scores = [
        jnp.where(left > 0, score, -jnp.inf)  # What is gone goes first.
        for score, left in zip(
            criterion.filters(evidence, lab.groups),
            jp.structured.group_scores(kept, lab.groups),
            strict=True,
        )
    ]
    return jp.structured.structured_mask(
        scores,
        lab.groups,
        lab.origin,
        fraction,
        scope=criterion.scope,
        min_keep=lab.config.min_keep,
    )


def describe_prune(
    lab: Lab, before: State, after: State, evidence: Evidence, old: Any, new: Any
) -> dict[str, Any]:
    """What a pruning was predicted to change, and what it changed."""
    train, temperature = lab.train, lab.config.temperature
    flow = train.flow(after, lab.scored, temperature)
    losses = [train.look(state, lab.scored).loss for state in (before, after)]
    squares = [_diagnostics.rates(f)["squared_gradient"] for f in (evidence.flow, flow)]
    return {
        "parameters": int(sum(m.sum() for m in jax.tree.leaves(new))),
        "loss": losses,
        "squared_gradient": squares,
        "predicted": _diagnostics.predicted_changes(evidence.flow, old, new),
        "distance": _diagnostics.mask_distance(old, new),
        "contribution_share": _diagnostics.contribution_share(
            before.contribution, old, new
        ),
    }


def compare_measures(
    lab: Lab, evidence: Evidence, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How alike the measures are, and how far their masks moved since ``before``."""
    whole = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), lab.origin)
    masks = {
        name: prune(
            lab,
            Row(name, "filters", max(lab.config.fractions), 1),
            1,
            evidence,
            whole,
            None,
        )
        for name in lab.config.measures
    }
    scores = {
        name: CRITERIA[name].weights(evidence)
        for name in lab.config.measures
        if CRITERIA[name].has_weights
    }
    found = {
        "correlations": _diagnostics.correlations(scores),
        "mask_distance": {
            name: _diagnostics.mask_distance(before[name], mask)
            for name, mask in masks.items()
            if name in before
        },
    }
    return found, masks


def _sizes(params: Any) -> dict[bool, int]:
    """How many parameters are prunable, and how many are not."""
    sizes = {True: 0, False: 0}
    flags = jax.tree.leaves(jp.matrices(params))
    for leaf, flag in zip(jax.tree.leaves(params), flags, strict=True):
        sizes[flag] += leaf.size
    return sizes
