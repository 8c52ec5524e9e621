"""A decoder-only transformer in plain JAX: a scan over layers, sharded two ways.

Parameters are float32 and computed with in bfloat16 unless told otherwise, rows over
"data" (fully sharded data parallel) and columns over "model" (tensor parallel). Layers
are stacked along a leading axis, so that eighty of them compile like one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The sizes of a decoder with grouped queries, rotary positions and a gated MLP."""

    layers: int
    width: int
    heads: int
    key_heads: int
    hidden: int
    vocabulary: int
    head_size: int = 128
    tokens: int = 2048
    dtype: Any = jnp.bfloat16

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter."""
        wide, narrow = self.heads * self.head_size, self.key_heads * self.head_size
        per_layer = {
            "query": (self.width, wide),
            "key": (self.width, narrow),
            "value": (self.width, narrow),
            "out": (wide, self.width),
            "gate": (self.width, self.hidden),
            "up": (self.width, self.hidden),
            "down": (self.hidden, self.width),
            "norm_attention": (self.width,),
            "norm_mlp": (self.width,),
        }
        stacked = {f"layers/{k}": (self.layers, *v) for k, v in per_layer.items()}
        ends = {
            "embedding": (self.vocabulary, self.width),
            "head": (self.width, self.vocabulary),
            "norm": (1, self.width),
        }
        return {**ends, **stacked}

    def specs(self) -> dict[str, P]:
        """How every parameter is cut."""
        rows = {"out", "down"}  # Whose rows follow the columns of the one before.
        specs = {"embedding": P("model", "data"), "head": P("data", "model")}
        for name, shape in self.shapes().items():
            if len(shape) == 3:
                cut = ("model", "data") if name[7:] in rows else ("data", "model")
                specs[name] = P(None, *cut)
        return {name: specs.get(name, P()) for name in self.shapes()}

    def loss(self, params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
        """The mean cross-entropy of the next token, over ``(batch, tokens)`` ids."""
        prefix = "layers/"
        stacked = {k[7:]: v for k, v in params.items() if k.startswith(prefix)}
        x = self.embedded(params["embedding"], tokens)

        def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            return self.layer(x, weights), None

        x, _ = jax.lax.scan(jax.checkpoint(layer), x, stacked)
        logits = self.logits(x, params["norm"][0], params["head"])
        return self.cross_entropy(logits, tokens)

    def embedded(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        """The tokens' rows of the table, ``(batch, tokens, width)``."""
        # Cut like the batch: else the layers would follow the table.
        return self._placed(table.astype(self.dtype)[tokens])

    def layer(self, x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        """One layer: attention, then the gated MLP."""
        w = {k: v.astype(self.dtype) for k, v in weights.items()}
        x = x + self._attention(w, _normed(x, w["norm_attention"]))
        h = _normed(x, w["norm_mlp"])
        return self._placed(
            x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
        )

    def logits(self, x: jax.Array, norm: jax.Array, head: jax.Array) -> jax.Array:
        """What the last layer's results say of the next token, in float32."""
        x = _normed(x, norm.astype(self.dtype))
        return (x @ head.astype(self.dtype)).astype(jnp.float32)

    def cross_entropy(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
        """The mean cross-entropy of the token that follows."""
        wanted = jnp.roll(tokens, -1, axis=1)[..., None]
        chosen = jnp.sum(
            jnp.where(jnp.arange(self.vocabulary) == wanted, logits, 0.0), axis=-1
        )
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    def _placed(self, x: jax.Array) -> jax.Array:
        if jax.sharding.get_abstract_mesh().empty:  # One device.
            return x
        return jax.lax.with_sharding_constraint(x, P("data", None, None))

    def _attention(self, w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        batch, length, _ = x.shape
        groups = self.heads // self.key_heads

        def heads(name: str, number: int) -> jax.Array:
            return (x @ w[name]).reshape(batch, length, number, self.head_size)

        q = _rotated(heads("query", self.heads))
        k = _rotated(heads("key", self.key_heads))
        v = heads("value", self.key_heads)
        q = q.reshape(batch, length, self.key_heads, groups, self.head_size)
        logits = jnp.einsum("bqhgd,bkhd->bhgqk", q, k).astype(jnp.float32)
        past = jnp.tril(jnp.ones((length, length), bool))
        logits = jnp.where(past, logits / self.head_size**0.5, -1e30)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)
        return mixed.reshape(batch, length, self.heads * self.head_size) @ w["out"]


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    size = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(size + 1e-5)).astype(x.dtype) * scale


def _rotated(x: jax.Array) -> jax.Array:
    """Turns pairs of features by an angle that grows with the position."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (jnp.arange(x.shape[1])[:, None] * rates)[:, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# The shapes of Llama 3 (Dubey et al., 2024, Table 3), and two that are small.
SIZES = {
    "tiny": Transformer(2, 64, 8, 4, 128, 256, head_size=8, tokens=16),
    "125m": Transformer(12, 768, 12, 12, 2048, 32_768, head_size=64),
    "8b": Transformer(32, 4096, 32, 8, 14_336, 128_256),
    "70b": Transformer(80, 8192, 64, 8, 28_672, 128_256),
}
