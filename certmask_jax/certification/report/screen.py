"""The table of a report for a terminal: what does not fit into its width goes to the legend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from certmask_jax._text import counted
from certmask_jax.certification.report import labels, layout, notes, numbers, size_screen
from certmask_jax.certification.report.labels import Entry
from certmask_jax.certification.report.layout import Column
from certmask_jax.certification.report.records import DefenseResult, Report

WIDTH = 80
"""Columns of a terminal, where nobody says how many it has."""

_WIDEST_NOTES = 100  # longer lines are hard to read
_WIDEST_PATCH = 14
_SHORT = {"recovery": "rec", "detection": "det"}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """How much a table says itself; the rest is in the legend."""

    names: str  # spec, name or key
    words: bool  # guarantees and conditions by name
    masked: bool
    conditions: bool
    guarantee: bool = True
    stacked: bool = False  # intervals below the numbers


# What says more comes first.
_SHAPES = (
    _Shape("spec", words=True, masked=True, conditions=True),
    _Shape("name", words=True, masked=True, conditions=True),
    *(
        _Shape(names, words=False, masked=masked, conditions=conditions)
        for names in ("name", "key")
        for masked, conditions in ((True, True), (False, True), (True, False), (False, False))
    ),
    _Shape("key", words=False, masked=False, conditions=False, stacked=True),
    _Shape("key", words=False, masked=False, conditions=False, guarantee=False, stacked=True),
)


def as_text(report: Report, *, width: int = WIDTH) -> str:
    """The table of defenses, a legend and notes, in lines of at most ``width`` columns.

    Of a run over patch sizes a table for each defense, with a row for each size.
    """
    if report.certified_size:
        return size_screen.as_text(report, width)
    in_notes = min(width, _WIDEST_NOTES)
    top = notes.heading(report)
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    if len(threats) == 1:
        top.append(f"against {labels.against(threats[0])}")
    entries, places = labels.entries(report.defenses)
    patches, patch_legend = _patches(report)
    rows = _Rows(report, entries, places, patches)
    shape, lines = rows.best(width)
    below = [*rows.legend(shape), *patch_legend]
    explained = [
        *notes.of_columns(report, short=not shape.words),
        *notes.of_conditions(report),
        *([_masked(report)] if shape.masked else []),
        *notes.of_work(report),
        *notes.of_near_ties(report, [rows.label(n, shape) for n in range(len(places))]),
        *notes.warnings(report),
    ]
    parts = [
        layout.paragraphs(top, in_notes),
        lines,
        layout.paragraphs(below, in_notes),
        layout.paragraphs(explained, in_notes),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a report: for each result its defense (``entries[places[n]]``) and patch."""

    report: Report
    entries: Sequence[Entry]
    places: Sequence[int]
    patches: Sequence[str]  # of each result; empty where all have the same

    def best(self, width: int) -> tuple[_Shape, list[str]]:
        """The table that says most in ``width`` columns; where none fits, a paragraph a row."""
        for shape in _SHAPES:
            columns = list(self._columns(shape))
            lines = layout.table(columns, stacked=shape.stacked)
            if layout.fits(lines, width):
                return shape, lines
        header, *cells = zip(*((c.title, *c.cells) for c in columns), strict=True)
        texts = [
            ", ".join(f"{title} {cell}" for title, cell in zip(header, row, strict=True) if cell)
            for row in cells
        ]
        return shape, layout.paragraphs(texts, width)

    def label(self, number: int, shape: _Shape) -> str:
        """What a result is called: its defense, and its patch where there are several."""
        patch = [self.patches[number]] if self.patches else []
        return " ".join([getattr(self.entries[self.places[number]], shape.names), *patch])

    def legend(self, shape: _Shape) -> list[str]:
        """Lines that say of each defense, at each patch, what the table does not."""
        lines = []
        for place, entry in enumerate(self.entries):
            numbers_of = [n for n, other in enumerate(self.places) if other == place]
            said = [self._described(self.report.defenses[n], shape) for n in numbers_of]
            key = {"key": entry.key, "name": entry.name_key}.get(shape.names, "")
            begin = f"{key} = {entry.spec}" if key else entry.spec
            if len(set(said)) == 1:
                lines.append(f"{begin}: {said[0]}")
                continue
            each = [f"{self.patches[n]}: {text}" for n, text in zip(numbers_of, said, strict=True)]
            lines.append(f"{begin}: {'; '.join(each)}")
        return lines

    def _columns(self, shape: _Shape) -> Iterator[Column]:
        results = self.report.defenses
        names = [getattr(self.entries[place], shape.names) for place in self.places]
        yield Column("defense" if shape.names != "key" else "", tuple(names))
        if self.patches:
            yield Column("patch", tuple(self.patches))
        if shape.guarantee and shape.words:
            yield Column("guarantee", tuple(d.guarantee for d in results))
        elif shape.guarantee:
            yield Column("for", tuple(_SHORT.get(d.guarantee, d.guarantee) for d in results))
        if shape.masked:
            yield Column("masked", tuple(str(d.masked_images) for d in results), right=True)
        yield Column("clean", tuple(map(numbers.clean, results)))
        yield Column("worst case", tuple(map(numbers.worst_case, results)))
        if self._has_conditions(shape):
            title = "paper's condition" if shape.words else "paper's"
            cells = (_conditions(d, by_name=shape.words) for d in results)
            yield Column(title, tuple(cells))

    def _has_conditions(self, shape: _Shape) -> bool:
        """Whether the papers' conditions are a column: of short words one number a row."""
        others = [len(numbers.other_conditions(d)) for d in self.report.defenses]
        return shape.conditions and any(others) and (shape.words or max(others) == 1)

    def _described(self, result: DefenseResult, shape: _Shape) -> str:
        parts = [labels.masks(result.mask_set, result.threat)]
        if not shape.guarantee:
            parts.insert(0, result.guarantee)
        if not shape.masked:
            parts.append(counted(result.masked_images, "masked image"))
        alerts = numbers.false_alerts(result)
        if alerts:
            parts.append(f"false alerts on clean images {alerts}")
        others = numbers.other_conditions(result)
        if others and not self._has_conditions(shape):
            parts.append(f"paper's condition {_conditions(result, by_name=True)}")
        elif others and not shape.words:
            parts.append(f"paper's condition {others[0]}")
        return ", ".join(parts)


def _conditions(result: DefenseResult, *, by_name: bool) -> str:
    """The paper's conditions that are not the worst case itself."""
    return ", ".join(
        f"{name} {numbers.condition(result, name)}" if by_name else numbers.condition(result, name)
        for name in numbers.other_conditions(result)
    )


def _patches(report: Report) -> tuple[list[str], list[str]]:
    """What the patch of each result is called, if there are several, and a legend of long names."""
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    if len(threats) < 2:
        return [], []
    names = dict(zip(threats, labels.unique(list(map(labels.patch, threats))), strict=True))
    legend = []
    if max(map(len, names.values())) > _WIDEST_PATCH:
        for number, threat in enumerate(threats, 1):
            names[threat] = f"P{number}"
            legend.append(f"P{number} = {labels.against(threat)}")
    return [names[d.threat] for d in report.defenses], legend


def _masked(report: Report) -> str:
    whole = "; 0: the image itself, once" * any(not d.masked_images for d in report.defenses)
    return f"masked: distinct masked images of an image{whole}"
