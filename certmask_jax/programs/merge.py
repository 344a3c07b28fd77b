"""Puts the shares of a run together: ``certmask merge RUN``.

RUN is the folder of a run whose shares (``certmask certify --shard I/N``) are in it; or give the
folders of the shares, wherever they are, and ``--out``. The result is that of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from certmask_jax.files.storage import AnyPath
from certmask_jax.programs import (
    earlier_images,
    earlier_page,
    page_of_run,
    paths,
    printing,
    program,
)
from certmask_jax.programs.command_line import CommandLine
from certmask_jax.programs.from_tables import certify_saved
from certmask_jax.programs.number_options import number
from certmask_jax.programs.run_folder import check_out, share_tables, write_report
from certmask_jax.tables import merging, saved_table


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
        help="certify only images whose logit margins are all above E (default: %(default)s)",
    )
    printing.add(parse)
    return parse


def run(
    runs: Sequence[AnyPath], out: AnyPath | None, margin_guard: float, style: str = "table"
) -> None:
    """Merges, writes the run folder and prints the table."""
    runs = merging.distinct(runs, _say)
    shares = share_tables(runs[0]) if len(runs) == 1 else []
    if shares:
        out = runs[0] if out is None else out
    elif out is None:
        raise ValueError(
            f"expected a folder with shares (shard-0-of-4, ...), or --out and the folders of all "
            f"shares, got {', '.join(map(str, runs))}"
        )
    else:
        shares = [folder / "tables" if (folder / "tables").is_dir() else folder for folder in runs]
        shares = merging.distinct(shares, _say)
    check_out(out)
    merging.merge(shares, out / "tables", warn=_say)
    saved = saved_table.load(out / "tables")
    result = certify_saved(saved, out, margin_guard=margin_guard)
    write_report(result, out, _say)
    page_of_run.try_page(
        result,
        saved,
        lambda rows: earlier_images.images_of(result, rows),
        out,
        beside=earlier_page.at_once,
    )
    print(printing.text_of(result, style))
    print(f"\nresults of {len(shares)} shares in {out}", file=printing.words_to(style))


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
