"""A table of the channels that a mask keeps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._types import Real
from jaxprune.core import _checks, _tables
from jaxprune.structured._groups import Group
from jaxprune.structured._narrow import channels_removed


def channel_report(
    mask: Any, groups: Sequence[Group], *, asked: Real | None = None
) -> "ChannelReport":
    """Counts the channels of each group, and the parameters, that a mask keeps.

    For FLOPs, call `cost` on the function that `shrink` returns.

    Args:
      mask: a concrete tree of bool like the parameters, True = kept.
      groups: the groups, from `channel_groups`.
      asked: the sparsity that was passed to `structured_mask`, in [0, 1), to show next
        to the one that was reached.

    Returns:
      A `ChannelReport`, which prints as a table.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values.
      ValueError: if ``mask`` lacks a member of a group, or ``asked`` is outside [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 1)), "w": jnp.ones((2, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 2)))
      >>> scores = jp.structured.group_scores(params, groups)
      >>> mask = jp.structured.structured_mask(scores, groups, params, 0.75)
      >>> print(jp.structured.channel_report(mask, groups, asked=0.75))
      group       kept  of  removed
      w              1   4   75.0 %
      all            1   4   75.0 %
      parameters     3  12   75.0 %
      asked                  75.0 %
    """
    if asked is not None:
        _checks.check_sparsity(asked, "asked")
    gone = channels_removed(mask, groups)
    rows = tuple(
        ChannelCount(group.name, int(np.sum(~removed)), group.size)
        for group, removed in zip(groups, gone, strict=True)
    )
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(mask)]
    entries = sum(int(leaf.sum()) for leaf in leaves), sum(leaf.size for leaf in leaves)
    return ChannelReport(
        rows,
        ChannelCount("all", sum(r.kept for r in rows), sum(r.size for r in rows)),
        ChannelCount("parameters", *entries),
        None if asked is None else float(asked),
    )


class ChannelCount(NamedTuple):
    """The number of kept channels of a group, or of kept entries, and the total."""

    name: str
    kept: int
    size: int


class ChannelReport(NamedTuple):
    """The channels and parameters that a mask keeps, as data; prints as a table.

    Attributes:
      groups: a `ChannelCount` for every group.
      total: the counts of all groups together.
      parameters: the counts of the entries of all leaves.
      asked: the sparsity that was passed to `channel_report`, if any.
    """

    groups: tuple[ChannelCount, ...]
    total: ChannelCount
    parameters: ChannelCount
    asked: float | None

    def __repr__(self) -> str:
        """Writes the table."""
        return "\n".join(_tables.as_text(self._lines()))

    def _repr_html_(self) -> str:
        """Writes the table as HTML, for notebooks."""
        totals = 2 if self.asked is None else 3
        return _tables.as_html(self._lines(), totals=totals)

    def _lines(self) -> list[tuple[str, ...]]:
        lines = [("group", "kept", "of", "removed")]
        for name, kept, size in [*self.groups, self.total, self.parameters]:
            gone = 1 - kept / size if size else 0.0
            lines.append((name, f"{kept:,}", f"{size:,}", _percent(gone)))
        if self.asked is not None:
            lines.append(("asked", "", "", _percent(self.asked)))
        return lines


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}".replace("%", " %")
