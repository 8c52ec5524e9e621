"""Every primitive of the installed JAX has a rule, or is frozen on purpose."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive, primitives

import jaxprune as jp
from jaxprune.structured.rules import FROZEN, RULES

NAMES = {p.name for p in vars(primitives).values() if isinstance(p, Primitive)}


def test_every_primitive_has_a_rule_or_is_frozen_on_purpose():
    assert NAMES
    assert NAMES <= {*RULES, *FROZEN}


def test_no_frozen_primitive_has_a_rule():
    assert not FROZEN & {*RULES}


def tanh_by_hand(x):
    return 1 - jnp.square(jnp.tanh(x))


@pytest.mark.parametrize("function", [jnp.log2, tanh_by_hand, jax.lax.complex])
def test_functions_whose_primitives_some_versions_lack_are_followed(function):
    def apply(params, x):
        hidden = x @ params["w"]
        args = (hidden, hidden) if function is jax.lax.complex else (hidden,)
        return jnp.abs(function(*args)) * params["scale"]

    params = {"w": jnp.ones((3, 4)), "scale": jnp.ones(4), "v": jnp.ones((4, 2))}
    x = jax.ShapeDtypeStruct((5, 3), "float32")
    groups = jp.structured.channel_groups(lambda p, x: apply(p, x) @ p["v"], params, x)
    assert [group.size for group in groups] == [4]
    assert {member.path for member in groups[0].members} == {"w", "scale", "v"}


def test_a_frozen_primitive_freezes_and_says_so():
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
    x = jax.ShapeDtypeStruct((5, 3), "float32")

    def apply(params, x):
        return jnp.linalg.qr(x @ params["w"])[0] @ params["v"]

    groups = jp.structured.channel_groups(apply, params, x)
    assert not groups
    assert "the primitive qr has no rule" in str(groups)
