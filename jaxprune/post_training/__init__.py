"""Pruning after training, from the inputs of every matrix product of any function."""

from jaxprune.masks._rows import row_mask as row_mask
from jaxprune.post_training._admm import admm as admm
from jaxprune.post_training._blocks import prune_blocks as prune_blocks
from jaxprune.post_training._by_score import by_score as by_score
from jaxprune.post_training._dsnot import dsnot as dsnot
from jaxprune.post_training._owl import owl as owl
from jaxprune.post_training._ria import ria as ria
from jaxprune.post_training._sparse_gpt import sparse_gpt as sparse_gpt
from jaxprune.post_training._wanda import input_axes as input_axes
from jaxprune.post_training._wanda import wanda as wanda
