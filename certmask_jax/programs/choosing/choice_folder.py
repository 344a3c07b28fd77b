"""The folder of a choice: its files, its name where none is given, and who writes in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from certmask_jax._text import json_of
from certmask_jax.files import fingerprint, storage, whole_files
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.files.storage import AnyPath
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.choosing import wave_times
from certmask_jax.programs.choosing.choose_candidates import Candidate
from certmask_jax.programs.choosing.choose_options import ChooseOptions

RESULT, ASKED = "choice.json", "asked.json"
"""What a choice came to, and what was asked of it."""


@contextlib.contextmanager
def alone(folder: AnyPath, asked: Mapping[str, Any]) -> Iterator[None]:
    """The folder for one choice at a time; what is made for it goes if nothing was written.

    Raises:
      FileExistsError: while another process chooses there, or where something else is there.
    """
    check(folder, asked)
    local = (folder, *folder.parents) if isinstance(folder, Path) else ()  # buckets have no folders
    new = [one for one in local if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, "this choice"):
        check(folder, asked)  # another process may have begun another one meanwhile
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty
                for one in new:
                    one.rmdir()


def check(folder: AnyPath, asked: Mapping[str, Any]) -> None:
    """Refuses a folder that holds something else; whose runs these are, each run checks.

    What is asked of a choice decides its front only at the end, after all rounds: that it is the
    same is looked at before them.
    """
    storage.check_no_file(folder, f"--out {folder}")
    if not folder.exists():
        return
    files = {RESULT, ASKED, wave_times.FILE}
    known = {*files, *(f"{name}{whole_files.UNFINISHED}" for name in files), "rounds", "reported"}
    if not {file.name for file in folder.iterdir()} <= known:
        raise FileExistsError(
            f"--out {folder}: expected a new or empty folder, or this same choice to go on with, "
            "but it holds other files; choose another name"
        )
    try:
        there = json_of((folder / ASKED).read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{folder / ASKED}: is damaged ({error}); choose another --out") from error
    differences = fingerprint.differences(there, dict(asked))
    if differences:
        raise FileExistsError(
            f"--out {folder}: expected this same choice to go on with, but "
            f"{'; '.join(differences[:5])}; choose another name, or give the command of that choice"
        )


def asked_of(options: ChooseOptions) -> dict[str, Any]:
    """What decides a choice beside its candidates and images, as JSON has it."""
    names = ("budget", "unit", "budget_of", "seed", "calibrate", "least_clean", "floors")
    facts = {name: getattr(options, name) for name in (*names, "size_weights")}
    return dict(fingerprint.plain({**facts, "halving": options.halving and options.may_lose}))


def name_of(job: Job, options: ChooseOptions, all_candidates: Sequence[Candidate]) -> str:
    """Its name where none is given, which other jobs, candidates and questions change."""
    facts = {
        "job": job.name,
        "candidates": [f"{one.spec} {one.variant.name}" for one in all_candidates],
        **asked_of(options),
    }
    return f"choose-{job.name.rpartition('-')[0]}-{fingerprint.of_facts(facts)[:8]}"
