"""Lists of elementwise primitives, by what they make of zeros."""

ZERO_PRESERVING_UNARY = frozenset(
    "abs asin asinh atan atanh bessel_i1e cbrt ceil conj convert_element_type copy "
    "copy_p device_put erf erf_inv expm1 floor imag log1p name neg pvary real "
    "reduce_precision reshard round sharding_constraint sign sin sinh sqrt square "
    "stop_gradient tan tanh".split()
)
"""One operand, and f(0) = 0."""

ZERO_PRESERVING_BINARY = frozenset(
    "add add_any atan2 complex max min or sub xor".split()
)
"""Two operands, and f(0, 0) = 0."""

PRODUCTS = frozenset(("mul", "and"))
"""The result is 0 where either operand is."""

QUOTIENTS = frozenset(("div", "rem"))
"""The result is 0 where the first operand is."""

ZERO_FORGETTING = frozenset(
    "acos acosh bessel_i0e clamp clz cos cosh digamma eq eq_to erfc exp exp2 ge gt "
    "igamma igamma_grad_a igammac is_finite le le_to lgamma log log2 logistic lt lt_to "
    "ne nextafter not one_minus_square polygamma polynomial pow population_count "
    "regularized_incomplete_beta rsqrt shift_left shift_right_arithmetic "
    "shift_right_logical zeta".split()
)
"""The result may be anything where the operands are 0."""

ELEMENTWISE = frozenset(
    {
        *ZERO_PRESERVING_UNARY,
        *ZERO_PRESERVING_BINARY,
        *PRODUCTS,
        *QUOTIENTS,
        *ZERO_FORGETTING,
        "integer_pow",
        "select_n",
    }
)
"""All of them: each entry of the result depends on the same entry of the operands."""
