"""Structured pruning: channels of any JAX function, found, scored and really removed.

``channel_groups -> group_scores -> structured_mask -> shrink``.
"""

from jaxprune.structured._activations import compensate as compensate
from jaxprune.structured._activations import flap as flap
from jaxprune.structured._activations import minitron as minitron
from jaxprune.structured._depth import angular_distance as angular_distance
from jaxprune.structured._depth import block_influence as block_influence
from jaxprune.structured._depth import drop_blocks as drop_blocks
from jaxprune.structured._experts import reap as reap
from jaxprune.structured._files import load as load
from jaxprune.structured._files import save as save
from jaxprune.structured._groups import Frozen as Frozen
from jaxprune.structured._groups import Group as Group
from jaxprune.structured._groups import Groups as Groups
from jaxprune.structured._groups import Member as Member
from jaxprune.structured._groups import channel_groups as channel_groups
from jaxprune.structured._masks import structured_mask as structured_mask
from jaxprune.structured._modules import narrow_module as narrow_module
from jaxprune.structured._narrow import narrow as narrow
from jaxprune.structured._report import ChannelReport as ChannelReport
from jaxprune.structured._report import channel_report as channel_report
from jaxprune.structured._scores import group_scores as group_scores
from jaxprune.structured._scores import standardize as standardize
from jaxprune.structured._shrink import shrink as shrink
from jaxprune.structured._slices import slice_groups as slice_groups
