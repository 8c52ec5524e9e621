"""Networks of many leaves, made without compiling anything: NumPy draws the weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._models import Problem
from benchmarks._transformer import SIZES, Transformer
from experiments.models import PUBLISHED, network

_BATCH, _SIDE, _CLASSES = 4, 32, 10
# Narrow: the time to compile hardly depends on the sizes of leaves.
_NARROW = Transformer(30, 64, 4, 2, 128, 256, head_size=16, tokens=16)


def build(name: str) -> Problem:
    """Makes a network: resnet50, vit, llama (30 layers) or tiny (2 layers)."""
    makers: dict[str, Callable[[], Problem]] = {
        "resnet50": lambda: _of_images("resnet50"),
        "vit": lambda: _of_images("vit"),
        "llama": lambda: _unrolled("llama", _NARROW),
        "tiny": lambda: _unrolled("tiny", SIZES["tiny"]),
    }
    return makers[name]()


def _of_images(name: str) -> Problem:
    """One of the experiments' networks; BatchNorm uses the batch."""
    shape = (_SIDE, _SIDE, 3)
    net = network(PUBLISHED[name], shape, _CLASSES)
    abstract, stats = jax.eval_shape(net.init, jax.random.key(0))
    stats = _drawn(stats)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return net.apply(params, stats, images, train=True)[0]

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    images = _drawn(jax.ShapeDtypeStruct((_BATCH, *shape), jnp.float32))
    labels = jax.device_put(np.arange(_BATCH, dtype=np.int32))
    return _problem(name, apply, loss, abstract, (images, labels))


def _unrolled(name: str, size: Transformer) -> Problem:
    """A transformer in float32 whose layers are a list; head and table are one leaf."""
    net = dataclasses.replace(size, dtype=jnp.float32)
    shapes = net.shapes()
    layer = {k[7:]: v[1:] for k, v in shapes.items() if k.startswith("layers/")}
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        {
            "embedding": shapes["embedding"],
            "layers": [layer] * net.layers,
            "norm": shapes["norm"][1:],
        },
        is_leaf=lambda x: isinstance(x, tuple),
    )

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        x = net.embedded(params["embedding"], tokens)
        for weights in params["layers"]:
            x = net.layer(x, weights)
        return net.logits(x, params["norm"], params["embedding"].T)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return net.cross_entropy(apply(params, tokens), tokens)

    tokens = np.random.default_rng(0).integers(
        net.vocabulary, size=(_BATCH, net.tokens), dtype=np.int32
    )
    return _problem(name, apply, loss, abstract, (jax.device_put(tokens),))


def _problem(name: str, apply: Any, loss: Any, abstract: Any, batch: Any) -> Problem:
    leaves = jax.tree.leaves(abstract)
    matrices = sum(leaf.ndim > 1 for leaf in leaves)
    size = sum(leaf.size for leaf in leaves)
    description = (
        f"{name}: {len(leaves)} leaves, {matrices} of them matrices, {size:,} weights, "
        f"batches of {_BATCH}."
    )
    return Problem(name, description, apply, loss, _drawn(abstract), batch)


def _drawn(abstract: Any) -> Any:
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.02, x.shape).astype(x.dtype)),
        abstract,
    )
