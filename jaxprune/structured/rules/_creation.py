"""Rules of the primitives that create arrays: counters and random numbers."""

from jax.extend.core import JaxprEqn

from jaxprune.structured._labels import Value
from jaxprune.structured._trace import Trace, shape_of


def _created(trace: Trace, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Creates the array at full size: its values depend on their positions."""
    for value in values:
        for labels in value.labels:
            trace.labels.freeze(labels, f"it is an operand of {eqn.primitive.name}")
    weight = all(v.weight for v in values)
    return [trace.fresh(shape_of(o))._replace(weight=weight) for o in eqn.outvars]


RULES = {
    "create_token": _created,
    "iota": _created,
    "random_bits": _created,
    "random_fold_in": _created,
    "random_seed": _created,
    "random_split": _created,
    "random_unwrap": _created,
    "random_wrap": _created,
    "threefry2x32": _created,
}
