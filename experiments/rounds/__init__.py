"""Pruning while training, in rounds: the pipeline of Lubana & Dick, and its figures."""

from experiments.rounds._claims import VERDICTS as VERDICTS
from experiments.rounds._prune import Row as Row
from experiments.rounds._report import report as report
from experiments.rounds._run import plan as plan
from experiments.rounds._run import run as run
