"""The tables of a run: a row for each defense, and a row for each class."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from certmask_jax.certification.report import Report, labels, numbers, wilson_interval
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.pages import charts
from certmask_jax.pages.image_data import key_of


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
                "label": _breakable(names[number]),
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
    true = report.per_image["label"]
    made = []
    for label in np.unique(true).tolist():
        own = true == label
        count = int(own.sum())
        cells = []
        for result in report.defenses:
            certified = float(result.per_image["worst_case"][own].mean())
            clean = float((result.per_image["answer"][own] == label).mean())
            cells.append(
                {
                    "certified": f"{100 * certified:.0f}",
                    "clean": f"{100 * clean:.0f}",
                    "bar": charts.bar(certified, wilson_interval(certified, count), "proved"),
                }
            )
        named = report.class_names[label] if label < len(report.class_names) else ""
        undefended = float((report.per_image["undefended"][own] == label).mean())
        made.append(
            {
                "name": named or f"class {label}",
                "count": count,
                "undefended": f"{100 * undefended:.0f}",
                "cells": cells,
                "least": sum(float(cell["certified"]) for cell in cells),
            }
        )
    return sorted(made, key=lambda one: float(one["least"]))


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line where its words end."""
    return Markup(re.sub(r"([:,_=])", r"\1<wbr>", str(escape(name))))


def _passes(report: Report, result: DefenseResult) -> str:
    each = report.forward_passes.get("a_masked_image", 1)
    return f"{max(1, result.masked_images) * each:,}"
