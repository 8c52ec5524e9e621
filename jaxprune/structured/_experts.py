"""Scores of the experts of a mixture."""

import jax
import jax.numpy as jnp

from jaxprune.core import _checks


def reap(gates: jax.Array, norms: jax.Array) -> jax.Array:
    r"""Scores experts by the size of what they add, averaged over the tokens they get.

    With :math:`g_j(x)` the gate that the output :math:`f_j(x)` of expert :math:`j` is
    multiplied by, and :math:`X_j` the tokens routed to it,

    .. math:: S_j = \frac{1}{|X_j|} \sum_{x \in X_j} g_j(x) \, \lVert f_j(x) \rVert_2 .

    Declare the experts, with the router's columns and biases, by `slice_groups`; choose
    them by `structured_mask`, where ``min_keep=top_k`` leaves the router enough to
    choose from; cut them off by `narrow`.

    Args:
      gates: what the model multiplies the outputs by, of shape (..., experts), such as
        probabilities renormalized over the top k; 0 for a token that is not routed to
        the expert.
      norms: the norms of the experts' outputs, of the same shape.

    Returns:
      A float32 (or wider) array of shape (experts,), larger = keep; 0 for an expert
      that gets no token.

    Raises:
      ValueError: if the shapes differ, or the arrays have no axis.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp
      >>> gates = jnp.array([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])
      >>> norms = jnp.array([[1.0, 4.0, 9.0], [3.0, 9.0, 1.0]])
      >>> jp.structured.reap(gates, norms)
      Array([1.125, 1.   , 0.5  ], dtype=float32)

    References:
      Lasby et al., `REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression
      <https://arxiv.org/abs/2510.13999>`_, 2025, Section 4.
    """
    if jnp.shape(gates) != jnp.shape(norms) or not jnp.ndim(gates):
        raise ValueError(
            "gates and norms must both be of shape (..., experts); got "
            f"{_checks.described(gates)} and {_checks.described(norms)}."
        )
    dtype = jnp.promote_types(jnp.result_type(gates, norms), jnp.float32)
    gates, norms = (
        jnp.asarray(x, dtype).reshape(-1, x.shape[-1]) for x in (gates, norms)
    )
    routed = jnp.sum(gates != 0, axis=0)
    return jnp.sum(gates * norms, axis=0) / jnp.maximum(routed, 1)
