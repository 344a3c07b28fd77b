"""From the folder of a run to its page: what tables and attacks tell, as far as they are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import Report
from certmask_jax.data import decoding
from certmask_jax.data.attacked_sets import LINES, Line, read_lines
from certmask_jax.defenses import ALERT
from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.pages import pictures
from certmask_jax.pages.evidence_maps import EvidenceMaps
from certmask_jax.pages.image_data import Attacked
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.map_limits import USUAL, MapLimits
from certmask_jax.pages.object_sizes import ObjectSizes
from certmask_jax.pages.run_page import FILE, MOST_IMAGES, page_of, sample
from certmask_jax.programs import evidence_of_run, program, table_of_run
from certmask_jax.programs.attacking.attack_options import UNDEFENDED
from certmask_jax.programs.earlier_images import Picture
from certmask_jax.tables.evidence_store import SavedEvidence
from certmask_jax.tables.outputs import NO_LABEL
from certmask_jax.tables.saved_table import SavedTable

_WORDS = {"alert": ALERT, "none": NO_LABEL}
_PICTURES = 5_500_000  # characters of a page; with all else it stays below 10 MB
_ATTACKED = 1_500_000


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
            attacked, notes = _attacked(report, rows, attack)
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


def _attacked(
    report: Report, rows: NDArray[np.intp], folder: Path
) -> tuple[dict[int, list[Attacked]], list[str]]:
    """What an attack of the run made of its images; patched ones as far as a page holds them."""
    there = read_lines(folder)
    if there is None:
        return {}, [f"No patched images are shown: {folder / LINES} is not there."]
    shown = {report.ids[row]: row for row in rows.tolist()}
    specs = {d.spec: number for number, d in reversed(list(enumerate(report.defenses)))}
    lines = [
        line
        for line in there.lines
        if line["image"] in shown and line["broken"] is not None
        and (line["defense"] == UNDEFENDED or line["defense"] in specs)
    ]  # fmt: skip
    addresses, said = _patched_pictures(folder, lines)
    made: dict[int, list[Attacked]] = {}
    for place, line in enumerate(lines):
        number = None if line["defense"] == UNDEFENDED else specs[line["defense"]]
        after = _WORDS[line["after"]] if line["after"] in _WORDS else line["after"]
        one = Attacked(number, int(after), bool(line["broken"]), addresses.get(place))
        made.setdefault(shown[line["image"]], []).append(one)
    return made, said


def _patched_pictures(folder: Path, lines: Sequence[Line]) -> tuple[dict[int, str], list[str]]:
    """Addresses of the patched images that broke a defense, first of all; by number of line."""
    there = [place for place, line in enumerate(lines) if _is_there(folder, line)]
    order = sorted(there, key=lambda place: not lines[place]["broken"])

    def read(number: int) -> NDArray[np.uint8] | None:
        file = lines[order[number]]["file"]
        try:
            image = np.asarray(decoding.decode(folder / file, file), np.uint8)
        except UnreadableImage:
            return None
        return image.reshape(*image.shape[:2], -1)

    shown, unreadable = pictures.first_data_uris(read, len(order), budget=_ATTACKED)
    gone = len(lines) - len(there) + unreadable
    are = "is" if gone == 1 else "are"
    what = counted(gone, "patched image")
    said = [f"{what} of the attack {are} not there."] if gone else []
    if len(shown) + gone < len(lines):
        said.append(
            f"Of {counted(len(lines) - gone, 'patched image')} {len(shown)} are shown, those "
            "that broke a "
            "defense first; all are in the folder of the attack."
        )
    return {order[number]: address for number, address in shown.items()}, said


def _is_there(folder: Path, line: Line) -> bool:
    return "file" in line and (folder / line["file"]).is_file()


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
