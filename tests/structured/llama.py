"""A small Llama, in JAX and independently in NumPy, for what is read off activations.

Sizes come from shapes, so the same function runs narrower parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np

WIDTH, HEADS, SHARED, SIZE, HIDDEN, BLOCKS, WORDS = 6, 4, 2, 4, 10, 2, 11


def parameters(seed=0):
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return jnp.asarray(rng.normal(0, shape[0] ** -0.5, shape), jnp.float32)

    def scale():
        return jnp.asarray(rng.uniform(0.5, 1.5, WIDTH), jnp.float32)

    def block():
        return {
            "norm1": scale(),
            "q": matrix(WIDTH, HEADS * SIZE),
            "k": matrix(WIDTH, SHARED * SIZE),
            "v": matrix(WIDTH, SHARED * SIZE),
            "o": matrix(HEADS * SIZE, WIDTH),
            "norm2": scale(),
            "gate": matrix(WIDTH, HIDDEN),
            "up": matrix(WIDTH, HIDDEN),
            "down": matrix(HIDDEN, WIDTH),
        }

    return {
        "embed": matrix(WORDS, WIDTH) * 3,
        "blocks": [block() for _ in range(BLOCKS)],
        "norm": scale(),
        "head": matrix(WIDTH, WORDS),
    }


def batches(seed=0):
    """Two batches of tokens, of different sizes."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.integers(0, WORDS, shape)) for shape in ((3, 5), (2, 5))]


def _angles(xp, length):
    return xp.arange(length)[:, None] * 10.0 ** -xp.arange(SIZE // 2)


def _rotated(xp, x, angles):
    """Rotary positions of an array (batch, time, ..., SIZE)."""
    angles = angles.reshape(1, len(angles), *[1] * (x.ndim - 3), SIZE // 2)
    a, b = xp.split(x, 2, axis=-1)
    sin, cos = xp.sin(angles), xp.cos(angles)
    return xp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def _norm(xp, x, scale):
    return x / xp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def block_fn(block, x):
    h = _norm(jnp, x, block["norm1"])
    q, k, v = h @ block["q"], h @ block["k"], h @ block["v"]
    shared = k.shape[-1] // SIZE
    q = q.reshape(*q.shape[:2], shared, -1, SIZE)
    k, v = (y.reshape(*y.shape[:2], shared, SIZE) for y in (k, v))
    angles = _angles(jnp, x.shape[1])
    q, k = _rotated(jnp, q, angles), _rotated(jnp, k, angles)
    weights = jnp.einsum("bqgrd,bkgd->bgrqk", q, k) / SIZE**0.5
    causal = jnp.tri(x.shape[1], dtype=bool)
    weights = jax.nn.softmax(jnp.where(causal, weights, -jnp.inf))
    y = jnp.einsum("bgrqk,bkgd->bqgrd", weights, v)
    x = x + y.reshape(*y.shape[:2], -1) @ block["o"]
    h = _norm(jnp, x, block["norm2"])
    return x + (jax.nn.silu(h @ block["gate"]) * (h @ block["up"])) @ block["down"]


def apply_fn(params, tokens):
    x = params["embed"][tokens]
    for block in params["blocks"]:
        x = block_fn(block, x)
    return _norm(jnp, x, params["norm"]) @ params["head"]


def scan_fn(params, tokens):
    """The same, with blocks stacked along a leading axis."""
    x, _ = jax.lax.scan(
        lambda x, block: (block_fn(block, x), None),
        params["embed"][tokens],
        params["blocks"],
    )
    return _norm(jnp, x, params["norm"]) @ params["head"]


def stacked(blocks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def reference(params, tokens):
    """Logits and all that layers read, in NumPy and float64, head by head.

    Returned besides the logits is a list with, for every block, its input and what the
    first norm, the attention, the second norm and the MLP's neurons hand on; last, the
    input and the output of the last norm.
    """
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x, read = params["embed"][np.asarray(tokens)], []
    time = x.shape[1]
    angles = _angles(np, time)
    for block in params["blocks"]:
        entry = x
        first = _norm(np, x, block["norm1"])
        heads = []
        for head in range(HEADS):
            mine = slice(head * SIZE, (head + 1) * SIZE)
            theirs = head // (HEADS // SHARED)
            theirs = slice(theirs * SIZE, (theirs + 1) * SIZE)
            q = _rotated(np, first @ block["q"][:, mine], angles)
            k = _rotated(np, first @ block["k"][:, theirs], angles)
            weights = q @ np.swapaxes(k, 1, 2) / np.sqrt(SIZE)
            weights = np.where(np.tri(time, dtype=bool), np.exp(weights), 0)
            weights /= weights.sum(-1, keepdims=True)
            heads.append(weights @ (first @ block["v"][:, theirs]))
        attended = np.concatenate(heads, -1)
        x = x + attended @ block["o"]
        second = _norm(np, x, block["norm2"])
        gate = second @ block["gate"]
        neurons = gate / (1 + np.exp(-gate)) * (second @ block["up"])
        x = x + neurons @ block["down"]
        read.append((entry, first, attended, second, neurons))
    last = _norm(np, x, params["norm"])
    return last @ params["head"], [*read, (x, last)]
