"""A tiny Llama in JAX and NumPy: RMSNorm, rotary positions, grouped queries, SwiGLU.

Kernels of the attention are [inputs, heads, head_dim] and [heads, head_dim, outputs].
"""

import jax
import jax.numpy as jnp
import numpy as np

WIDTH, HEADS, KEY_HEADS, HEAD, HIDDEN, VOCABULARY = 8, 4, 2, 4, 12, 11
LAYERS = 3
SHAPES = {
    "query": (WIDTH, HEADS, HEAD),
    "key": (WIDTH, KEY_HEADS, HEAD),
    "value": (WIDTH, KEY_HEADS, HEAD),
    "out": (HEADS, HEAD, WIDTH),
    "gate": (WIDTH, HIDDEN),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}
SCALES = ("norm_attention", "norm_mlp")
INPUTS = {name: (0, 1) if name == "out" else (0,) for name in SHAPES}
WIDTHS = {name: HEADS * HEAD if name == "out" else SHAPES[name][0] for name in SHAPES}


def init(seed=0, layers=LAYERS):
    """Random parameters: a stack of blocks, an embedding that is the head too."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    blocks = {n: draw(layers, *s) / WIDTHS[n] ** 0.5 for n, s in SHAPES.items()}
    blocks |= {n: 1 + 0.1 * draw(layers, WIDTH) for n in SCALES}
    norm = 1 + 0.1 * draw(WIDTH)
    return {"embed": draw(VOCABULARY, WIDTH), "blocks": blocks, "norm": norm}


def unstacked(blocks):
    """The blocks as a list."""
    count = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(count)]


def rotary(tokens):
    """Cosines and sines, (tokens, 1, head_dim / 2)."""
    angles = np.arange(tokens)[:, None] * 100.0 ** (-np.arange(HEAD // 2) / HEAD)
    return np.cos(angles)[:, None], np.sin(angles)[:, None]


def rms_norm(x, scale):
    """Normalizes the last axis."""
    size = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x / jnp.sqrt(size + 1e-6)).astype(x.dtype) * scale[None, None]


def block_fn(block, x):
    """One block on hidden states (batch, tokens, width)."""
    groups = HEADS // KEY_HEADS
    cos, sin = (jnp.asarray(t, x.dtype)[None] for t in rotary(x.shape[1]))

    def rotate(y):
        a, b = jnp.split(y, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    y = rms_norm(x, block["norm_attention"])
    q, k, v = (
        jnp.einsum("btd,dhk->bthk", y, block[n]) for n in ("query", "key", "value")
    )
    q, k = rotate(q), rotate(k)
    q = q.reshape(*q.shape[:2], KEY_HEADS, groups, HEAD)
    logits = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) / HEAD**0.5
    causal = jnp.tri(x.shape[1], dtype=bool)[None, None, None]
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), axis=-1)
    mixed = jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)
    mixed = mixed.reshape(*x.shape[:2], HEADS, HEAD)
    x = x + jnp.einsum("bthk,hkd->btd", mixed, block["out"])
    y = rms_norm(x, block["norm_mlp"])
    return x + (jax.nn.silu(y @ block["gate"]) * (y @ block["up"])) @ block["down"]


def apply(params, tokens):
    """Logits of the next token; the embedding is the head too."""
    x = params["embed"][tokens]
    x = jax.lax.scan(lambda x, b: (block_fn(b, x), None), x, params["blocks"])[0]
    return rms_norm(x, params["norm"]) @ params["embed"].T


def numpy_block(block, x):
    """The block in float64, token by token; also the inputs of every layer."""
    w = {n: np.asarray(p, np.float64) for n, p in block.items()}
    x = np.asarray(x, np.float64)
    cos, sin = rotary(x.shape[1])

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def rotate(y):
        a, b = y[..., : HEAD // 2], y[..., HEAD // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    y = norm(x, w["norm_attention"])
    q, k, v = (np.tensordot(y, w[n], 1) for n in ("query", "key", "value"))
    q, k = rotate(q), rotate(k)
    mixed = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        own = h // (HEADS // KEY_HEADS)
        p = np.exp(k[b, : t + 1, own] @ q[b, t, h] / HEAD**0.5)
        mixed[b, t, h] = p / p.sum() @ v[b, : t + 1, own]
    x = x + np.tensordot(mixed, w["out"], 2)
    z = norm(x, w["norm_mlp"])
    gate = z @ w["gate"]
    hidden = gate / (1 + np.exp(-gate)) * (z @ w["up"])
    found = {n: y for n in ("query", "key", "value")}
    found |= {"out": mixed, "gate": z, "up": z, "down": hidden}
    found = {n: a.reshape(-1, WIDTHS[n]) for n, a in found.items()}
    return x + hidden @ w["down"], found


def as_matrix(name, leaf):
    """A layer's weights or mask as (outputs, inputs)."""
    return np.asarray(leaf).reshape(WIDTHS[name], -1).T
