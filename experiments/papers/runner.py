"""Makes a table of a paper on the data and weights at hand: one certify run for each threat.

    python -m experiments.papers.patchcleanser table2 --dataset cifar10 --data-dir DIR \\
        --model cifar_resnet20 --weights FILE --num-images 200

All other options are certify's. A run that was stopped goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from certmask_jax.certification import report
from certmask_jax.files import fingerprint, processes
from certmask_jax.pages.object_sizes import ObjectSizes
from certmask_jax.programs import (
    boxes_of_run,
    certification_run,
    evidence_entries,
    own_process,
    page_options,
    program,
)
from certmask_jax.programs.certification_config import check_modes, read_config
from certmask_jax.programs.certification_job import opened
from certmask_jax.programs.certification_options import parser as certify_parser
from certmask_jax.programs.command_line import CommandLine, check_not_typed, check_uses
from certmask_jax.programs.page_options import PageOptions
from experiments.papers import accuracy, by_class, by_object, mask_counts, run_times, sheets
from experiments.papers.recipes import Job, Paper, Row, Shows, Table
from experiments.papers.sheets import Sheet

QUICK = 20  # images
_CHEAPEST = "double_masking:masks_per_axis=2"  # a run has to have some defense
_OWN = ("rows_of", "quick", "out", "object_boxes")
_GIVEN = ("--patch", "--patch-area", "--defense")
"""What rows say, as certify calls it."""

_TAKEN = ("patch", "patch_area", "sizes", "patches", "defense", "from_tables", "list", "format")
_FAMILIES = {
    "cifar10": ["CIFAR-10"],
    "cifar100": ["CIFAR-100"],
    "imagenette": ["ImageNette"],
    "imagenet2012": ["ImageNet"],
    "tfds:oxford_flowers102": ["Flowers-102"],
    "tfds:svhn_cropped": ["SVHN"],
}


def parser(paper: Paper) -> CommandLine:
    """The command line: certify's, and the table."""
    parse = certify_parser()
    parse.prog = f"python -m experiments.papers.{paper.name}"
    tables = "; ".join(f"{table.name}, {table.title}" for table in paper.tables)
    parse.description = (
        f"{paper.title}, {paper.reference}: its figures beside those of the data and weights at "
        f"hand. Tables: {tables}. Not here: {paper.without}"
    )
    parse.epilog = None
    for action in parse._actions:
        if action.dest in (*_TAKEN, "shard"):
            action.help = argparse.SUPPRESS
    parse.add_argument("table", metavar="TABLE", help="one of those above")
    group = parse.add_argument_group("which of the table")
    group.add_argument(
        "--rows-of",
        metavar="DATA",
        help="rows of one of the paper's data sets, such as ImageNet or CIFAR-10, or all (default: "
        "those of --dataset, else all)",
    )
    group.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK} images (default: all, or --num-images)",
    )
    return parse


def run(paper: Paper, words: Sequence[str]) -> int:
    """Runs what a table needs, writes its files, and prints it."""
    arguments = parser(paper).parse_args(words)
    table = paper.table(arguments.table)
    if table.shows is Shows.COUNTS:
        check_uses(arguments, {"table", "rows_of", "out"}, f"with {table.name}, which runs nothing")
    check_not_typed(arguments, _TAKEN, "here, as the table says it")
    check_not_typed(arguments, ("shard",), "here, as a table is made of whole runs")
    if table.shows is not Shows.OBJECTS:
        check_not_typed(arguments, ("object_boxes",), f"with {table.name}")
    if arguments.quick and arguments.num_images is not None:
        raise ValueError("--quick: expected it or --num-images, got both")
    table = _chosen(table, arguments)
    if table.shows in (Shows.CLASSES, Shows.OBJECTS):  # those of one data set
        table = dataclasses.replace(table, rows=table.rows[:1])
    own = (*_OWN, "dry_run") if table.shows is Shows.TIMES else _OWN
    passed = parser(paper).without(words, own)
    if arguments.quick:
        passed += ["--num-images", str(QUICK)]
    root = arguments.out or Path("runs/papers") / _name(paper, table, passed)
    sheets.check_folder(paper, table, root)
    if table.shows is Shows.COUNTS:
        return _finished(paper, table, mask_counts.sheet_of(table), root)
    jobs = _jobs(table, arguments, passed)
    with _as_rows_say(table):
        if table.shows is Shows.TIMES and arguments.dry_run:
            print(run_times.plan_of(table, jobs))
            return 0
        if table.shows is Shows.TIMES:
            return _finished(paper, table, run_times.sheet_of(table, jobs), root)
        return _from_runs(paper, table, arguments, jobs, root)


def _from_runs(
    paper: Paper,
    table: Table,
    arguments: argparse.Namespace,
    jobs: Mapping[str, Job],
    root: Path,
) -> int:
    """Certifies what a table needs, and makes it of that."""
    boxes = _boxes(arguments, jobs) if table.shows is Shows.OBJECTS else None
    results: dict[str, dict[str, Any]] = {}
    reports: dict[str, report.Report] = {}
    for patch, (options, specs) in jobs.items():
        out = root / patch.replace("--", "").replace(" ", "-").replace("%", "")
        if not arguments.dry_run:
            options = [*options, "--out", str(out)]
        program.say(f"{patch}: {', '.join(specs)}")
        with contextlib.redirect_stdout(sys.stdout if arguments.dry_run else sys.stderr):
            status = _certified(options)
        if status:
            return status
        if not arguments.dry_run:
            results[patch] = json.loads((out / report.RESULTS).read_bytes())
            if table.shows is not Shows.ACCURACY:
                reports[patch] = report.read(out)
    if arguments.dry_run:
        return 0
    if boxes is not None:
        sizes = boxes(reports[table.rows[0].patch])
        sheet = by_object.sheet_of(table, results, reports, sizes)
    elif table.shows is Shows.CLASSES:
        reports = {
            patch: page_options.with_names(one, arguments.class_names)
            for patch, one in reports.items()
        }
        sheet = by_class.sheet_of(table, results, reports)
    else:
        sheet = accuracy.sheet_of(table, results)
    return _finished(paper, table, sheet, root)


def _certified(options: Sequence[str]) -> int:
    """What certify does, and its exit status; errors are raised."""
    arguments = certify_parser().parse_args(options)
    check_modes(arguments)
    status = certification_run.run(read_config(arguments), program.typed("certify", options))
    processes.wait_for_all("end")
    return status


@contextlib.contextmanager
def _as_rows_say(table: Table) -> Iterator[None]:
    """Lets errors about what the rows of a table say name the table: nobody typed these options."""
    try:
        yield
    except ValueError as error:
        if re.split("[: ]", str(error))[0] not in _GIVEN:
            raise
        raise ValueError(
            f"TABLE {table.name}: its rows do not fit these images or this model (certify says "
            f"{error}); give others that they fit, or other rows with --rows-of"
        ) from error


def main(paper: Paper) -> NoReturn:
    """Runs the command and ends the process."""
    own_process.leave(
        lambda: program.run(
            lambda: run(paper, sys.argv[1:]),
            interrupted="interrupted; give the same command again to go on",
        )
    )


def _finished(paper: Paper, table: Table, sheet: Sheet, root: Path) -> int:
    files = sheets.write(paper, table, sheet, root)
    print(sheets.as_markdown(paper, table, sheet))
    print(f"\nin {root}: {', '.join(files)}", file=sys.stderr)
    return 0


def _jobs(table: Table, arguments: argparse.Namespace, passed: Sequence[str]) -> dict[str, Job]:
    """The options of certify for each patch of a table, with the defenses that the model can."""
    config = read_config(arguments)
    has_local = any(evidence_entries.is_local(row.defense) for row in table.rows) and (
        config.model.with_card().create().local is not None
    )
    jobs = {}
    for patch, rows in _by_patch(table):
        specs = dict.fromkeys(row.defense or _CHEAPEST for row in rows if _runs(row, has_local))
        if len(specs) > 1 and not any(row.defense == _CHEAPEST for row in rows):
            specs.pop(_CHEAPEST, None)  # others are there for the model without a defense
        if specs:
            each = [word for spec in specs for word in ("--defense", spec)]
            jobs[patch] = Job([*passed, *patch.split(), *each], list(specs))
    return jobs


def _boxes(
    arguments: argparse.Namespace, jobs: Mapping[str, Job]
) -> Callable[[report.Report], ObjectSizes]:
    """What gives the sizes of objects, as far as they are known read before any long work."""
    file = arguments.object_boxes
    if file is None:
        raise ValueError(
            f"{boxes_of_run.OPTION}: required for {arguments.table}, and not given (--help "
            "explains)"
        )
    words = next(iter(jobs.values())).options
    job = opened(read_config(certify_parser().parse_args(words)), "")
    shown = page_options.before(PageOptions(object_boxes=file), job.dataset, job.provenance)

    def sizes(of: report.Report) -> ObjectSizes:
        object_sizes = page_options.sizes_of(shown, of, page_options.sizes_in(job.dataset))
        assert object_sizes is not None  # boxes were given
        return object_sizes

    return sizes


def _chosen(table: Table, arguments: argparse.Namespace) -> Table:
    known = sorted({row.data for row in table.rows})
    asked = arguments.rows_of
    if asked not in (None, "all", *known):
        raise ValueError(f"--rows-of: expected all or one of {', '.join(known)}, got {asked!r}")
    if asked is None:
        fits = [data for data in _FAMILIES.get(arguments.dataset, []) if data in known]
        return table.of(fits or known)
    return table if asked == "all" else table.of([asked])


def _by_patch(table: Table) -> Iterator[tuple[str, list[Row]]]:
    for patch in dict.fromkeys(row.patch for row in table.rows):
        yield patch, [row for row in table.rows if row.patch == patch]


def _runs(row: Row, has_local: bool) -> bool:
    """Whether the model can: some defenses need local logits."""
    return has_local or not evidence_entries.is_local(row.defense)


def _name(paper: Paper, table: Table, passed: Sequence[str]) -> str:
    """Of the folder: rows of other data are another table."""
    facts = {"options": list(passed), "rows_of": sorted({row.data for row in table.rows})}
    return f"{paper.name}-{table.name}-{fingerprint.of_facts(facts)[:8]}"
