"""Every option of an experiment, once, with its default and its unit."""

from experiments.config._comparison import Config as Config
from experiments.config._names import POST_TRAINING as POST_TRAINING
from experiments.config._names import TWO_OF_FOUR as TWO_OF_FOUR
from experiments.config._names import Check as Check
from experiments.config._names import Checked as Checked
from experiments.config._names import Level as Level
from experiments.config._names import Measure as Measure
from experiments.config._names import Method as Method
from experiments.config._parts import Data as Data
from experiments.config._parts import Model as Model
from experiments.config._parts import Pruning as Pruning
from experiments.config._rounds import Rounds as Rounds
from experiments.config._scaled import Checkpoints as Checkpoints
from experiments.config._scaled import Logging as Logging
from experiments.config._scaled import Parallel as Parallel
from experiments.config._scaled import Scaled as Scaled
