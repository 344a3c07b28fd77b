"""From the folder of a run to its page: what tables and attacks tell, as far as they are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.report import Report
from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages import pictures
from certmask_jax.pages.evidence_maps import EvidenceMaps
from certmask_jax.pages.image_data import Attacked
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.map_limits import USUAL, MapLimits
from certmask_jax.pages.object_sizes import ObjectSizes
from certmask_jax.pages.run_page import FILE, MOST_IMAGES, page_of, sample
from certmask_jax.programs import evidence_of_run, program, shown_attacks, table_of_run
from certmask_jax.programs.earlier_images import Picture
from certmask_jax.tables.evidence_store import SavedEvidence
from certmask_jax.tables.saved_table import SavedTable

_PICTURES = 5_500_000  # characters of a page; with all else it stays below 10 MB


class MadePage(NamedTuple):
    """A page, HTML, and what it says is missing, in sentences."""

    html: str
    missing: tuple[str, ...]


Images = Callable[[NDArray[np.intp]], tuple[Sequence[Picture | None] | None, str]]
"""Rows of a report -> their images, None where one or all are not there; and why, in a sentence."""

Beside = Callable[[Report], tuple[Report, ObjectSizes | None, Sequence[str]]]
"""A report -> it with names for people, the sizes of its objects, and what is missing."""


_OURS = b'<meta name="generator" content="certmask_jax">'  # in every page


def check_file(file: AnyPath) -> None:
    """Refuses a place where no page can be written, before the work of making it.

    Raises:
      OSError: for a folder, and for a file that is no page of this program.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file}: expected a file for the page, got a folder")
    if file.is_file() and _OURS not in file.read_bytes():
        raise FileExistsError(
            f"{file}: expected a new file, or a page of this program, which is replaced; that one "
            "is another file, so choose another name"
        )
    if isinstance(file, Path):
        folder = next(one for one in file.absolute().parents if one.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{file}: expected a folder around it, but {folder} is a file")


def write_page(page: str, file: AnyPath) -> None:
    """Writes a page, whole or not at all; makes the folder around it."""
    if isinstance(file, Path):  # buckets have no folders
        file.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(file, page)


def made_page(
    report: Report,
    saved: SavedTable | None,
    images: Images,
    *,
    evidence: SavedEvidence | None = None,
    attack: Path | None = None,
    object_sizes: ObjectSizes | None = None,
    missing: Sequence[str] = (),
    most_images: int,
    limits: MapLimits = USUAL,
) -> MadePage:
    """The page of a run.

    Args:
      report: with rows of images, or without, where they are gone.
      saved: its table; None where it is not at hand, or the run has none.
      images: where the images come from.
      evidence: what its defenses on evidence found; None where it is not at hand, or it has none.
      attack: the folder of an attack of this run, if there is one.
      object_sizes: how much of each image its objects cover, where that is known.
      missing: what is known not to be at hand, in sentences.
      most_images: of larger runs a sample of so many is shown.
      limits: what maps of places may take.

    A table or a list of attacks that is damaged is named in what is missing.
    """
    said = list(missing)
    rows = sample(len(report.ids), most_images)
    if not len(report.ids):
        if not any("per_image.csv" in line for line in said):
            said.append("per_image.csv is not there, so no image is shown.")
        return MadePage(page_of(report, rows=rows, inspected={}, missing=said), tuple(said))
    inspected: dict[int, Inspected] = {}
    on_evidence: dict[int, EvidenceMaps] = {}
    unseen: dict[int, str] = {}
    try:
        on_evidence, unseen = evidence_of_run.maps_of_run(report, evidence, rows, limits=limits)
    except ValueError as error:
        said.append(f"Defenses on evidence have no maps: {program.one_line(str(error))}.")
    if saved is not None:
        try:
            inspected, notes = table_of_run.inspected_rows(report, saved, rows, unseen, limits)
        except (ValueError, OSError) as error:
            notes = [f"There are no maps: {program.one_line(program.message(error))}."]
        said += notes
    pixels, why = images(rows)
    if why:
        said.append(why)
    attacked: Mapping[int, Sequence[Attacked]] = {}
    if attack is not None:
        try:
            attacked, notes = shown_attacks.attacked_rows(report, rows, attack)
        except (ValueError, OSError, KeyError, TypeError) as error:
            text = program.one_line(program.message(error))
            notes = [f"No patched images are shown: {text}."]
        said += notes
    page = page_of(
        report,
        rows=rows,
        inspected=inspected,
        pictures=None if pixels is None else pictures.data_uris(pixels, budget=_PICTURES),
        attacked=attacked,
        object_sizes=object_sizes,
        on_evidence=on_evidence,
        unseen=unseen,
        missing=said,
    )
    return MadePage(page, tuple(said))


def try_page(
    report: Report,
    saved: SavedTable | None,
    images: Images,
    out: AnyPath,
    *,
    evidence: SavedEvidence | None = None,
    beside: Beside | None = None,
) -> tuple[str, ...]:
    """Writes the page of a report that has just been written into its folder; returns its name.

    Whatever goes wrong costs the page and not the run: it is said, and there is no name.

    Args:
      report: of the run.
      saved: its table; None where all defenses are on evidence.
      images: where its images come from.
      out: its folder.
      evidence: what its defenses on evidence found, if it has any.
      beside: what the page shows beside the run.
    """
    try:
        named, sizes, missing = (report, None, ()) if beside is None else beside(report)
        page = made_page(
            named,
            saved,
            images,
            evidence=evidence,
            object_sizes=sizes,
            missing=missing,
            most_images=MOST_IMAGES,
        )
        write_page(page.html, page_file(out))
    except Exception as error:  # a page is no result
        again = program.typed("report", [str(out)])
        program.say(f"no {FILE} ({program.one_line(program.message(error))}); {again} tries again")
        return ()
    return (FILE,)


def page_file(folder: AnyPath) -> AnyPath:
    """Where the page of a run goes."""
    return folder / FILE
