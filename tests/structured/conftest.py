"""The models here are users' models: they may broadcast ranks, as JAX allows."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _ranks_are_promoted():
    with jax.numpy_rank_promotion("allow"):
        yield
