"""Compiles the programs of `benchmarks.pod` for one mesh, and prints what they need.

Run by it in a process of its own, as the number of faked devices is fixed at start.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks._hlo import collectives
from benchmarks._transformer import SIZES

SPARSITY = 0.9
_TURNS = 32  # The most rounds of the search among ties: 64 bits, two at a time.


@dataclasses.dataclass(frozen=True)
class Options:
    """One model on one mesh."""

    model: str = "tiny"
    """A name in `SIZES`."""
    devices: int = 8
    """How many devices; XLA_FLAGS must provide them."""
    model_shards: int = 8
    """How many of them share a layer's columns."""
    batch: int = 0
    """Sequences in the batch; 0 for one a row of the mesh."""
    programs: tuple[str, ...] = (
        "dense step",
        "snip",
        "global_mask",
        "global_mask, explicit",
        "masked step",
        "rigl step",
        "wanda, a block",
        "sparse_gpt, a block",
    )
    """What to compile."""


def compile_all(options: Options) -> dict[str, Any]:
    """Compiles each program ahead of time; nothing is allocated."""
    network = SIZES[options.model]
    shape = options.devices // options.model_shards, options.model_shards

    def mesh_of(axis_type: AxisType) -> jax.sharding.Mesh:
        return jax.make_mesh(shape, ("data", "model"), axis_types=(axis_type,) * 2)

    def params_on(mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        specs = network.specs()
        return {
            name: _abstract(dims, jnp.float32, mesh, specs[name])
            for name, dims in network.shapes().items()
        }

    mesh = mesh_of(AxisType.Auto)
    params = params_on(mesh)
    batch = options.batch or shape[0]
    tokens = _abstract((batch, network.tokens), jnp.int32, mesh, P("data"))
    adamw = optax.adamw(1e-3)
    links = {
        "dense step": adamw,
        "masked step": optax.chain(adamw, jp.keep_sparse()),
        "rigl step": jp.rigl(adamw, None, every=100, until=None),
    }

    def select(scores: Any) -> Any:
        return jp.global_mask(scores, SPARSITY)

    methods = {
        "wanda, a block": jp.by_score(jp.wanda),
        "sparse_gpt, a block": jp.sparse_gpt,
    }

    def pruned(name: str) -> dict[str, Any]:
        """One block of `jaxprune.prune_blocks`: statistics and solvers."""
        shapes, specs = network.shapes(), network.specs()
        block = {
            key[7:]: _abstract(shapes[key][1:], jnp.float32, mesh, P(*specs[key][1:]))
            for key in shapes
            if key.startswith("layers/")
        }
        sizes = batch, network.tokens, network.width
        hidden = _abstract(sizes, network.dtype, mesh, P("data"))

        def prune(block: Any, hidden: Any) -> Any:
            def block_fn(block: Any, hidden: Any) -> Any:
                return network.layer(hidden, block)

            return methods[name](block_fn, block, [hidden], sparsity=0.5)

        with jax.set_mesh(mesh):
            return _compiled(prune, (block, hidden), (block, block))

    def compiled(name: str) -> dict[str, Any]:
        if name in methods:
            return pruned(name)
        if name == "snip":
            with jax.set_mesh(mesh):
                return _compiled(jp.snip(network.loss), (params, tokens), params)
        if name == "global_mask":
            return _compiled(select, (params,), params)
        if name == "global_mask, explicit":
            own = mesh_of(AxisType.Explicit)
            with jax.set_mesh(own):
                return _compiled(select, (params_on(own),), params_on(own))
        state = _abstract_state(links[name], params, mesh)

        def step(params: Any, state: Any, tokens: Any) -> Any:
            gradient = jax.grad(network.loss)(params, tokens)
            updates, state = links[name].update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        with jax.set_mesh(mesh):
            args = params, state, tokens
            return _compiled(step, args, (params, state), donate_argnums=(0, 1))

    leaves = params.values()
    return {
        "model": options.model,
        "devices": options.devices,
        "mesh": dict(mesh.shape),
        "weights": sum(int(np.prod(leaf.shape)) for leaf in leaves),
        "weights_per_device": sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves
        ),
        "programs": {name: compiled(name) for name in options.programs},
    }


def _abstract(shape: Any, dtype: Any, mesh: Any, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _abstract_state(tx: Any, params: Any, mesh: Any) -> Any:
    """The optimizer's state, what is like a parameter lying where that does."""

    def like(leaf: Any, param: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding)

    shapes = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(
        tx,
        like,
        shapes,
        params,
        transform_non_params=lambda x: _abstract(x.shape, x.dtype, mesh, P()),
    )


def _compiled(fn: Callable[..., Any], args: Any, like: Any, **options: Any) -> Any:
    """Compiles a function whose results lie where ``like`` does."""
    start = time.perf_counter()
    placed = jax.tree.map(lambda x: x.sharding, like)
    compiled = jax.jit(fn, out_shardings=placed, **options).lower(*args).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    work = compiled.cost_analysis()
    assert memory is not None and text is not None and work is not None
    return {
        "seconds": time.perf_counter() - start,
        "flops": work.get("flops", 0.0),
        "bytes": work.get("bytes accessed", 0.0),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": [c._asdict() for c in collectives(text, turns=_TURNS)],
    }


if __name__ == "__main__":
    print(json.dumps(compile_all(tyro.cli(Options, description=__doc__))))
