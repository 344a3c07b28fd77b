"""Makes a table of a paper on the data and weights at hand: one certify run for each threat.

    python -m experiments.papers.patchcleanser table2 --dataset cifar10 --data-dir DIR \\
        --model cifar_resnet20 --weights FILE --num-images 200

All other options are certify's. A run that was stopped goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from certmask_jax.certification.report.numbers import with_interval
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.programs import certify, evidence_entries, program
from certmask_jax.programs.certification_options import parser as certify_parser
from certmask_jax.programs.certification_options import read_config
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from experiments.papers.recipes import Paper, Row, Table

QUICK = 20  # images
_CHEAPEST = "double_masking:masks_per_axis=2"  # a run has to have some defense
NOT_AT_HAND = "not at hand"
_OWN = ("rows_of", "quick", "out")
_TAKEN = ("patch", "patch_area", "sizes", "patches", "defense", "from_tables", "list", "format")
_FAMILIES = {"cifar10": ["CIFAR-10"], "imagenette": ["ImageNette"], "imagenet2012": ["ImageNet"]}


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
        help="rows of the paper's ImageNet, ImageNette or CIFAR-10, or all (default: those of "
        "--dataset, else all)",
    )
    group.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK} images (default: all, or --num-images)",
    )
    return parse


def run(paper: Paper, words: Sequence[str]) -> int:
    """Runs what a table needs, writes table.md and table.json, and prints the table."""
    arguments = parser(paper).parse_args(words)
    check_not_typed(arguments, _TAKEN, "here, as the table says it")
    check_not_typed(arguments, ("shard",), "here, as a table is made of whole runs")
    if arguments.quick and arguments.num_images is not None:
        raise ValueError("--quick: expected it or --num-images, got both")
    table = _chosen(paper.table(arguments.table), arguments)
    config = read_config(arguments)
    has_local = any(evidence_entries.is_local(row.defense) for row in table.rows) and (
        config.model.with_card().create().local is not None
    )
    passed = parser(paper).without(words, _OWN)
    if arguments.quick:
        passed += ["--num-images", str(QUICK)]
    root = arguments.out or Path("runs/papers") / _name(paper, table, passed)
    results: dict[str, dict[str, Any]] = {}
    for patch, rows in _by_patch(table):
        specs = dict.fromkeys(row.defense or _CHEAPEST for row in rows if _runs(row, has_local))
        if not specs:
            continue
        out = root / patch.replace("--", "").replace(" ", "-").replace("%", "")
        options = [*passed, *patch.split()]
        for spec in specs:
            options += ["--defense", spec]
        if not arguments.dry_run:
            options += ["--out", str(out)]
        program.say(f"{patch}: {', '.join(specs)}")
        with contextlib.redirect_stdout(sys.stdout if arguments.dry_run else sys.stderr):
            status = certify.main(options)
        if status:
            return status
        if not arguments.dry_run:
            results[patch] = json.loads((out / "results.json").read_bytes())
    if arguments.dry_run:
        return 0
    found = as_record(paper, table, results)
    text = as_markdown(found)
    root.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(root / "table.json", json.dumps(found, indent=1))
    whole_files.write_text(root / "table.md", text + "\n")
    print(text)
    print(f"\nruns, table.md and table.json are in {root}", file=sys.stderr)
    return 0


def as_record(paper: Paper, table: Table, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table, JSON-able: each row with the paper's figures and ours.

    Args:
      paper, table: what is shown.
      results: ``results.json`` of the run of each patch; rows without one have no figures of ours.
    """
    rows = []
    for row in table.rows:
        found = _found(row, results.get(row.patch))
        claim = {"clean": row.clean, "certified": row.certified, "source": row.source}
        rows.append(
            {
                **{name: getattr(row, name) for name in ("label", "defense", "data", "patch")},
                "model": row.model,
                "paper": claim,
                "ours": found,
            }
        )
    some: dict[str, Any] = next(iter(results.values()), {})
    known = some.get("provenance", {})
    return {
        "paper": paper.title,
        "reference": paper.reference,
        "table": table.name,
        "title": table.title,
        "note": table.note,
        "here": {
            "dataset": known.get("dataset"),
            "model": known.get("model"),
            "weights": known.get("weights"),
            "num_images": some.get("num_images"),
            "undefended_accuracy": some.get("undefended_accuracy"),
        },
        "rows": rows,
    }


def as_markdown(found: dict[str, Any]) -> str:
    """A record as a table in Markdown, with what it is of above and its sources below."""
    here = found["here"]
    titles = ["", "the paper's data, model", "clean", "certified", "patch", "`--defense`"]
    titles += ["clean", "by the paper's condition", "worst case"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    sources: list[str] = []
    for row in found["rows"]:
        claim, ours = row["paper"], row["ours"]
        mark = ""
        if claim["source"]:
            if claim["source"] not in sources:
                sources.append(claim["source"])
            mark = f" ({sources.index(claim['source']) + 1})"
        spec = f"`{row['defense']}`" if row["defense"] else "none"
        cells = [row["label"], ", ".join(filter(None, [row["data"], row["model"]]))]
        cells += [_claimed(claim["clean"], mark), _claimed(claim["certified"], mark)]
        if ours is None:
            cells += [row["patch"].replace("--", ""), spec, "not run", "", ""]
        else:
            cells += [ours["patch"], spec, ours["clean"]]
            cells += [ours["condition"], ours["worst_case"]]
        lines.append(f"| {' | '.join(cells)} |")
    top = f"{found['paper']}, {found['table']}: {found['title']}. {found['note']}".strip()
    if here["num_images"] is None:
        measured = "Nothing was run."
    else:
        measured = (
            f"On the right: {here['num_images']:,} images of {here['dataset']}, {here['model']} "
            f"({here['weights'] or 'no file of weights'}), undefended "
            f"{100 * here['undefended_accuracy']:.1f}."
        )
    below = [f"({number}) {source}" for number, source in enumerate(sources, 1)]
    return "\n".join([top, "", measured, "", *lines, *([""] if below else []), *below])


def main(paper: Paper) -> NoReturn:
    """Runs the command and ends the process."""
    program.leave(
        lambda: program.run(
            lambda: run(paper, sys.argv[1:]),
            interrupted="interrupted; give the same command again to go on",
        )
    )


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
    return f"{paper.name}-{table.name}-{fingerprint.of_facts(passed)[:8]}"


def _found(row: Row, results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Our figures for a row, as text in percent with 95% intervals."""
    if results is not None and not row.defense:
        share = results["undefended_accuracy"]
        between = results["intervals"]["undefended_accuracy"]
        return {
            "patch": "none",
            "clean": with_interval(share, between),
            "condition": "",
            "worst_case": "",
        }
    for one in (results or {}).get("defenses", ()):
        if one["spec"] == row.defense:
            between = one["intervals"]
            name = next(iter(one["conditions"]), "worst_case_accuracy")
            condition = one["conditions"].get(name, one["worst_case_accuracy"])
            bound = "" if one["worst_case_exact"] else ">="
            worst = with_interval(one["worst_case_accuracy"], between["worst_case_accuracy"])
            return {
                "patch": _patch(one["threat"]),
                "masked_images": one["masked_images"],
                "clean": with_interval(one["clean_accuracy"], between["clean_accuracy"]),
                "condition": with_interval(condition, between[name]),
                "condition_name": name,
                "worst_case": f"{bound}{worst}",
            }
    return None


def _patch(threat: dict[str, Any]) -> str:
    """``"5x5"``; of several shapes or patches their number."""
    shapes = threat["patches"][0]
    height, width = shapes[0]
    text = f"{height}x{width}" if len(shapes) == 1 else f"{len(shapes)} shapes"
    count = len(threat["patches"])
    return text if count == 1 else f"{count} of {text}"


def _claimed(figure: float | None, mark: str) -> str:
    return NOT_AT_HAND if figure is None else f"{figure}{mark}"
