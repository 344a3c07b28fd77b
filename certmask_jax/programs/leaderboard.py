"""Makes a leaderboard of finished runs: ``certmask leaderboard RUN [RUN ...] --out FOLDER``.

A page and one JSON file. A run gets places for its defenses if it says how it was made, and if its
rows of images give the numbers that it prints; where its tables are there, its verdicts are derived
anew from them. Claims of papers stand beside, marked as claims. What is refused is named with why,
and so is a folder that cannot be read, beside which the others have their places.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certmask_jax._text import counted, json_of, words_of
from certmask_jax.certification import report
from certmask_jax.certification.report import Report
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages import leaderboard
from certmask_jax.pages.leaderboard import Attacked, Candidate
from certmask_jax.programs import evidence_entries, from_tables, paths, program
from certmask_jax.programs.attacking.attack_folder import SUMMARY
from certmask_jax.programs.command_line import CommandLine

_ATTACKS = ("attack", "audit", "patches", "universal")
"""Folders of attacks in that of a run, as programs name them where nothing else is said."""


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
        type=paths.local_path,
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
    candidates, unreadable = [], dict[str, str]()
    failed: Exception | None = None
    for folder in folders:
        try:
            candidates.append(_candidate(folder))
        except (ValueError, OSError) as error:
            failed = failed or error
            unreadable[str(folder)] = program.one_line(program.message(error))
    if failed is not None and not candidates:
        raise failed
    content = leaderboard.board(candidates, unreadable)
    out.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(out / leaderboard.PAGE, leaderboard.board_page(content))
    text = json.dumps(fingerprint.plain(content), indent=1, allow_nan=False)
    whole_files.write_text(out / leaderboard.ENTRIES, text + "\n")
    entries = sum(len(task["entries"]) for task in content["tasks"])
    for one in content["refused"]:
        who = ", ".join(filter(None, [one["run"], one.get("defense")]))
        program.say(f"refused: {who}: {one['why']}")
    return {"entries": entries, "refused": len(content["refused"])}


def _candidate(folder: AnyPath) -> Candidate:
    result = report.read(folder)
    recomputed = _is_recomputed(folder, result)
    return Candidate(str(folder), result, recomputed, _attacks(folder))


def _is_recomputed(folder: AnyPath, result: Report) -> bool:
    """Whether the tables of a run give its verdicts; ``ValueError`` if they give others."""
    masking = [d for d in result.defenses if not evidence_entries.is_on_evidence(d.spec)]
    if not (folder / "tables").is_dir() or len(masking) < len(result.defenses) or not result.ids:
        return False
    try:
        saved = from_tables.table_of(folder)
        found = from_tables.certify_saved(saved, folder, margin_guard=result.margin_guard)
    except FileNotFoundError:
        return False
    there = {(d.spec, d.threat): d for d in found.defenses}
    for one in masking:
        other = there.get((one.spec, one.threat))
        if other is None:
            return False
        same = np.array_equal(one.per_image["worst_case"], other.per_image["worst_case"])
        if not same or not np.array_equal(one.per_image["answer"], other.per_image["answer"]):
            raise ValueError(
                f"{folder}: expected the verdicts that its tables give, but per_image.csv has "
                f"others for {one.spec}; print it anew with certify --from-tables"
            )
    return True


def _attacks(folder: AnyPath) -> dict[str, Attacked]:
    """What attacks in the folder of a run came to, for each defense that they were aimed at.

    A patch for many images, or one that was given, is aimed at none of them: it may contradict a
    certificate, and what it leaves right says nothing beside patches that were searched for.
    """
    found: dict[str, Attacked] = {}
    against: dict[str, set[str]] = {}
    for name in _ATTACKS:
        file = folder / name / SUMMARY
        try:
            results = json_of(file.read_bytes())["results"]
            # Of a patch for many images each half has its own.
            lines = [*itertools.chain(*results.values())] if isinstance(results, dict) else results
            for one in lines:
                against.setdefault(str(one["defense"]), set()).update(_contradicted(one))
                if one.get("attacked"):
                    found.setdefault(str(one["defense"]), _attacked(one))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: is damaged ({words_of(error)})") from error
    nothing = Attacked(0, 0, 0)
    return {
        spec: found.get(spec, nothing)._replace(contradictions=len(images))
        for spec, images in against.items()
        if spec in found or images
    }


def _contradicted(line: Mapping[str, Any]) -> list[str]:
    """Images whose certificate an attack contradicts; an audit has them beside the certificates."""
    if "contradictions" in line:
        return list(map(str, line["contradictions"]))
    certificates = line["certificates"]  # None of the plain model
    return [] if certificates is None else list(map(str, certificates["contradicted"]))


def _attacked(line: Mapping[str, Any]) -> Attacked:
    images, attacked = int(line["images"]), int(line["attacked"])
    left_right = None
    # An audit counts what it did not attack as right.
    if line["under_attack"] is not None and attacked >= line.get("right", attacked):
        low, high = line["intervals"]["under_attack"]
        left_right = float(line["under_attack"]), (float(low), float(high))
    return Attacked(images, attacked, 0, left_right)


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
