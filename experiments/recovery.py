"""Trains a pruned language model to answer as the dense one did."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from experiments.models import llama


def distill(
    model: llama.Llama,
    dense: Any,
    params: Any,
    batches: Sequence[jax.Array],
    *,
    learning_rate: float,
    on_step: Callable[[int], None],
    mask: Any = None,
) -> Any:
    """Trains a pruned model, once over the batches, toward the dense model's outputs.

    The loss is the divergence of the next token's distribution from the dense model's,
    plus the squared distance of each last hidden state from the dense model's, relative
    to the square of that. The embedding and the head are the dense model's, and stay.
    The learning rate rises over a tenth of the steps and falls to 0 along a cosine.

    Args:
      model: the Llama that both are.
      dense: the dense model's parameters.
      params: the pruned model's, with blocks in a list and of equal shapes.
      batches: tokens ``[B, T]``, all of one shape.
      learning_rate: the highest, of Adam.
      on_step: called with the number of each step that is done.
      mask: of the blocks, a list. Pruned weights stay 0. None trains all weights.

    Returns:
      The trained parameters.
    """
    blocks = _stack(params["blocks"])
    rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
    steps = len(batches)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, steps // 10), max(2, steps)
    )
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(rate),
        jp.keep_sparse(None if mask is None else _stack(mask)),
    )

    def loss_fn(
        blocks: Any, rest: Any, tokens: jax.Array, wanted: jax.Array
    ) -> jax.Array:
        hidden = llama.run_blocks(model, blocks, llama.embed(rest, tokens))
        ours, theirs = (llama.head(model, rest, h) for h in (hidden, wanted))
        divergence = optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(ours), jax.nn.log_softmax(theirs)
        )
        distance = _square(hidden - wanted) / _square(wanted)
        return jnp.mean(divergence) + jnp.mean(distance)

    @jax.jit
    def step(blocks: Any, opt_state: Any, *args: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss_fn)(blocks, *args)
        updates, opt_state = tx.update(grads, opt_state, blocks)
        return optax.apply_updates(blocks, updates), opt_state

    opt_state = tx.init(blocks)
    for i, tokens in enumerate(batches):
        wanted = llama.run_blocks(model, dense["blocks"], llama.embed(rest, tokens))
        blocks, opt_state = step(blocks, opt_state, rest, tokens, wanted)
        on_step(i)
    count = len(params["blocks"])
    return {
        **rest,
        "blocks": [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(count)],
    }


def _square(hidden: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(hidden), axis=-1)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
