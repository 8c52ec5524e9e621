"""Checkpoints by orbax, checked before a run resumes from one."""

import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

import jaxprune as jp
from experiments import records
from experiments.config import Scaled


class CheckpointError(Exception):
    """A checkpoint that a run may not resume from."""


class Keeper:
    """The newest checkpoints of one run.

    A checkpoint holds the progress, the config, and a checksum of every leaf, which
    orbax does not keep. Orbax saves while training goes on, shows whole checkpoints
    only, and restores them on any mesh.
    """

    def __init__(self, folder: pathlib.Path, config: Scaled):
        self._folder = folder.absolute()
        self._config = json.loads(json.dumps(_numerics(config), default=str))
        self._keep = config.checkpoints.keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def save(self, progress: Any, step: int) -> None:
        """Begins to write a checkpoint; the progress may be donated afterwards."""
        about = {"config": self._config, "checksums": checksums(progress)}
        args = ocp.args.Composite(
            progress=ocp.args.StandardSave(progress), about=ocp.args.JsonSave(about)
        )
        self._manager.save(step, args=args)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def restore(self, shapes: Any) -> Any:
        """The newest checkpoint that passes all checks; None if there is none.

        ``shapes`` are abstract arrays with shardings. Newer checkpoints, which do not
        pass, are reported and moved to ``refused``. If none passes, this raises.
        """
        refused: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                progress = self._read(step, shapes)
            except CheckpointError as error:
                refused[step] = str(error)
                continue
            for number, why in refused.items():
                logging.warning("%s The run resumes from step %d.", why, step)
                self._set_aside(number)
            if refused:  # The manager remembers the old folders.
                self._manager.close()
                self._manager = self._open()
            return progress
        if refused:
            raise CheckpointError(
                f"No checkpoint in {self._folder} can be used: "
                f"{' '.join(refused.values())} Pass another --workdir, or remove it."
            )
        return None

    def _read(self, step: int, shapes: Any) -> Any:
        """Reads one checkpoint, or says why it is refused."""
        name = f"Checkpoint {step} of {self._folder}"
        try:
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = self._manager.restore(step, args=args)["about"]
            config, sums = about["config"], about["checksums"]
        except Exception as error:  # A damaged folder raises errors of many types.
            raise CheckpointError(
                f"{name} is truncated, or not from these experiments: {error}."
            ) from error
        difference = _difference(config, self._config)
        if difference:
            raise CheckpointError(f"{name} belongs to another run: its {difference}.")
        try:
            args = ocp.args.Composite(progress=ocp.args.StandardRestore(shapes))
            progress = self._manager.restore(step, args=args)["progress"]
        except Exception as error:
            raise CheckpointError(f"{name} cannot be restored: {error}.") from error
        if checksums(progress) != sums:
            raise CheckpointError(f"{name} was altered: its checksums differ.")
        wrong = int(jax.device_get(_unmasked(progress.state)))
        if wrong:
            raise CheckpointError(
                f"{name} has a mask that does not match its weights: {wrong} pruned "
                "weights are not 0."
            )
        return progress

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint to the folder ``refused``."""
        if jax.process_index() == 0:
            aside = self._folder.with_name("refused")
            aside.mkdir(exist_ok=True)
            number = len(list(aside.glob(f"{step}.*")))
            (self._folder / str(step)).rename(aside / f"{step}.{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("refused")


def _numerics(config: Scaled) -> dict[str, Any]:
    """The part of a config that the numbers of a run depend on."""
    plain = records.plain_config(config)
    for name in ("fsdp", "distributed"):
        del plain["parallel"][name]
    return {k: v for k, v in plain.items() if k not in ("checkpoints", "logging")}


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Names the first option in which two configs differ; "" if none."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return "" if found == wanted else f"{path} is {found}, but here {wanted}"
    for key in {**wanted, **found}:
        where = f"{path}.{key}" if path else key
        difference = _difference(found.get(key), wanted.get(key), where)
        if difference:
            return difference
    return ""


def checksums(tree: Any) -> list[int]:
    """A checksum for each leaf, the same on any mesh."""
    return np.asarray(_checksums(jax.tree.leaves(tree))).tolist()


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    """The sum of each leaf's words modulo 2^32, which changes with any one word."""

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.bool_:
            width = 8 * min(leaf.dtype.itemsize, 4)
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}"))
        return jnp.sum(leaf, dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])


@jax.jit
def _unmasked(state: Any) -> jax.Array:
    """Counts the weights that are not 0 although the mask prunes them."""
    mask = jp.get_mask(state.opt_state, state.params)
    wrong = jax.tree.map(lambda p, m: jnp.sum((p != 0) & ~m), state.params, mask)
    return jnp.sum(jnp.stack(jax.tree.leaves(wrong)))
