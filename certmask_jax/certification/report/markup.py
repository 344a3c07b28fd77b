"""The table of a report for documents: Markdown and LaTeX."""

from __future__ import annotations

import re

from certmask_jax.certification.report import labels, notes, numbers
from certmask_jax.certification.report.layout import printable
from certmask_jax.certification.report.records import DefenseResult, Report

_NUMBERS = ("masked images", "p", "gained", "lost")  # columns that end on the right
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row these two would be read as its options
    "*": "{*}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_markdown(report: Report) -> str:
    """The table in Markdown, with pipes, and what it is of in a line above."""
    return table_in_markdown("\n".join(_heading(report)), _cells(report))


def table_in_markdown(heading: str, cells: list[list[str]]) -> str:
    """Any table in Markdown: a heading of a line or more, titles, and rows."""
    header, *rows = cells
    rule = ["--:" if title in _NUMBERS else "---" for title in header]
    above = [_markdown(line) for line in heading.splitlines()]
    lines = [f"| {' | '.join(map(_markdown, row))} |" for row in (header, *rows)]
    lines.insert(1, f"|{'|'.join(rule)}|")
    return "\n".join([*above, "", *lines])


def as_latex(report: Report) -> str:
    """The table as a plain ``tabular``, which needs no package; what it is of is a comment."""
    return table_in_latex("\n".join(_heading(report)), _cells(report))


def table_in_latex(heading: str, cells: list[list[str]]) -> str:
    """Any table as a plain ``tabular``; a heading is a comment above."""
    header, *rows = cells
    aligned = "".join("r" if title in _NUMBERS else "l" for title in header)
    above = [f"% {line}" for line in heading.splitlines()]
    lines = [f"{' & '.join(map(_latex, row))} \\\\" for row in (header, *rows)]
    lines.insert(1, r"\hline")
    return "\n".join(
        [
            *above,
            f"\\begin{{tabular}}{{{aligned}}}",
            r"\hline",
            *lines,
            r"\hline",
            r"\end{tabular}",
        ]
    )


def _heading(report: Report) -> list[str]:
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    against = [f"against {labels.against(threats[0])}"] if len(threats) == 1 else []
    first, *more = notes.heading(report)
    return ["; ".join([first, *against]) + "; % of images [95% intervals]", *more]


def _cells(report: Report) -> list[list[str]]:
    """Titles, and a row for each result; over patch sizes those of a curve together."""
    order = [number for curve in report.certified_size for number in curve.results]
    results = [report.defenses[number] for number in order] or list(report.defenses)
    several = len({result.threat for result in results}) > 1
    others = any(map(numbers.other_conditions, results))
    titles = ["defense", *["patch"] * several, "guarantee", "masks", "masked images", "clean"]
    rows = [[*titles, "worst case", *["paper's condition"] * others]]
    return rows + [_row(result, several, others) for result in results]


def _row(result: DefenseResult, several: bool, others: bool) -> list[str]:
    patch = [labels.patch(result.threat)] * several
    masks = labels.masks(result.mask_set, result.threat).replace(" masks of ", " of ", 1)
    conditions = [
        f"{name} {numbers.condition(result, name)}" for name in numbers.other_conditions(result)
    ]
    return [
        printable(result.spec or result.name),
        *patch,
        result.guarantee,
        masks,
        str(result.masked_images),
        numbers.clean(result),
        numbers.worst_case(result),
        *[", ".join(conditions)] * others,
    ]


def _markdown(text: str) -> str:
    """Text that stays what it is in a cell; underscores inside of words do anyway."""
    return re.sub(r"([\\`*<|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:]))", r"\\\1", text)


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace(r"\textgreater{}=", r"$\geq$")
