"""The README's Python runs, block after block, as a reader would paste it."""

import pathlib
import re

import jax
import jax.numpy as jnp

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_readmes_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        with jax.numpy_rank_promotion("allow"):  # As a reader's session has it.
            exec(compile(block, str(README), "exec"), names)
    assert "0.9" in capsys.readouterr().out
    assert int(jnp.sum(names["mask"]["w1"])) > 0
    assert int(jnp.sum(~names["params"]["w1"].astype(bool))) > 64 * 128  # Sparse.
    shapes = [aval.shape for aval in names["exported"].in_avals]
    assert (64, 8) in shapes and (8, 10) in shapes
    assert set(names["masks"]) == {"loss_preservation", "grasp"}
