"""jaxprune: functional pruning for JAX.

``score -> allocate -> mask -> train``: four stages, each a pure function of pytrees.
"""

from jaxprune import measures as measures
from jaxprune import structured as structured
from jaxprune._allocation import erk as erk
from jaxprune._blocks import block_mask as block_mask
from jaxprune._cost import Cost as Cost
from jaxprune._cost import cost as cost
from jaxprune._deploy import Model as Model
from jaxprune._deploy import load_model as load_model
from jaxprune._deploy import save_model as save_model
from jaxprune._dissipating import DissipatingState as DissipatingState
from jaxprune._dissipating import dissipating as dissipating
from jaxprune._drive import drive as drive
from jaxprune._dynamic import SetTrainingState as SetTrainingState
from jaxprune._dynamic import granet as granet
from jaxprune._dynamic import rigl as rigl
from jaxprune._dynamic import set_training as set_training
from jaxprune._flow import Flow as Flow
from jaxprune._flow import FlowRates as FlowRates
from jaxprune._flow import flow_rates as flow_rates
from jaxprune._flow import gradient_flow as gradient_flow
from jaxprune._flow import mean_flow as mean_flow
from jaxprune._gradual_n_m import gradual_n_m as gradual_n_m
from jaxprune._iterative import force_mask as force_mask
from jaxprune._iterative import iterative_mask as iterative_mask
from jaxprune._k_starts import KStartsState as KStartsState
from jaxprune._k_starts import k_starts as k_starts
from jaxprune._lamp import lamp as lamp
from jaxprune._masks import apply_mask as apply_mask
from jaxprune._masks import global_mask as global_mask
from jaxprune._masks import layerwise_mask as layerwise_mask
from jaxprune._masks import n_m_mask as n_m_mask
from jaxprune._orthogonal import exact_orthogonal_init as exact_orthogonal_init
from jaxprune._prospr import prospr as prospr
from jaxprune._prunable import by_path as by_path
from jaxprune._prunable import divisible_by as divisible_by
from jaxprune._prunable import matrices as matrices
from jaxprune._sanity import shuffle_mask as shuffle_mask
from jaxprune._schedules import exponential_schedule as exponential_schedule
from jaxprune._schedules import hyperbolic_schedule as hyperbolic_schedule
from jaxprune._scores import biased_loss as biased_loss
from jaxprune._scores import fisher as fisher
from jaxprune._scores import gradient_preservation as gradient_preservation
from jaxprune._scores import grasp as grasp
from jaxprune._scores import magnitude as magnitude
from jaxprune._scores import random as random
from jaxprune._scores import snip as snip
from jaxprune._scores import synflow as synflow
from jaxprune._sparse_mup import SparseMup as SparseMup
from jaxprune._sparse_mup import scale_leaves as scale_leaves
from jaxprune._sparse_mup import sparse_mup as sparse_mup
from jaxprune._state import get_mask as get_mask
from jaxprune._state import set_mask as set_mask
from jaxprune._straight_through import forward_sparse as forward_sparse
from jaxprune._summary import Summary as Summary
from jaxprune._summary import sparsity as sparsity
from jaxprune._summary import summary as summary
from jaxprune._transforms import SparseState as SparseState
from jaxprune._transforms import SparseWrapperState as SparseWrapperState
from jaxprune._transforms import gradual as gradual
from jaxprune._transforms import keep_sparse as keep_sparse
from jaxprune._transforms import sparse as sparse
from jaxprune._triggers import EarlyCropState as EarlyCropState
from jaxprune._triggers import EpiState as EpiState
from jaxprune._triggers import Trigger as Trigger
from jaxprune._triggers import earlycrop_trigger as earlycrop_trigger
from jaxprune._triggers import epi_trigger as epi_trigger
from jaxprune.post_training import input_axes as input_axes
from jaxprune.post_training import row_mask as row_mask
from jaxprune.post_training import sparse_gpt as sparse_gpt
from jaxprune.post_training import wanda as wanda

__version__ = "0.1.0"
