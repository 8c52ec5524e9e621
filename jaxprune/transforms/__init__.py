"""Sparse training as optax transformations."""
