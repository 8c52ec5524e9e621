"""Checkpoints by orbax, checked against the run before it resumes from one."""

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
    """The checkpoints of one run, the newest few of them.

    A checkpoint holds a tree with the fields ``step`` and ``state``, the config, and a
    checksum of every leaf, which orbax does not keep. Orbax saves while training goes
    on: at any moment the folder holds whole checkpoints only, on disk in a form that
    any mesh can restore.
    """

    def __init__(self, folder: pathlib.Path, config: Scaled):
        """Opens a folder."""
        self._folder = folder.absolute()
        self._config = json.loads(json.dumps(_numerics(config), default=str))
        self._keep = config.checkpoints.keep
        self._manager = self._open()

    def save(self, progress: Any, step: int) -> None:
        """Begins to write a checkpoint; the progress may be donated after it."""
        about = {"config": self._config, "checksums": checksums(progress)}
        args = ocp.args.Composite(
            progress=ocp.args.StandardSave(progress), about=ocp.args.JsonSave(about)
        )
        self._manager.save(step, args=args)

    def restore(self, shapes: Any) -> Any:
        """The newest checkpoint that passes all checks; None if there is none.

        Those refused are named in a warning and moved to ``refused``.

        Args:
          shapes: of the progress, with the wanted shardings.

        Raises:
          CheckpointError: if there are checkpoints, but all are refused, and why.
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
            if refused:  # The manager remembers what it has seen.
                self._manager.close()
                self._manager = self._open()
            return progress
        if refused:
            raise CheckpointError(
                f"No checkpoint in {self._folder} can be used: "
                f"{' '.join(refused.values())} Pass another --workdir, or remove it."
            )
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(self._keep),
                cleanup_tmp_directories=True,
            ),
        )

    def _read(self, step: int, shapes: Any) -> Any:
        """Reads one checkpoint, or says why it is refused."""
        name = f"Checkpoint {step} of {self._folder}"
        try:
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = self._manager.restore(step, args=args)["about"]
            config, sums = about["config"], about["checksums"]
        except Exception as error:  # A damaged folder raises errors of many types.
            raise CheckpointError(
                f"{name} is truncated, or not one of these experiments: {error}."
            ) from error
        difference = _difference(config, self._config)
        if difference:
            raise CheckpointError(f"{name} is of another run: its {difference}.")
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
                f"{name} holds a mask that does not match its weights: {wrong} of the "
                "weights that it prunes are not 0."
            )
        return progress

    def _set_aside(self, step: int) -> None:
        """Moves a refused checkpoint out of the way, and keeps it."""
        if jax.process_index() == 0:
            aside = self._folder.with_name("refused")
            aside.mkdir(exist_ok=True)
            number = 0
            while (target := aside / f"{step}.{number}").exists():
                number += 1
            (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("refused")


def _numerics(config: Scaled) -> dict[str, Any]:
    """The part of a config that a run's numbers depend on."""
    plain = records.plain_config(config)
    for name in ("fsdp", "distributed"):  # Where, not what, is computed.
        del plain["parallel"][name]
    return {k: v for k, v in plain.items() if k not in ("checkpoints", "logging")}


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Names the first option in which two configs differ; "" if none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            where = f"{path}.{key}" if path else key
            difference = _difference(found.get(key), wanted.get(key), where)
            if difference:
                return difference
        return ""
    return "" if found == wanted else f"{path} is {found}, but here {wanted}"


def checksums(tree: Any) -> list[int]:
    """A checksum for each leaf, the same on any mesh."""
    return np.asarray(_checksums(jax.tree.leaves(tree))).tolist()


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    """The sum of each leaf's words modulo 2^32: it changes with any one word."""

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.bool_:
            width = 8 * min(leaf.dtype.itemsize, 4)
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}"))
        return jnp.sum(leaf, dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])


@jax.jit
def _unmasked(state: Any) -> jax.Array:
    """How many weights are not 0 though the mask in the optimizer's state prunes."""
    mask = jp.get_mask(state.opt_state, state.params)
    wrong = jax.tree.map(lambda p, m: jnp.sum((p != 0) & ~m), state.params, mask)
    return jnp.sum(jnp.stack(jax.tree.leaves(wrong)))
