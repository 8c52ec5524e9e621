"""The Python of the README runs, block after block, as pasted.

The pages of ``docs/`` run when they are built.
"""

import pathlib
import re

import jax
import jax.numpy as jnp

import jaxprune as jp

ROOT = pathlib.Path(__file__).parent.parent


def run(page):
    """Runs a page's blocks, and returns their number and the names that they made."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        with jax.numpy_rank_promotion("allow"):  # As a reader's session has it.
            exec(compile(block, str(page), "exec"), names)
    return len(blocks), names


def test_the_readmes_code_runs(capsys):
    count, names = run(ROOT / "README.md")
    assert count == 7
    assert "0.9" in capsys.readouterr().out
    assert int(jnp.sum(names["mask"]["w1"])) > 0
    assert [leaf.shape for leaf in jax.tree.leaves(names["small_state"])][-1] == (8, 10)
    masked = jp.apply_mask(names["state"], names["channels"])
    wanted = names["apply_fn"](masked, names["batch"][0])
    assert jnp.allclose(names["logits"], wanted, atol=1e-5)
    kept = {n: int(jnp.sum(names["shuffled"][n])) for n in ("w1", "w2")}
    assert kept == {n: int(jnp.sum(names["mask"][n])) for n in ("w1", "w2")}
    assert sum(kept.values()) == 18944 - round(0.95 * 18944)
    rewound = jnp.where(names["mask"]["w1"], names["saved"]["w1"], 0)
    assert jnp.array_equal(names["ticket"]["w1"], rewound)
    assert int(jnp.sum(~names["params"]["w1"].astype(bool))) > 64 * 128  # Sparse.
    assert set(names["masks"]) == {"loss_preservation", "grasp"}
