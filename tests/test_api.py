"""The public surface: named once, keyword-only options, formulas."""

import inspect
import subprocess
import sys

import pytest

import jaxprune as jp
from jaxprune import measures, structured

FUNCTIONS = {
    name: value
    for name, value in vars(jp).items()
    if inspect.isfunction(value) and not name.startswith("_")
}
MEASURES = {
    name: value
    for name, value in vars(measures).items()
    if inspect.isfunction(value) and value.__module__ == measures.__name__
    if not name.startswith("_")
}
STRUCTURED = {
    name: value for name, value in vars(structured).items() if inspect.isfunction(value)
}
CONTRACT = """
    gradient_flow mean_flow flow_rates magnitude random snip biased_loss grasp
    gradient_preservation fisher drive synflow matrices by_path divisible_by erk
    global_mask layerwise_mask n_m_mask iterative_mask force_mask hyperbolic_schedule
    exponential_schedule apply_mask sparsity summary get_mask set_mask keep_sparse
    sparse gradual k_starts dissipating shuffle_mask cost
    save_model load_model
    rigl set_training granet forward_sparse gradual_n_m prospr
    earlycrop_trigger epi_trigger lamp block_mask exact_orthogonal_init
    sparse_mup scale_leaves wanda input_axes row_mask sparse_gpt
    save_mask load_mask update_mask sparsities stacked unstack
    prune_blocks by_score ria admm dsnot owl read_gguf read_safetensors
""".split()


def test_the_contracts_functions_are_all_there_and_no_others():
    assert set(FUNCTIONS) == set(CONTRACT)


def test_the_functions_of_structured_are_all_there_and_no_others():
    names = """
        channel_groups channel_report group_scores load narrow narrow_module save
        shrink structured_mask standardize minitron flap compensate slice_groups reap
        block_influence angular_distance drop_blocks
    """
    assert set(STRUCTURED) == set(names.split())


@pytest.mark.parametrize("name", MEASURES)
def test_measures_say_their_formula(name):
    assert ":math:" in inspect.getdoc(MEASURES[name]) or ".. math::" in inspect.getdoc(
        MEASURES[name]
    )


@pytest.mark.parametrize("name", [*FUNCTIONS, *STRUCTURED])
def test_options_are_keyword_only_and_keys_are_called_key(name):
    function = {**FUNCTIONS, **STRUCTURED}[name]
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        assert parameter.name not in ("rng", "seed", "density", "ratio")
        if parameter.default is not inspect.Parameter.empty:
            first = name in {
                *("keep_sparse", "sparse", "rigl", "set_training"),
                *("sparsity", "dissipating"),
            }
            allowed = parameter.name in ("mask", "params", "sparsity") and first
            assert allowed or parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_importing_brings_nothing_heavy():
    """0.05 s beyond jax, optax and chex: what would cost more is imported when used."""
    code = (
        "import sys, jax, optax, chex; before = set(sys.modules); import jaxprune; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    # wadler_lindig is what jaxtyping prints with.
    known = {"jaxprune", "jax", "jaxlib", "numpy", "jaxtyping", "wadler_lindig"}
    assert "jaxprune" in foreign and foreign <= known
