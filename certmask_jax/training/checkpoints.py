"""Checkpoints of a training run, by Orbax: whole or not at all, of one run, the best and the last.

A folder holds ``run.json`` (what the run is) and one folder a step with the arrays of the state
and a JSON of what else it takes to go on. Arrays are saved as NumPy, so they restore anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import FolderTakenError, WritingError
from certmask_jax._text import json_of
from certmask_jax.files import file_systems, whole_files
from certmask_jax.files.fingerprint import differences, of_facts
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.files.local_paths import in_utf8, local_path
from certmask_jax.files.quiet_logs import raised_alone
from certmask_jax.weights.orbax_folders import check_store

_RUN = "run.json"
_REMOVED = ".removed-"

_Tree = TypeVar("_Tree")


class Saved(NamedTuple):
    """A checkpoint as it was read back."""

    step: int
    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    A step is in the folder under its number only when it is complete: a process that is killed
    while it writes or removes one leaves rubbish under other names, cleared at the next start.

    Args:
      folder: created if need be.
      run: JSON-able facts that make the run what it is (model, recipe, data, first weights).
      keep_best: how many to keep by score, beside the latest, which is always kept. Checkpoints
        without a score count as older ones: the latest of them come last.
      resume: whether a run that the folder holds may be continued. A folder without one is new in
        either case.

    Attributes:
      identity: a hash of ``run``, for what else is kept in the folder.

    Raises:
      FileExistsError: when the folder holds a run, without ``resume``; while another process
        writes there, until ``close``.
      ValueError: when it holds another run, naming what differs; or for a bad ``keep_best``.
      OSError: when nothing can be written there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        run: Mapping[str, Any],
        keep_best: int = 1,
        resume: bool = False,
    ) -> None:
        if keep_best < 1:
            raise ValueError(f"keep_best: expected at least 1 checkpoint, got {keep_best}")
        self.folder = local_path(folder, is_written=True)
        self._keep_best = keep_best
        wanted = json.loads(json.dumps(run))
        self.identity = of_facts(wanted)
        there = self._run_there()
        if there is not None and not resume:
            raise FolderTakenError(
                lambda say: (
                    f"{folder}: holds a training run already; {say('resume', True)} continues it, "
                    "or choose another folder"
                )
            )
        if there is not None and there != wanted:
            raise ValueError(
                f"{folder}: expected the checkpoints of this run, got those of another: "
                f"{'; '.join(differences(there, wanted))}. Choose another folder, or the options "
                "of the run that it holds"
            )
        self._lock = _claim(self.folder, wanted)
        try:
            self._manager = _manager(in_utf8(self.folder))
            self._scores: dict[int, float | None] = {
                step: self._about(step).get("score") for step in self.steps()
            }
        except BaseException:
            self._lock.close()
            raise

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(int(step) for step in self._manager.all_steps())

    def save(
        self, step: int, state: Any, about: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        """Writes a checkpoint, then removes those that are neither the latest nor among the best.

        Args:
          step: steps done; a step that is there already is left alone.
          state: pytree of arrays.
          about: JSON-able.
          score: more is better; None when it was not measured.
        """
        import orbax.checkpoint as ocp

        if step in self._scores:
            return
        try:
            with file_systems.orbax_in(self.folder), raised_alone():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(named_arrays(state)),
                        about=ocp.args.JsonSave({**about, "score": score}),
                    ),
                    force=True,
                )
                self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore's are of the second kind
            number, why = _reason(error)
            raise WritingError(
                number,
                lambda say: (
                    f"{self.folder}: writing the checkpoint of step {step} failed ({why}); earlier "
                    f"ones are whole. Make room, and {say('resume', True)} goes on from there"
                ),
            ) from error
        self._scores[step] = score
        self._remove_worst(step)

    def latest(self) -> Saved | None:
        """The last complete checkpoint, or None.

        Raises:
          ValueError: when it is damaged, naming its folder.
        """
        steps = self.steps()
        return self.read(steps[-1]) if steps else None

    def best(self) -> int | None:
        """Step of the highest score (the later of equal ones), or None without scores."""
        scored = [(score, step) for step, score in self._scores.items() if score is not None]
        return max(scored)[1] if scored else None

    def read(self, step: int) -> Saved:
        """One checkpoint; see ``latest``."""
        import orbax.checkpoint as ocp

        restored = self._restore(
            step,
            state=ocp.args.StandardRestore(),
            about=ocp.args.JsonRestore(),
        )
        return Saved(step, dict(restored.state), dict(restored.about))

    def close(self) -> None:
        """Lets go of Orbax' threads, and of the folder."""
        self._manager.close()
        self._lock.close()

    def _run_there(self) -> dict[str, Any] | None:
        file = self.folder / _RUN
        try:
            return dict(json_of(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise ValueError(f"{file}: damaged, cannot be read ({error})") from error

    def _about(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        restored = self._restore(step, about=ocp.args.JsonRestore())
        return dict(restored.about)

    def _restore(self, step: int, **what: Any) -> Any:
        import orbax.checkpoint as ocp

        folder = self.folder / str(step)
        try:
            if "state" in what:
                check_store(in_utf8(self.folder) / str(step) / "state")
            return self._manager.restore(step, args=ocp.args.Composite(**what))
        except Exception as error:  # Orbax and tensorstore raise many kinds
            reason = str(error).split("\n")[0][:200]
            unreadable = _unreadable(folder)
            if unreadable is not None:
                raise OSError(
                    unreadable.errno,
                    f"{unreadable.filename}: this checkpoint cannot be read "
                    f"({unreadable.strerror}); it is left as it is",
                ) from error
            raise ValueError(
                f"{folder}: this checkpoint is damaged ({reason}); rename its folder, to "
                f"{step}.bad or the like, to go on from the one before"
            ) from error

    def _remove_worst(self, latest: int) -> None:
        def rank(step: int) -> tuple[float, int]:
            score = self._scores[step]
            return (float("-inf") if score is None else score, step)

        best = sorted(self._scores, key=rank, reverse=True)[: self._keep_best]
        for step in set(self._scores) - set(best) - {latest}:
            # Renamed first: a removal that is cut short leaves no half of a checkpoint.
            aside = self.folder / f"{_REMOVED}{step}"
            os.replace(self.folder / str(step), aside)
            shutil.rmtree(aside)
            del self._scores[step]
        self._manager.reload()


def named_arrays(tree: Any) -> dict[str, NDArray[Any]]:
    """A pytree's leaves by their path, as NumPy."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_path(key): np.asarray(leaf) for key, leaf in leaves}


def restored(arrays: Mapping[str, NDArray[Any]], like: _Tree) -> _Tree:
    """The inverse of ``named_arrays``, for a tree of the same structure.

    Raises:
      ValueError: naming the entries that are missing, unexpected, or of another shape or dtype.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_path(key): (tuple(leaf.shape), np.dtype(leaf.dtype)) for key, leaf in leaves}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    wrong = sorted(n for n in {*wanted, *shapes} if wanted.get(n) != shapes.get(n))
    if wrong:
        listed = ", ".join(f"{n} ({shapes.get(n)} instead of {wanted.get(n)})" for n in wrong[:4])
        raise ValueError(
            f"checkpoint: expected the training state of this model and recipe, but {len(wrong)} "
            f"entries differ: {listed}"
        )
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in wanted])


def _unreadable(folder: Path) -> OSError | None:
    """Why the system does not let a folder be read, if that is what is wrong; names the file."""

    def refused(error: OSError) -> None:
        raise error

    try:
        for where, _, files in os.walk(folder, onerror=refused):
            for name in files:
                with open(os.path.join(where, name), "rb") as file:
                    file.read(1)
    except OSError as error:
        return None if isinstance(error, FileNotFoundError) else error
    return None


def _path(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _claim(folder: Path, run: Mapping[str, Any]) -> FolderLock:
    """Writes what the run is, which also shows that the folder can be written to; keeps others out.

    They would clear away what is being written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(FolderLock(folder, "this training run"))
            for aside in folder.glob(f"{_REMOVED}*"):
                shutil.rmtree(aside)
            whole_files.write(folder / _RUN, (json.dumps(run, indent=1) + "\n").encode())
        except FolderTakenError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"{folder}: cannot write checkpoints there ({error.strerror or error}); choose a "
                "folder that you may write to",
            ) from error
        stack.pop_all()
    return lock


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder, options=options)


def _reason(error: Exception) -> tuple[int | None, str]:
    """The number that the system gives an error of Orbax or TensorStore, and what it is."""
    if isinstance(error, OSError):
        return error.errno, error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, in a ValueError
    if code is not None:
        return int(code[1]), os.strerror(int(code[1]))
    return None, str(error).split("\n")[0][:200]
