"""What a mask makes of the channels: a table for a reader."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.structured._groups import Group
from jaxprune.structured._narrow import channels_removed


def channel_report(mask: Any, groups: Sequence[Group]) -> "ChannelReport":
    """Counts, group by group, the channels that a mask keeps.

    Args:
      mask: a concrete tree of bool like the parameters, True = kept.
      groups: the groups, from `channel_groups`.

    Returns:
      A `ChannelReport`: printed, a table with what was reached.

    Raises:
      TypeError: if ``mask`` is not bool, or has no values.
      ValueError: if ``mask`` lacks a member of a group.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune as jp
      >>> def apply_fn(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"v": jnp.ones((4, 1)), "w": jnp.ones((2, 4))}
      >>> groups = jp.structured.channel_groups(apply_fn, params, jnp.ones((10, 2)))
      >>> scores = jp.structured.group_scores(params, groups)
      >>> mask = jp.structured.structured_mask(scores, groups, params, 0.75)
      >>> print(jp.structured.channel_report(mask, groups))
      group  kept  of  removed
      w         1   4   75.0 %
      all       1   4   75.0 %
    """
    gone = channels_removed(mask, groups)
    rows = tuple(
        ChannelCount(group.name, int(np.sum(~removed)), group.size)
        for group, removed in zip(groups, gone, strict=True)
    )
    return ChannelReport(
        rows, ChannelCount("all", sum(r.kept for r in rows), sum(r.size for r in rows))
    )


class ChannelCount(NamedTuple):
    """How many channels of a group are kept, of how many."""

    name: str
    kept: int
    size: int


class ChannelReport(NamedTuple):
    """What a mask keeps of the channels: ``print`` it, or read it as data.

    Attributes:
      groups: a `ChannelCount` for every group.
      total: the counts of all groups together.
    """

    groups: tuple[ChannelCount, ...]
    total: ChannelCount

    def __str__(self) -> str:
        """Writes the table."""
        lines = [("group", "kept", "of", "removed")]
        for name, kept, size in [*self.groups, self.total]:
            gone = 1 - kept / size if size else 0.0
            lines.append(
                (name, f"{kept:,}", f"{size:,}", f"{gone:.1%}".replace("%", " %"))
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0])]
                + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
            )
            for line in lines
        )
