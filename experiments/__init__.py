"""Pruning methods compared on real data: ``python -m experiments.run digits``."""
