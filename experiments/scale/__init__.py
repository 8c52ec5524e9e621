"""One network on a mesh of devices, of one process or many.

A different program from `experiments.train`, whose epoch holds all images, seeds and
steps on one device: here each process feeds the images of its own devices, step by
step, every array lies where the mesh says, and a run that is killed goes on.
"""

from experiments.scale._checkpoints import CheckpointError as CheckpointError
from experiments.scale._loop import Outcome as Outcome
from experiments.scale._loop import train as train
from experiments.scale._mesh import mesh_of as mesh_of
