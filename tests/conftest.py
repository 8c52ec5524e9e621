"""Eight fake devices, quick compilation, strict ranks, trace counts reset per test."""

import os

from tests.flags import xla_flags

os.environ["XLA_FLAGS"] = xla_flags()

import chex
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _clear_trace_counter():
    chex.clear_trace_counter()


@pytest.fixture
def no_type_checker():
    """Users do not run it: what they get wrong must reach the library's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
