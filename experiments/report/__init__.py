"""Tables, figures and the page of results, all made from ``results.json``.

``python -m experiments.report`` writes experiments/README.md from the results in
experiments/results, and the measured cells of the table of methods in docs/methods.md.
To publish a result, copy the files of a run, ``results.json`` and its figures, into a
folder there with the name of the experiment.
"""

import pathlib

from experiments.report._claims import claims as claims
from experiments.report._kinds import conclusions as conclusions
from experiments.report._kinds import files as files
from experiments.report._kinds import parts as parts
from experiments.report._page import filled as filled
from experiments.report._page import measured as measured
from experiments.report._page import page as page
from experiments.report._tables import mean_and_std as mean_and_std
from experiments.report._tables import percent as percent

HERE = pathlib.Path(__file__).parent.parent
