"""How the numbers of a report are written: percent with an interval, and what is beside them."""

from __future__ import annotations

import numpy as np

from certmask_jax.certification.report.records import DefenseResult, Interval, Report


def percent(fraction: float) -> str:
    """``"74.0"``."""
    return f"{100 * fraction:.1f}"


def with_interval(fraction: float, interval: Interval) -> str:
    """``"74.0 [70.0, 77.7]"``, in percent."""
    return f"{percent(fraction)} [{percent(interval[0])}, {percent(interval[1])}]"


def undefended(report: Report) -> str:
    """The accuracy without a defense."""
    return with_interval(report.undefended_accuracy, report.intervals["undefended_accuracy"])


def clean(result: DefenseResult) -> str:
    """The clean accuracy of a defense."""
    return with_interval(result.clean_accuracy, result.intervals["clean_accuracy"])


def worst_case(result: DefenseResult) -> str:
    """What is proved of a defense; ``>=`` in front of a lower bound."""
    bound = "" if result.worst_case_exact else ">="
    interval = result.intervals["worst_case_accuracy"]
    return bound + with_interval(result.worst_case_accuracy, interval)


def false_alerts(result: DefenseResult) -> str:
    """The false-alert rate; nothing for a defense that recovers."""
    rate = result.false_alert_rate
    return "" if rate is None else with_interval(rate, result.intervals["false_alert_rate"])


def condition(result: DefenseResult, name: str) -> str:
    """One of the paper's conditions."""
    return with_interval(result.conditions[name], result.intervals[name])


def other_conditions(result: DefenseResult) -> list[str]:
    """The paper's conditions that are not the worst case itself on every image."""
    proved = result.per_image.get("worst_case")
    return [
        name
        for name in result.conditions
        if proved is None
        or name not in result.per_image
        or not np.array_equal(result.per_image[name], proved)
    ]
