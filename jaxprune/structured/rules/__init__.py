"""How labels travel through each primitive; one file per family of primitives.

A rule is ``rule(trace, eqn, values) -> values``: it joins, freezes and passes on the
labels of its operands, and returns what is known of its results.
"""

from jaxprune.structured.rules import (
    _contractions,
    _control,
    _creation,
    _data_movement,
    _derivatives,
    _elementwise,
    _indexing,
    _reductions,
    _reshape,
)
from jaxprune.structured.rules._frozen import FROZEN as FROZEN

RULES = {
    **_contractions.RULES,
    **_control.RULES,
    **_creation.RULES,
    **_data_movement.RULES,
    **_derivatives.RULES,
    **_elementwise.RULES,
    **_indexing.RULES,
    **_reductions.RULES,
    **_reshape.RULES,
}
