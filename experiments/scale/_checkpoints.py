"""Checkpoints by orbax: all of a state in one, written while training goes on.

A checkpoint holds the leaves of the state by number, and a description: the config,
the position in the data, and of every leaf its path, shape, type and fingerprint. It
is checked against all of them before a run goes on from it, on any mesh.
"""

import json
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from experiments import results
from experiments.config import Scaled
from experiments.scale import _leaves
from experiments.scale._programs import State

_FORMAT = "jaxprune.experiments.scale 1"
_ANYWHERE = ("fsdp", "distributed")  # Of `Parallel`: where, not what, is computed.


class CheckpointError(Exception):
    """A checkpoint that a run may not go on from."""


class Keeper:
    """The checkpoints of one run, the newest few of them.

    Saving is asynchronous: at any moment a folder holds whole checkpoints only, and a
    save that a kill cuts short is swept away at the next start.
    """

    def __init__(self, folder: pathlib.Path, config: Scaled, steps: int):
        """Opens a folder; ``steps`` are those of an epoch."""
        self._folder = folder.absolute()
        self._about = json.loads(json.dumps(_about(config), default=str))
        self._steps = steps
        self._manager = self._open(config.checkpoints.keep)
        self._keep = config.checkpoints.keep

    def save(self, state: State, step: int) -> None:
        """Begins to write a checkpoint; the state may be donated after it."""
        epoch, batch = divmod(step, self._steps)
        arrays = _leaves.arrays_of(state)
        fingerprints = jax.device_get(_leaves.fingerprints(arrays))
        leaves = [
            {**fact, "fingerprint": int(fingerprint), "impl": _leaves.impl(leaf)}
            for fact, fingerprint, leaf in zip(
                _leaves.facts(state), fingerprints, jax.tree.leaves(state), strict=True
            )
        ]
        about = {
            "format": _FORMAT,
            "config": self._about,
            "position": {"step": step, "epoch": epoch, "batch": batch},
            "leaves": leaves,
        }
        named = {str(i): array for i, array in enumerate(arrays)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(named), about=ocp.args.JsonSave(about)
        )
        self._manager.save(step, args=args)

    def restore(self, shapes: State) -> State | None:
        """The newest checkpoint that stands up to all checks; None if there is none.

        Those refused are named in a warning and moved to ``refused``.

        Args:
          shapes: the state's, with the shardings that it is to have.

        Raises:
          CheckpointError: if there are checkpoints, but all are refused, and why.
        """
        refused: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._read(step, shapes)
            except CheckpointError as error:
                refused[step] = str(error)
                continue
            for number, why in refused.items():
                logging.warning("%s The run goes on from step %d.", why, step)
                self._set_aside(number)
            if refused:  # The manager remembers what it has seen.
                self._manager.close()
                self._manager = self._open(self._keep)
            return state
        if refused:
            raise CheckpointError(
                f"No checkpoint in {self._folder} can be used: "
                f"{' '.join(refused.values())} Pass another --workdir, or remove it."
            )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _open(self, keep: int) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def _read(self, step: int, shapes: State) -> State:
        """Reads one checkpoint, or says why it is refused."""
        name = f"Checkpoint {step} of {self._folder}"
        try:
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = self._manager.restore(step, args=args)["about"]
            same = about["format"] == _FORMAT
            config, leaves = about["config"], about["leaves"]
            number = about["position"]["step"]
        except Exception as error:  # Whatever orbax makes of a damaged folder.
            raise CheckpointError(
                f"{name} is truncated, or not one of these experiments: {error}."
            ) from error
        if not same:
            raise CheckpointError(f"{name} is of the format {about['format']!r}.")
        _check_config(name, config, self._about)
        _check_leaves(name, leaves, _leaves.facts(shapes))
        wanted = {str(i): leaf for i, leaf in enumerate(_leaves.array_shapes(shapes))}
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            read = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise CheckpointError(f"{name} is truncated: {error}.") from error
        arrays = [read[str(i)] for i in range(len(wanted))]
        found = jax.device_get(_leaves.fingerprints(arrays))
        for leaf, fingerprint in zip(leaves, found, strict=True):
            if int(fingerprint) != leaf["fingerprint"]:
                raise CheckpointError(
                    f"{name} was altered: the leaf {leaf['path']} is not what was "
                    "saved."
                )
        state = _leaves.state_of(arrays, leaves, shapes)
        if int(jax.device_get(state.step)) != number:
            raise CheckpointError(
                f"{name} says that it is of step {number}, but its state is of step "
                f"{int(state.step)}."
            )
        wrong = int(jax.device_get(_leaves.unmasked(state)))
        if wrong:
            raise CheckpointError(
                f"{name} holds a mask that does not match its weights: {wrong} of "
                "those that it prunes are not 0."
            )
        return state

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint that was refused out of the way, and keeps it."""
        if jax.process_index() == 0:
            aside = self._folder.with_name("refused")
            aside.mkdir(exist_ok=True)
            number = 0
            while (target := aside / f"{step}.{number}").exists():
                number += 1
            (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("refused")


def _about(config: Scaled) -> dict[str, Any]:
    """Of a config what a run's numbers depend on."""
    plain = results.plain_config(config)
    plain["parallel"] = {
        name: value
        for name, value in plain["parallel"].items()
        if name not in _ANYWHERE
    }
    return {k: v for k, v in plain.items() if k not in ("checkpoints", "logging")}


def _check_config(name: str, found: Any, wanted: Any, path: str = "") -> None:
    """Names the first option in which two configs differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            where = f"{path}.{key}" if path else key
            _check_config(name, found.get(key), wanted.get(key), where)
    elif found != wanted:
        raise CheckpointError(
            f"{name} is of another run: its {path} is {found}, but here {wanted}."
        )


def _check_leaves(
    name: str, found: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> None:
    """Names the first leaf that is missing, too many, or of another shape or type."""
    ours = {leaf["path"]: leaf for leaf in wanted}
    theirs = {leaf["path"]: leaf for leaf in found}
    missing = [path for path in ours if path not in theirs]
    masks = [path for path in missing if "mask" in path.split("/")]
    for path in masks or missing:
        what = "a mask" if masks else "a leaf"
        raise CheckpointError(f"{name} lacks {what}: {path}.")
    for path, leaf in theirs.items():
        if path not in ours:
            raise CheckpointError(f"{name} has a leaf too many: {path}.")
        for fact in ("shape", "dtype"):
            if leaf[fact] != ours[path][fact]:
                raise CheckpointError(
                    f"{name}: the {fact} of {path} is {leaf[fact]}, but here "
                    f"{ours[path][fact]}."
                )
