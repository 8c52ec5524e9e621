"""Initial weights for sparse networks."""
