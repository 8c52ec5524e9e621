"""Prints pip constraints that pin jax, optax, chex and flax to their lower bounds.

Run: python .github/oldest.py > oldest.txt
"""

import pathlib
import re
import tomllib

PINNED = {"jax", "optax", "chex", "flax"}

if __name__ == "__main__":
    path = pathlib.Path(__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["experiments"]
    for requirement in asked:
        found = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement)
        if found and found[1] in PINNED:
            print(f"{found[1]}=={found[2]}")  # 0.10 means 0.10.0.
