"""Puts the shares of a run together: ``certmask merge RUN``.

RUN is the folder of a run whose shares (``certmask certify --shard I/N``) are in it; or give the
folders of the shares, wherever they are, and ``--out``. The result is that of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from certmask_jax.certification.evidence_verdicts import check_guard_of
from certmask_jax.files.storage import AnyPath, lacking
from certmask_jax.programs import (
    earlier_images,
    earlier_page,
    page_of_run,
    paths,
    printing,
    program,
)
from certmask_jax.programs.command_line import CommandLine
from certmask_jax.programs.evidence_entries import is_on_evidence
from certmask_jax.programs.from_tables import certify_folder
from certmask_jax.programs.number_options import number
from certmask_jax.programs.run_folder import (
    check_out,
    evidence_of,
    shares_in,
    tables_of,
    write_report,
)
from certmask_jax.tables import evidence_merging, evidence_store, merging, saved_table


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("merge"), description=__doc__)
    parse.add_argument(
        "runs",
        nargs="+",
        type=paths.run_path,
        metavar="RUN",
        help="folder of a run with its shares in it, or the folders of all shares",
    )
    parse.add_argument(
        "--out",
        type=paths.run_path,
        metavar="RUN",
        help="the run that is made (default: a lone RUN)",
    )
    parse.add_argument(
        "--margin-guard",
        type=number(least=0),
        default=0.0,
        metavar="E",
        help="certify only images whose logit margins are all above E, or on evidence that no "
        "errors below E/2 change (default: %(default)s)",
    )
    printing.add(parse)
    return parse


def run(
    runs: Sequence[AnyPath], out: AnyPath | None, margin_guard: float, style: str = "table"
) -> None:
    """Merges, writes the run folder and prints the table."""
    runs = merging.distinct(runs, _say)
    wanted = "a folder with shares (shard-0-of-4, ...), or --out and the folders of all shares"
    for one in runs:
        if not one.is_dir():
            what = wanted if out is None else "a folder with a share"
            raise FileNotFoundError(f"{one}: expected {what}, got {lacking(one, 'begin it first')}")
    shares = shares_in(runs[0]) if len(runs) == 1 else []
    tables = tables_of(shares)
    if shares:
        out = runs[0] if out is None else out
    elif out is None:
        if len(runs) > 1:
            raise ValueError(f"expected {wanted}, got {', '.join(map(str, runs))}")
        got = lacking(runs[0], "run its shares first")
        raise ValueError(f"{runs[0]}: expected {wanted}, got {got}")
    else:
        shares = runs
        tables = merging.distinct([one for run in runs for one in _tables_of(run)], _say)
    evidence = evidence_of(shares)
    parts = merging.distinct([*shares, *tables, *evidence])
    written = (out, out / "tables", out / evidence_store.FOLDER)
    if any(merging.distinct([*parts, folder]) == parts for folder in written):
        raise FileExistsError(
            f"--out {out}: expected a folder of its own for the whole run, got one of its parts; "
            "choose another name"
        )
    check_out(out)
    _check_kinds(tables, evidence)
    if evidence:  # before anything is written
        evidence_merging.check(evidence)
        record = evidence_store.recorded(evidence[0])
        check_guard_of({} if record is None else record["fingerprint"], margin_guard)
    saved, saved_evidence = None, None
    if tables:
        merging.merge(tables, out / "tables", warn=_say)
        saved = saved_table.load(out / "tables")
    if evidence:
        evidence_merging.merge(evidence, out / evidence_store.FOLDER, warn=_say)
        saved_evidence = evidence_store.load_evidence(out / evidence_store.FOLDER)
    result = certify_folder(out, saved, margin_guard=margin_guard)
    write_report(result, out, _say)
    page_of_run.try_page(
        result,
        saved,
        lambda rows: earlier_images.images_of(result, rows),
        out,
        evidence=saved_evidence,
        beside=earlier_page.at_once,
    )
    print(printing.text_of(result, style))
    count = len(tables or evidence)
    print(f"\nresults of {count} shares in {out}", file=printing.words_to(style))


def _tables_of(run: AnyPath) -> list[AnyPath]:
    """The table of a share that is given, or that folder itself; none of one on evidence alone."""
    if (run / "tables").is_dir():
        return [run / "tables"]
    return [] if evidence_of([run]) else [run]


def _check_kinds(tables: Sequence[AnyPath], evidence: Sequence[AnyPath]) -> None:
    """``FileNotFoundError`` for a run whose shares lack all tables, or all evidence."""
    of_evidence = evidence_store.recorded(evidence[0]) if evidence else None
    has_table = bool(tables) and (tables[0] / saved_table.ABOUT).is_file()
    of_table = saved_table.recorded(tables[0]) if has_table else None
    about = of_table if of_evidence is None else of_evidence["about"]
    specs = ({} if about is None else about).get("provenance", {}).get("defense", ())
    for is_lacking, what, wanted in (
        (not evidence, "evidence", [spec for spec in specs if is_on_evidence(spec)]),
        (not tables, "tables", [spec for spec in specs if not is_on_evidence(spec)]),
    ):
        if is_lacking and wanted:
            raise FileNotFoundError(
                f"expected shares with {what}, of --defense {wanted[0]}, but none has begun with "
                "that; go on with the shares, and give their own folders"
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    run(arguments.runs, arguments.out, arguments.margin_guard, arguments.format)
    return 0
