"""Makes a leaderboard of finished runs: ``certmask leaderboard RUN [RUN ...] --out FOLDER``.

A page and one JSON file. A run gets places for its defenses if it says how it was made, and if its
specs and rows of images give what it prints; where its tables are there, its verdicts are derived
anew from them. Claims of papers stand beside, marked as claims. What is refused is named with why,
and so is a folder that cannot be read, beside which the others have their places.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from certmask_jax._text import counted
from certmask_jax.certification import report
from certmask_jax.files import fingerprint, storage, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages import leaderboard
from certmask_jax.pages.leaderboard import Candidate
from certmask_jax.programs import paths, program, proved_anew
from certmask_jax.programs.attacks_of_run import counted_from_lines
from certmask_jax.programs.command_line import CommandLine
from certmask_jax.programs.proved_anew import ContradictedError


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("leaderboard"), description=__doc__)
    parse.add_argument(
        "runs",
        nargs="+",
        type=paths.run_path,
        metavar="RUN",
        help="folders of finished runs of certify",
    )
    parse.add_argument(
        "--out",
        type=paths.local_output,
        required=True,
        metavar="FOLDER",
        help=f"where {leaderboard.PAGE} and {leaderboard.ENTRIES} go; those that are there are "
        "replaced",
    )
    return parse


def run(folders: Sequence[AnyPath], out: Path) -> dict[str, int]:
    """Makes the leaderboard; returns how many entries and refusals there are.

    Raises:
      ValueError, OSError: where no folder at all can be read; nothing is replaced then.
    """
    storage.check_no_file(out, f"--out {out}")
    candidates, left_out = [], dict[str, str]()
    failed: list[Exception] = []
    for folder in folders:
        try:
            candidates.append(_candidate(folder))
        except ContradictedError as error:
            said = program.one_line(program.message(error))
            left_out[str(folder)] = f"its files contradict each other: {said}"
        except (ValueError, OSError) as error:
            failed.append(error)
            said = program.one_line(program.message(error))
            left_out[str(folder)] = f"left out, as it cannot be read: {said}"
    if len(failed) == len(folders):
        raise failed[0]
    content = leaderboard.board(candidates, left_out)
    out.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(out / leaderboard.PAGE, leaderboard.board_page(content))
    text = json.dumps(fingerprint.plain(content), indent=1, allow_nan=False)
    whole_files.write_text(out / leaderboard.ENTRIES, text + "\n")
    entries = sum(len(task["entries"]) for task in content["tasks"])
    for one in content["refused"]:
        who = ", ".join(filter(None, [one["run"], one.get("defense")]))
        program.say(f"refused: {who}: {one['why']}")
    for one in content["repeated"]:
        program.say(
            f"shown once: {one['run']}, {one['defense']}: its rows are those of {one['as']}"
        )
    return {"entries": entries, "refused": len(content["refused"])}


def _candidate(folder: AnyPath) -> Candidate:
    result, recomputed = report.read(folder), False
    if not result.ids:
        return Candidate(str(folder), result)
    result, recomputed = proved_anew.of_run(folder, result)
    return Candidate(str(folder), result, recomputed, counted_from_lines(folder, result))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(sys.argv[1:] if argv is None else argv)
    counts = run(arguments.runs, arguments.out)
    print(
        f"{arguments.out / leaderboard.PAGE}: {counted(counts['entries'], 'entry', 'entries')}, "
        f"{counts['refused']} refused"
    )
    return 0
