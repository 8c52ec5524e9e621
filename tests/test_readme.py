"""The README's Python runs and its links resolve; the table of methods is true.

The other pages of ``docs/`` run when they are built.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments import report

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
    assert count == 5
    assert "0.9" in capsys.readouterr().out
    kept = sum(int(jnp.sum(leaf)) for leaf in names["mask"].values())
    assert kept == 18944 - round(0.9 * 18944)
    weights, snip_mask = names["weights"], names["snip_mask"]
    assert float(jp.sparsity(snip_mask, weights)) == pytest.approx(0.9, abs=1e-3)
    assert float(jp.sparsity(names["start"], weights)) == pytest.approx(0.9, abs=1e-2)
    shapes = [leaf.shape for leaf in jax.tree.leaves(names["small_weights"])]
    assert shapes[-1] == (8, 10)
    masked = jp.apply_mask(weights, names["channels"])
    wanted = names["apply_fn"](masked, names["x"])
    assert jnp.allclose(names["logits"], wanted, atol=1e-5)


README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results"
TABLE = (ROOT / "docs" / "methods.md").read_text()
LINKS = re.findall(r"^\| \[`(\w+)`\]\((\S+)\)", TABLE, re.M)


def test_the_table_of_methods_is_written_from_the_results():
    assert LINKS
    assert report.filled(TABLE, RESULTS) == TABLE


def test_the_oldest_versions_are_the_lower_bounds_that_are_tested():
    script = ROOT / ".github" / "oldest.py"
    pins = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    ).stdout
    stated = re.search(r"Oldest versions.*?flax [\d.]+\d", README, re.DOTALL)[0]
    versions = dict(re.findall(r"(\w+) (\d[\d.]*\d)", stated))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f">={versions.pop('Python')}" == project["requires-python"]
    for pin in pins.split():
        name, version = pin.split("==")
        padded = version + ".0" * (2 - version.count("."))
        assert versions.pop(name) == padded
    assert not versions


REACHED = {"blocks": [0.84, 0.86]}  # Where it is not what was asked for.


@pytest.fixture
def folder(tmp_path):
    """Results of five experiments, of which one trained another network."""

    def write(name, model, *rows):
        data = {"name": name.split("_")[0]}
        same = {"epochs": 1, "seeds": 2, "batch_size": 4, "learning_rate": 0.1}
        found = {
            "name": name,
            "config": {"pruning": {}, "data": data, "model": {"name": model}, **same},
            "results": [
                {
                    "method": m,
                    "sparsity": s,
                    "sparsity_reached": REACHED.get(m, [s, s]),
                    "test_accuracy": a,
                    "pruning_seconds": t,
                    "variant": v,
                }
                for m, s, a, t, v in rows
            ],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))

    snip = ("snip", 0.9, [0.9, 0.8], 0.0123, "")
    write("digits", "a", ("snip", 0.9, [0.0, 0.0], 9.0, "shuffled"), snip)
    again = ("snip", 0.9, [0.1, 0.1], 0.0, "")
    write("digits_more", "a", again, ("sr_ste", 0.5, [0.5, 0.7], 0.0, ""))
    other = ("sr_ste", 0.9, [0.1, 0.1], 0.0, "")
    blocks = ("blocks", 0.9, [0.8, 0.8], 0.0, "")
    write("digits_blocks", "a", blocks)
    write("digits_other", "b", ("wanda", 0.9, [0.5, 0.5], 0.05, ""), other)
    write("drive_mnist", "c", ("snip", 0.98, [0.25, 0.25], 1.52, ""))
    return tmp_path


@pytest.mark.parametrize(
    "name, cells",
    {
        "snip": "85.0 ±7.1 | 25.0 ±0.0 | 12 ms / 1.5 s",
        "n_m_mask": "60.0 ±14.1 at 50 % | — | —",
        "wanda": "50.0 ±0.0 (b) | — | 50 ms / —",
        "block_mask": "80.0 ±0.0 at 85 % | — | —",
        "fisher": "— | — | —",
    }.items(),
)
def test_a_methods_cells_are_those_of_its_results(folder, name, cells):
    by_hand = f"| [`{name}`](a.py) | \\|θ\\| | a paper | "
    text = f"# Title\n\n{by_hand}1 | 2 | 3 |\nafter\n"
    filled = report.filled(text, folder).replace("\u00a0", " ")
    assert filled == f"# Title\n\n{by_hand}{cells} |\nafter\n"


@pytest.mark.parametrize("name, target", LINKS)
def test_a_methods_name_links_to_its_reference(name, target):
    assert target == f"#jaxprune.{name}"
    assert hasattr(jp, name)


def test_the_readmes_links_lead_somewhere():
    found = re.findall(r"\]\(([^)#]+)(#[^)]*)?\)", README)
    for path, anchor in found:
        if "://" not in path:
            assert (ROOT / path).exists(), path
            assert not anchor or anchor[1:] in headings(ROOT / path), anchor
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings(ROOT / "README.md"), anchor


def headings(page):
    """The anchors that a page's headings get."""
    found = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in found}
