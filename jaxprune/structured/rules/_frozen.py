"""The primitives without a rule: they freeze whatever they touch.

`jaxprune.structured._trace.unknown` handles them, and any primitive that a newer JAX
adds.
"""

FROZEN = frozenset(
    # Linear algebra mixes the positions of an axis.
    "cholesky eig eigh hessenberg householder_product lu qr schur svd "
    "custom_linear_solve triangular_solve tridiagonal tridiagonal_solve "
    # Reductions by a user's function, and gradients of pooling.
    "reduce reduce_window "
    "approx_top_k select_and_gather_add select_and_scatter select_and_scatter_add "
    # Collectives: mesh axes are not array axes.
    "all_gather all_to_all axis_index pmax pmin ppermute psum ragged_all_to_all "
    # Samplers whose draws depend on the shape.
    "random_gamma rng_bit_generator rng_uniform "
    # References, tokens, and primitives of internal transformations.
    "after_all call custom_lin empty2 eval_jaxpr get swap".split()
)
