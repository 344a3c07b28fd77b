"""The table of a run over patch sizes for a terminal: for each defense a row for each size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from certmask_jax._text import counted
from certmask_jax.certification.report import labels, layout, notes, numbers
from certmask_jax.certification.report.layout import Column
from certmask_jax.certification.report.records import (
    Classifiers,
    DefenseResult,
    Report,
    SizeCurve,
)

_CLASSIFIERS: dict[Classifiers, str] = {
    "own masks": "own masks: each row is a classifier of its own. The largest size for which one "
    "of them certifies an image is a property of the image and no promise of any classifier.",
    "built for": "built for PATCH: one classifier; what it certifies holds for every smaller patch "
    "too.",
    "own rule": "own rule: it takes away as much as the patch of its row reaches, so each row is a "
    "classifier of its own, and the largest size is no promise of any.",
    "one rule": "one rule: one classifier, which knows no patch; what it certifies holds for every "
    "smaller patch too.",
}
# What a table says less of: columns that go below it, from the first.
_LEAVES_OUT = ("masked", "masks", "false alerts")
_WIDEST_NOTES = 100


def as_text(report: Report, width: int) -> str:
    """The tables of all defenses and notes, in lines of at most ``width`` columns."""
    in_notes = min(width, _WIDEST_NOTES)
    parts = [layout.paragraphs(notes.heading(report), in_notes)]
    for curves in panels(report):
        begin = f"{layout.printable(curves[0].defense)}, {curves[0].guarantee}"
        below = [*_of_classifiers(report, curves), *_of_monotony(curves[0])]
        parts.append(
            [
                *layout.wrapped(begin, width),
                *_table(report, curves, width),
                *layout.paragraphs(below, in_notes),
            ]
        )
    parts.append(layout.paragraphs([*_notes(report), *notes.warnings(report)], in_notes))
    return "\n\n".join("\n".join(part) for part in parts)


def panels(report: Report) -> list[list[SizeCurve]]:
    """The curves of each defense (over the same sizes)."""
    by_panel: dict[tuple[str, tuple[tuple[int, int], ...]], list[SizeCurve]] = {}
    for curve in report.certified_size:
        by_panel.setdefault((curve.defense, curve.sizes), []).append(curve)
    return list(by_panel.values())


def masks_of(curve: SizeCurve) -> str:
    """Which masks, or which rule, the classifiers of a curve have."""
    if curve.built_for is None:
        return curve.classifiers
    return f"built for {curve.built_for[0]}x{curve.built_for[1]}"


def passes_of_separate_tables(report: Report) -> int:
    """Forward passes of a whole table for every size and mask set, or rule, none shared."""
    each = 0
    for curve in report.certified_size:
        masked = [report.defenses[number].masked_images for number in curve.results]
        if curve.classifiers in ("own rule", "one rule"):
            masked = [count + 1 for count in masked]  # a run on evidence is on the image too
        each += masked[0] if curve.classifiers == "built for" else sum(masked)
    return each * report.num_images * report.forward_passes.get("a_masked_image", 1)


def _table(report: Report, curves: Sequence[SizeCurve], width: int) -> list[str]:
    """The rows of one defense; what does not fit stands below them, size by size."""
    columns = list(_columns(report, curves))
    sizes = columns[0].cells
    for stacked in (False, True):
        for count in range(len(_LEAVES_OUT) + 1):
            left = _LEAVES_OUT[:count]
            kept = [column for column in columns if column.title not in left]
            below = [_in_words(c, sizes) for c in columns if c.title in left]
            for titles_in in (1, 2):
                lines = layout.table(kept, stacked=stacked, titles_in=titles_in)
                if layout.fits(lines, width):
                    return [*lines, *layout.paragraphs(below, width)]
    kept = [column for column in columns if column.title not in _LEAVES_OUT]
    lines = _side_by_side(kept, width)
    if not layout.fits(lines, width):
        return layout.paragraphs((_in_words(column, sizes) for column in columns[1:]), width)
    return [*lines, *layout.paragraphs(below, width)]


def _side_by_side(columns: Sequence[Column], width: int) -> list[str]:
    """Shows as many columns beside the first as fit, and the others in a table below."""
    first, *others = columns
    lines: list[str] = []
    while others:
        count = len(others)
        while count > 1 and not layout.fits(_narrow([first, *others[:count]]), width):
            count -= 1
        lines += _narrow([first, *others[:count]])
        others = others[count:]
    return lines


def _narrow(columns: Sequence[Column]) -> list[str]:
    return layout.table(columns, stacked=True, titles_in=2)


def _columns(report: Report, curves: Sequence[SizeCurve]) -> Iterator[Column]:
    results = [report.defenses[number] for number in curves[0].results]
    yield Column("patch", tuple(labels.patch(r.threat) for r in results))
    yield Column("masks", tuple(_masks(r).replace(" masks of ", " of ", 1) for r in results))
    yield Column("masked", tuple(str(r.masked_images) for r in results), right=True)
    yield Column("clean", tuple(map(numbers.clean, results)))
    if results[0].false_alert_rate is not None:
        yield Column("false alerts", tuple(map(numbers.false_alerts, results)))
    for curve in curves:
        proved = [numbers.worst_case(report.defenses[number]) for number in curve.results]
        yield Column(f"worst case, {masks_of(curve)}", tuple(proved))


def _in_words(column: Column, sizes: Sequence[str]) -> str:
    """A column as a sentence: what all sizes have, or what each has."""
    if len(set(column.cells)) == 1:
        return f"{column.title}: {column.cells[0]} at every size"
    each = [f"{cell} at {size}" for cell, size in zip(column.cells, sizes, strict=True)]
    return f"{column.title}: {', '.join(each)}"


def _masks(result: DefenseResult) -> str:
    return labels.masks(result.mask_set, result.threat)


def _of_classifiers(report: Report, curves: Sequence[SizeCurve]) -> list[str]:
    """Says what every size shares, of the defenses that are one classifier at all sizes."""
    lines = []
    for curve in curves:
        if curve is curves[0]:
            continue
        result = report.defenses[curve.results[-1]]
        lines.append(
            f"{masks_of(curve)}: {counted(result.masks, 'mask')}, "
            f"{counted(result.masked_images, 'masked image')}, clean "
            f"{numbers.clean(result)} at every size"
        )
    return lines


def _of_monotony(curve: SizeCurve) -> list[str]:
    if not curve.not_monotone:
        return []
    return [f"images certified at a size, but not at all smaller ones: {curve.not_monotone}"]


def _notes(report: Report) -> list[str]:
    there = {curve.classifiers for curve in report.certified_size}
    on_evidence = there & {"own rule", "one rule"}
    if there - on_evidence:
        there |= {"own masks", "built for"}
    lines = [
        "worst case: % of images on which no attacker can win who puts one patch of that size "
        f"anywhere and chooses {notes.chosen(report)} a patch pixel. Brackets: 95% intervals.",
        *(line for name, line in _CLASSIFIERS.items() if name in there),
        "masked: distinct masked images of an image",
    ]
    if not all(result.worst_case_exact for result in report.defenses):
        lines.append(">=: a proved lower bound of the worst case")
    passes, count = report.forward_passes, report.num_images
    viewed = "a_masked_image" in passes
    whole = "for all views of distinct masked images" if viewed else "distinct masked images"
    if on_evidence:
        whole = "for all that is looked at"
    table = "a run for each row" if on_evidence else "a table for each row and mask set"
    return [
        *lines,
        "each image's certified sizes: per_image.csv",
        f"forward passes: {passes['made'] / count:.1f} an image, of "
        f"{passes['full_table'] / count:.0f} {whole}; {table} would take "
        f"{passes_of_separate_tables(report) / count:.0f}",
    ]
