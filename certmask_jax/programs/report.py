"""Writes pages that a person opens: of a run, ``certmask report RUN``, or of several runs.

A page is one file that opens from a disk: the numbers and how they were made, and every image with
a map of where a patch could change its answer, and why. Images and tables are looked for where the
run had them; what is not there is named, and the rest is shown. Several runs on the same images are
compared with the first: paired differences, and the images that changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from certmask_jax.certification import report
from certmask_jax.data.attacked_sets import LINES
from certmask_jax.files import storage
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages import compare_page
from certmask_jax.pages.compare_page import Named
from certmask_jax.pages.run_page import FILE, MOST_IMAGES
from certmask_jax.programs import (
    earlier_images,
    earlier_page,
    from_tables,
    page_of_run,
    page_options,
    paths,
    program,
)
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from certmask_jax.programs.number_options import whole
from certmask_jax.programs.page_options import PageOptions
from certmask_jax.programs.program import message, one_line
from certmask_jax.tables import evidence_store, saved_table
from certmask_jax.tables.evidence_store import SavedEvidence
from certmask_jax.tables.saved_table import SavedTable

_OF_ONE = ("attack", "most_images", "object_boxes")
_NOTHING = PageOptions()
_ATTACK = "attack"  # in the folder of a run, as certmask attack puts it there


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("report"), description=__doc__)
    parse.add_argument(
        "runs",
        nargs="+",
        type=paths.run_path,
        metavar="RUN",
        help="the folder of a finished run of certify; or several, on the same images",
    )
    parse.add_argument(
        "--out",
        type=paths.run_path,
        metavar="FILE",
        help=f"the page to write; a page that is there is replaced (default: RUN/{FILE}; "
        "needed for several)",
    )
    parse.add_argument(
        "--data-dir",
        type=paths.local_path,
        metavar="DIR",
        help="where the images are now (default: where the run had them)",
    )
    parse.add_argument(
        "--attack",
        type=paths.local_path,
        metavar="FOLDER",
        help="folder of an attack of this run, whose patched images are shown beside the others "
        f"(default: RUN/{_ATTACK}, if it is there)",
    )
    parse.add_argument(
        "--most-images",
        type=whole(1),
        default=MOST_IMAGES,
        metavar="N",
        help="of a larger run N images are shown, drawn at random; numbers are of all (default: "
        "%(default)s)",
    )
    page_options.add(parse)
    return parse


def run(
    folder: AnyPath,
    *,
    out: AnyPath | None = None,
    data_dir: Path | None = None,
    attack: Path | None = None,
    most_images: int = MOST_IMAGES,
    shown: PageOptions = _NOTHING,
) -> AnyPath:
    """Makes the page of a run and writes it; returns where."""
    file = page_of_run.page_file(folder) if out is None else out
    if out is not None:
        page_of_run.check_file(out)
    missing: list[str] = []
    result = report.read(
        folder, warn=lambda text: missing.append(f"No image is shown: {one_line(text)}.")
    )
    if attack is None and isinstance(folder, Path) and (folder / _ATTACK).is_dir():
        attack = folder / _ATTACK
    elif attack is not None and not (attack / LINES).is_file():
        got = storage.lacking(attack, "attack the run into it, or leave --attack out")
        raise FileNotFoundError(f"--attack {attack}: expected a folder with {LINES}, got {got}")
    named, sizes, lacking = earlier_page.beside(result, shown, data_dir=data_dir)
    missing += lacking
    evidence = _evidence_of(folder, missing)
    saved = _table_of(folder, missing)
    page = page_of_run.made_page(
        named,
        saved,
        lambda rows: earlier_images.images_of(result, rows, data_dir=data_dir),
        evidence=evidence,
        attack=attack,
        object_sizes=sizes,
        missing=missing,
        most_images=most_images,
    )
    of_boxes = [] if sizes is None else [f"{sizes.source}: {line}" for line in sizes.said]
    for line in (*page.missing, *of_boxes):
        program.say(line)
    page_of_run.write_page(page.html, file)
    return file


def beside(
    folders: Sequence[AnyPath],
    out: AnyPath,
    *,
    class_names: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Writes a page of several runs beside each other."""
    page_of_run.check_file(out)
    runs = [
        Named(str(folder), page_options.with_names(report.read(folder), class_names, data_dir))
        for folder in folders
    ]
    page_of_run.write_page(compare_page.page_of(runs), out)


def _evidence_of(folder: AnyPath, missing: list[str]) -> SavedEvidence | None:
    """What a run on evidence found; None where there is none, and damage is said to be missing."""
    if not (folder / "evidence").is_dir():
        return None
    try:
        return evidence_store.load_evidence(folder / "evidence")
    except (ValueError, OSError) as error:
        missing.append(f"The page does without evidence: {_said(error)}.")
        return None


def _table_of(folder: AnyPath, missing: list[str]) -> SavedTable | None:
    """The table of a run; None where there is none, and why is added to what is missing."""
    if not (folder / "tables").is_dir():
        if not (folder / "evidence").is_dir():
            missing.append("The tables of the run are not there, so there are no maps.")
        return None
    try:
        saved = from_tables.table_of(folder)
        for line in saved_table.unlike_metadata(folder / "tables", saved.about):
            missing.append(
                f"{one_line(line)}; the page does without it, and other programs that read zarr "
                "cannot: give the command of the run again to mend it."
            )
        return saved
    except (ValueError, OSError) as error:
        missing.append(f"There are no maps: {_said(error)}.")
        return None


def _said(error: Exception) -> str:
    """An error in one line; the settings that it names are no options of this program."""
    is_plain = isinstance(error, OSError) and error.strerror is not None
    return one_line(message(error) if is_plain else str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(sys.argv[1:] if argv is None else argv)
    if len(arguments.runs) > 1:
        check_not_typed(arguments, _OF_ONE, "with several runs, whose images are named alone")
        if arguments.out is None:
            raise ValueError("--out: expected a file for the page of several runs, got none")
        beside(
            arguments.runs,
            arguments.out,
            class_names=arguments.class_names,
            data_dir=arguments.data_dir,
        )
        print(f"{arguments.out}")
        return 0
    file = run(
        arguments.runs[0],
        out=arguments.out,
        data_dir=arguments.data_dir,
        attack=arguments.attack,
        most_images=arguments.most_images,
        shown=page_options.read(arguments),
    )
    print(f"{file}")
    return 0
