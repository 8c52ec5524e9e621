"""Pruning while training, in rounds: the pipeline of Lubana & Dick, and its figures."""

from experiments.rounds._run import run as run
