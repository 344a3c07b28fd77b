"""Prints runs beside each other, by their results alone: ``certmask compare RUN RUN``.

Two runs on the same images are compared image by image: paired differences with intervals, and how
many images changed. Of more runs each is compared with the first. One run alone is its table. With
--format markdown, latex or csv the table is one for documents. ``certmask report`` names the images
on a page.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence

from certmask_jax._text import counted
from certmask_jax.certification import report
from certmask_jax.certification.report import layout, markup, numbers
from certmask_jax.certification.report.paired import Match, Paired, matches
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages.compare_page import Named, alone, difference, p_value, unlike
from certmask_jax.pages.run_said import sentences
from certmask_jax.programs import paths, printing, program
from certmask_jax.programs.command_line import CommandLine

_ENDS = ("", "_low", "_high")
_NAMES = {"certified": "worst_case_accuracy", "clean": "clean_accuracy"}
_TITLES = ("runs", "defense", "what", "first", "second", "difference", "p", "gained", "lost")


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("compare"), description=__doc__)
    parse.add_argument(
        "runs",
        nargs="+",
        type=paths.run_path,
        metavar="RUN",
        help="folders of finished runs of certify, on the same images",
    )
    printing.add(parse)
    return parse


def table_of(runs: Sequence[Named], style: str = "table") -> str:
    """The table that is printed.

    Args:
      runs: two or more.
      style: one of ``printing.FORMATS``.

    Raises:
      ValueError: for runs of other images, or without a defense in common.
    """
    first, *others = runs
    rows = [
        cells
        for other in others
        for match in matches(first.report, other.report)
        for cells in _rows(f"{first.name}, {other.name}", match)
    ]
    heading = (
        f"{counted(first.report.num_images, 'image')}; % of images [95% intervals]; differences "
        "are of the "
        "second run less the first, paired (Newcombe); p: McNemar's exact test"
    )
    match style:
        case "csv":
            return _csv(first, others)
        case "markdown":
            return markup.table_in_markdown(heading, [list(_TITLES), *rows])
        case "latex":
            return markup.table_in_latex(heading, [list(_TITLES), *rows])
    width = printing.width_of(sys.stdout)
    shown = list(zip(*rows, strict=True))
    start = 1 if len(others) == 1 else 0
    columns = [
        layout.Column(title, tuple(cells), right=title in ("p", "gained", "lost"))
        for title, cells in list(zip(_TITLES, shown, strict=True))[start:]
    ]
    said = _said_of(first, others)
    return "\n".join(
        [
            *layout.paragraphs([heading], width),
            "",
            *layout.table(columns),
            "",
            *layout.paragraphs(said, width),
        ]
    )


def _said_of(first: Named, others: Sequence[Named]) -> list[str]:
    """What each run is of, and which defenses one has alone."""
    names = ["second"] if len(others) == 1 else [other.name for other in others]
    said = [f"first: {sentences(first.report)[0]}"]
    said += [
        f"{name}: {sentences(other.report)[0]}" for name, other in zip(names, others, strict=True)
    ]
    said += [
        unlike(("first", name), first.report, other.report)
        for name, other in zip(names, others, strict=True)
    ]
    said += [
        alone(("first", name), first.report, other.report)
        for name, other in zip(names, others, strict=True)
    ]
    return list(filter(None, said))


def _rows(runs: str, match: Match) -> list[list[str]]:
    return [
        [runs, match.name, what, one, two, difference(paired), p_value(paired),
         str(len(paired.gained)), str(len(paired.lost))]
        for what, one, two, paired in _both(match)
    ]  # fmt: skip


def _both(match: Match) -> list[tuple[str, str, str, Paired]]:
    one, two = match.first, match.second
    return [
        ("certified", numbers.worst_case(one), numbers.worst_case(two), match.certified),
        ("clean", numbers.clean(one), numbers.clean(two), match.clean),
    ]


def _csv(first: Named, others: Sequence[Named]) -> str:
    """Plain fractions, an interval in two columns."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    names = [f"{name}{end}" for name in ("first", "second", "difference") for end in _ENDS]
    runs = ["first_run", "second_run", "defense", "what"]
    rows.writerow([*runs, *names, "p_value", "gained", "lost"])
    for other in others:
        for match in matches(first.report, other.report):
            for what, _, _, paired in _both(match):
                name = _NAMES[what]
                values = [paired.first, *match.first.intervals[name]]
                values += [paired.second, *match.second.intervals[name]]
                values += [paired.difference, *paired.interval]
                rows.writerow(
                    [first.name, other.name, match.name, what]
                    + [f"{value:.6g}" for value in (*values, paired.p_value)]
                    + [str(len(paired.gained)), str(len(paired.lost))]
                )
    return text.getvalue().removesuffix("\n")


def run(folders: Sequence[AnyPath], style: str = "table") -> None:
    """Reads the runs and prints the table."""
    runs = [Named(str(folder), report.read(folder)) for folder in folders]
    if len(runs) == 1:
        print(printing.text_of(runs[0].report, style))
        return
    print(table_of(runs, style))
    if style != printing.FORMATS[0]:
        words = printing.words_to(style)
        first, *others = runs
        for line in layout.paragraphs(_said_of(first, others), printing.width_of(words)):
            print(line, file=words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(sys.argv[1:] if argv is None else argv)
    run(arguments.runs, arguments.format)
    return 0
