"""A vision transformer for small images."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import Model
from experiments.models._layers import Shape, conv


class ViT(nnx.Module):
    """Patches embedded, positions added, pre-norm transformer blocks, the mean read.

    As Dosovitskiy et al. (2021), but with the mean of the tokens in the class token's
    place. There is one width; queries, keys and values have layers of their own.
    """

    def __init__(self, config: Model, shape: Shape, classes: int, rngs: nnx.Rngs):
        (width, blocks), *more = config.stages()
        height, length = (side // config.patch for side in shape[:2])
        if more or width % config.heads or not height * length:
            raise ValueError(
                "A ViT has one width, a multiple of its heads, and patches no larger "
                f"than the image; got widths {config.widths}, {config.heads} heads and "
                f"patches of {config.patch} pixels on images of {shape}."
            )
        self.embed = conv(
            shape[-1],
            width,
            config.patch,
            config.convolution,
            rngs,
            strides=config.patch,
            padding="VALID",
            use_bias=True,
        )
        tokens = (1, height * length, width)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), tokens))
        self.blocks = nnx.List(Block(width, config.heads, rngs) for _ in range(blocks))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embed(images)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x).mean(1))


class Block(nnx.Module):
    """Attention and a multilayer perceptron, each on a normalized residual stream."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = Attention(width, heads, rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.norms
        x = x + self.attention(first(x))
        return x + self.down(nnx.gelu(self.up(second(x))))


class Attention(nnx.Module):
    """Multi-head self-attention; pruned, it loses whole heads."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (f(x).reshape(split) for f in (self.query, self.key, self.value))
        weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) / split[-1] ** 0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(weights), v)
        return self.out(mixed.reshape(x.shape))
