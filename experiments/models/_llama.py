"""A Llama in plain JAX: functions of a dict of arrays, one block at a time.

``B`` denotes the batch, ``T`` the tokens, ``W`` the width. Parameters::

    embed [vocabulary, W]
    blocks, a list of
        attention_norm [W]
        q [W, heads * head_dim]    k, v [W, kv_heads * head_dim]
        o [heads * head_dim, W]
        mlp_norm [W]
        gate, up [W, hidden]       down [hidden, W]
    norm [W]
    head [W, vocabulary], unless it is the embedding, transposed

The numbers of heads and hidden units are read from the shapes, so that a block without
some of them runs as it is. Instead of a list, ``blocks`` may be one block whose arrays
are stacked along a leading axis.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp


class Llama(NamedTuple):
    """What the shapes of the parameters do not say.

    Attributes:
      head_dim: the size of an attention head.
      frequencies: radians per token of each pair that the rotary embedding rotates.
      eps: added to the mean square by the norms.
    """

    head_dim: int
    frequencies: tuple[float, ...]
    eps: float


class Cache(NamedTuple):
    """Keys and values of the tokens so far, ``[B, T, kv_heads, head_dim]``."""

    keys: jax.Array
    values: jax.Array


_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


def from_gguf(path: str | os.PathLike[str]) -> tuple[Llama, Any, dict[str, Any]]:
    """Reads a Llama from a GGUF file: the model, its parameters and the metadata.

    Raises:
      ValueError: if the file holds another kind of model.
    """
    found, metadata = jp.read_gguf(path)
    if metadata["general.architecture"] != "llama":
        raise ValueError(f"{path} holds a {metadata['general.architecture']}.")
    for index, block in enumerate(found["blk"]):
        other = {f"{k}.{leaf}" for k, v in block.items() for leaf in v}
        other ^= {f"{name}.weight" for name in _NAMES}
        if other:
            raise ValueError(
                f"Block {index} of {path} is not that of a plain Llama: it lacks or "
                f"adds {', '.join(sorted(other))}."
            )
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(f"{path} scales its rotary embedding, which is not supported.")
    width, heads = (
        metadata["llama.embedding_length"],
        metadata["llama.attention.head_count"],
    )
    head_dim = metadata.get("llama.attention.key_length", width // heads)
    base = metadata.get("llama.rope.freq_base", 10_000.0)
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if "rope_freqs" in found:
        frequencies /= np.asarray(found["rope_freqs"]["weight"])
    model = Llama(
        head_dim,
        tuple(frequencies.tolist()),
        metadata["llama.attention.layer_norm_rms_epsilon"],
    )
    params = {
        "embed": found["token_embd"]["weight"],
        "blocks": [
            {new: block[old]["weight"].T for old, new in _NAMES.items()}
            for block in found["blk"]
        ],
        "norm": found["output_norm"]["weight"],
    }
    if "output" in found:
        params["head"] = found["output"]["weight"].T
    return model, params, metadata


def embed(params: Any, tokens: jax.Array) -> jax.Array:
    """The hidden states ``[B, T, W]`` that the first block reads."""
    return params["embed"][tokens]


def block(model: Llama, weights: Any, hidden: jax.Array) -> jax.Array:
    """One block, from hidden states to hidden states, ``[B, T, W]``."""
    return _block(model, weights, hidden, None, jnp.int32(0))[0]


def head(model: Llama, params: Any, hidden: jax.Array) -> jax.Array:
    """The logits of the next tokens, from the hidden states after the last block."""
    hidden = _norm(hidden, params["norm"], model.eps)
    return hidden @ (params["head"] if "head" in params else params["embed"].T)


def run_blocks(model: Llama, blocks: Any, hidden: jax.Array) -> jax.Array:
    """All blocks; blocks of equal shapes compile once."""
    if isinstance(blocks, dict):
        return jax.lax.scan(lambda h, w: (block(model, w, h), None), hidden, blocks)[0]
    for weights in blocks:
        hidden = _jitted_block(model, weights, hidden)
    return hidden


_jitted_block = jax.jit(block, static_argnums=0)


def logits(model: Llama, params: Any, tokens: jax.Array) -> jax.Array:
    """The logits of the next tokens, ``[B, T, vocabulary]``, of tokens ``[B, T]``."""
    hidden = run_blocks(model, params["blocks"], embed(params, tokens))
    return head(model, params, hidden)


def perplexity(model: Llama, params: Any, batches: Iterable[jax.Array]) -> float:
    """The perplexity on batches of tokens ``[B, T]``, each sequence on its own."""
    losses = []
    for tokens in batches:
        hidden = run_blocks(model, params["blocks"], embed(params, tokens))
        ends = {name: leaf for name, leaf in params.items() if name != "blocks"}
        losses.append(_loss(model, ends, hidden, tokens))
    return float(jnp.exp(jnp.mean(jnp.stack(losses))))


@functools.partial(jax.jit, static_argnums=0)
def _loss(model: Llama, params: Any, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean loss of the next tokens; one sequence's logits at a time."""

    def of_sequence(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = jax.nn.log_softmax(head(model, params, args[0][:-1]))
        return -jnp.mean(jnp.take_along_axis(logits, args[1][1:, None], 1))

    return jnp.mean(jax.lax.map(of_sequence, (hidden, tokens)))


def generate(model: Llama, params: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Continues a prompt by ``count`` tokens, each the likeliest."""
    length = len(prompt) + count
    caches = [
        Cache(*(jnp.zeros((1, length, w[x].shape[1] // model.head_dim, model.head_dim))
                for x in "kv"))
        for w in params["blocks"]
    ]  # fmt: skip
    tokens = [jnp.full((1, 1), token) for token in prompt]
    ends = {name: leaf for name, leaf in params.items() if name != "blocks"}
    for position in range(length - 1):
        hidden = embed(params, tokens[position])
        for i, weights in enumerate(params["blocks"]):
            hidden, caches[i] = _jitted_step(
                model, weights, hidden, caches[i], jnp.int32(position)
            )
        if position + 1 >= len(prompt):
            tokens.append(_likeliest(model, ends, hidden))
    return [int(token[0, 0]) for token in tokens[len(prompt) :]]


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(model: Llama, params: Any, hidden: jax.Array) -> jax.Array:
    return jnp.argmax(head(model, params, hidden), -1)


def _block(
    model: Llama, weights: Any, hidden: jax.Array, cache: Cache | None, start: jax.Array
) -> tuple[jax.Array, Any]:
    """A block of the tokens from ``start``, after those in the cache."""
    x = _norm(hidden, weights["attention_norm"], model.eps)
    q, k, v = (_heads(model, x @ weights[name]) for name in "qkv")
    q, k = _rotate(model, q, start), _rotate(model, k, start)
    if cache is None:
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    else:
        at = (0, start, 0, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice(cache.keys, k, at),
            jax.lax.dynamic_update_slice(cache.values, v, at),
        )
        here = start + jnp.arange(q.shape[1])
        seen = jnp.arange(cache.keys.shape[1])[None] <= here[:, None]
        mixed = jax.nn.dot_product_attention(q, *cache, mask=seen[None, None])
    hidden = hidden + mixed.reshape(*x.shape[:2], -1) @ weights["o"]
    x = _norm(hidden, weights["mlp_norm"], model.eps)
    return hidden + _gated(weights, x) @ weights["down"], cache


_jitted_step = jax.jit(_block, static_argnums=0, donate_argnums=3)


def _gated(weights: Any, x: jax.Array) -> jax.Array:
    return jax.nn.silu(x @ weights["gate"]) * (x @ weights["up"])


def _heads(model: Llama, x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1, model.head_dim)


def _norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return jnp.broadcast_to(scale, x.shape) * (
        wide * jax.lax.rsqrt(square + eps)
    ).astype(x.dtype)


def _rotate(model: Llama, x: jax.Array, start: jax.Array) -> jax.Array:
    """Rotates the first half of every head against the second."""
    positions = (start + jnp.arange(x.shape[1])).astype(jnp.float32)
    angles = jnp.outer(positions, jnp.array(model.frequencies))[None, :, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
