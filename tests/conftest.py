"""Eight fake devices, quick compilation, strict ranks, trace counts reset per test."""

import os

from tests.flags import xla_flags

os.environ["XLA_FLAGS"] = xla_flags()

import chex
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _clear_trace_counter():
    chex.clear_trace_counter()
