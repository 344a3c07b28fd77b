"""The tables of a run: a row for each defense, and a row for each class."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from certmask_jax.certification.report import Report, labels, numbers
from certmask_jax.certification.report.image_groups import by_class
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.pages import charts
from certmask_jax.pages.image_data import key_of
from certmask_jax.pages.mask_words import name_of


def defense_rows(report: Report) -> list[dict[str, Any]]:
    """What stands of each result, as text, with a bar for each number."""
    made = []
    names = labels.in_a_line(report.defenses)
    for number, result in enumerate(report.defenses):
        clean = result.intervals["clean_accuracy"]
        worst = result.intervals["worst_case_accuracy"]
        made.append(
            {
                "key": key_of(number),
                "name": result.name,
                "spec": result.spec,
                "spec_label": breakable(result.spec, after=":,"),
                "label": breakable(names[number]),
                "patch": labels.patch(result.threat),
                "guarantee": result.guarantee,
                "masks": labels.masks(result.mask_set, result.threat),
                "passes": _passes(report, result),
                "clean": numbers.clean(result),
                "clean_bar": charts.bar(result.clean_accuracy, clean, "plain"),
                "alerts": numbers.false_alerts(result),
                "certified": numbers.worst_case(result),
                "certified_bar": charts.bar(result.worst_case_accuracy, worst, "proved"),
                "conditions": [
                    f"{name} {numbers.condition(result, name)}"
                    for name in numbers.other_conditions(result)
                ],
            }
        )
    return made


def class_rows(report: Report) -> list[dict[str, Any]]:
    """Clean and certified accuracy of each class (PatchCleanser, Figure 13)."""
    made = []
    for label, group in by_class(report).items():
        cells = [
            {
                "certified": f"{100 * certified.fraction:.0f}",
                "clean": f"{100 * clean.fraction:.0f}",
                "bar": charts.bar(*certified, "proved"),
            }
            for certified, clean in zip(group.certified, group.clean, strict=True)
        ]
        made.append(
            {
                "name": name_of(label, report.class_names),
                "count": len(group.rows),
                "undefended": f"{100 * group.undefended.fraction:.0f}",
                "cells": cells,
                "least": sum(float(cell["certified"]) for cell in cells),
            }
        )
    return sorted(made, key=lambda one: float(one["least"]))


def breakable(name: str, *, after: str = ":,_=") -> Markup:
    """A name that may go on in the next line where its words end."""
    return Markup(re.sub(f"([{after}])", r"\1<wbr>", str(escape(name))))


def _passes(report: Report, result: DefenseResult) -> str:
    each = report.forward_passes.get("a_masked_image", 1)
    return f"{max(1, result.masked_images) * each:,}"
