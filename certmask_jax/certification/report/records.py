"""What was measured and proved, as records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import notices
from certmask_jax.certification.report.notices import Notice
from certmask_jax.masks.threats import Threat

Interval = tuple[float, float]

Classifiers = Literal["own masks", "built for", "own rule", "one rule"]
"""What a defense is at several patch sizes.

``own masks``: each size has masks, and so a classifier, of its own. ``built for``: one classifier,
whose masks are built for one patch. Of defenses on evidence, ``own rule``: the rule itself takes
as much away as the patch reaches, so each size is a classifier of its own. ``one rule``: the rule
knows no patch, so all are one.
"""

BY_BOUNDS = "interval_bounds"
"""The defense whose attacker chooses pixels, and not what a model says of them."""

MARGINS = (1e-3, 1e-2, 1e-1)
"""Certified images whose smallest margin lies below these are counted (soundness, section 7)."""


@dataclasses.dataclass(frozen=True, eq=False)
class DefenseResult:
    """What one defense does on the whole test set; accuracies are fractions of all its images.

    Attributes:
      threat: what is proved against.
      mask_set: the masks, and what they are for, in one line.
      spec: what a table calls it: as on the command line, or its name.
      clean_accuracy: the rule gives the true label (an alert is not the true label).
      worst_case_accuracy: proved against the table adversary; ``worst_case_exact`` says whether it
        is exact or a proved lower bound.
      certified_accuracy: the defense's own sound certificate, at most the worst case.
      conditions: the papers' conditions by name. They are *not* all certificates.
      false_alert_rate: clean images that raise an alert; None for a defense that recovers.
      near_ties: certified images whose smallest margin is below each of ``MARGINS``; none of a
        defense on evidence, where no one margin decides.
      per_image: column name -> ``[T]``, for the rows of ``per_image.csv``.
    """

    name: str
    spec: str
    options: Mapping[str, Any]
    guarantee: str
    threat: Threat
    mask_set: str
    masks: int
    masked_images: int
    clean_accuracy: float
    worst_case_accuracy: float
    worst_case_exact: bool
    certified_accuracy: float
    conditions: Mapping[str, float]
    false_alert_rate: float | None
    near_ties: Mapping[str, int]
    intervals: Mapping[str, Interval]
    per_image: Mapping[str, NDArray[Any]] = dataclasses.field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"DefenseResult({self.spec} against {self.threat}: clean "
            f"{100 * self.clean_accuracy:.1f}%, worst case {100 * self.worst_case_accuracy:.1f}%)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SizeCurve:
    """One defense over S patch sizes, each inside the next (see ``certified_size``).

    Attributes:
      defense: as on the command line.
      built_for: the patch that the masks of all sizes are built for; else None.
      results: where the S defenses stand in the report.
      not_monotone: images certified at some size and not at every smaller one.
      classifiers: what the S defenses are: see ``Classifiers``.
    """

    defense: str
    built_for: tuple[int, int] | None
    guarantee: str
    sizes: tuple[tuple[int, int], ...]
    results: tuple[int, ...]
    clean_accuracy: tuple[float, ...]
    worst_case_accuracy: tuple[float, ...]
    intervals: Mapping[str, tuple[Interval, ...]]
    not_monotone: int
    classifiers: Classifiers = "own masks"

    @property
    def is_one(self) -> bool:
        """Whether all sizes are one classifier, so that the certified size is a promise."""
        return self.classifiers in ("built for", "one rule")


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A run: its accuracies, its defenses, and where every number comes from.

    Attributes:
      forward_passes: how many were ``"made"``, and how many the ``"full_table"`` takes; with views
        ``"a_masked_image"`` too, how many each takes. Of a model in two parts these are passes of
        the head, and ``"stem"`` says how many its stem makes, one an image.
      provenance: facts about the run, as they are stored; nothing here depends on what they say.
      notices: what to know about the run that its numbers do not tell.
      margin_guard: images with a logit margin of at most this are not certified, and on evidence
        none whose worst case is not proved of all evidence less than half of it away.
      certified_size: the curves of a run over patch sizes.
      left_out: images that could not be read, or are gone, by id, with why; they count nowhere.
      class_names: of the outputs of the model; "" or none where nobody named them.
      ids, per_image: the rows of ``per_image.csv``, column name -> ``[T]``.
    """

    num_images: int
    forward_passes: Mapping[str, int]
    undefended_accuracy: float
    intervals: Mapping[str, Interval]
    defenses: tuple[DefenseResult, ...]
    non_finite_images: tuple[str, ...]
    provenance: Mapping[str, Any]
    margin_guard: float = 0.0
    certified_size: tuple[SizeCurve, ...] = ()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    class_names: Sequence[str] = dataclasses.field(repr=False, default=())
    ids: Sequence[str] = dataclasses.field(repr=False, default=())
    per_image: Mapping[str, NDArray[Any]] = dataclasses.field(repr=False, default_factory=dict)

    def with_facts(self, facts: Mapping[str, Any]) -> Report:
        """The report with more facts about the run, and the notices that they call for."""
        new = notices.recorded(facts)
        kept = [one for one in self.notices if type(one) not in map(type, new)]
        return dataclasses.replace(
            self, provenance={**self.provenance, **facts}, notices=(*kept, *new)
        )

    def _repr_html_(self) -> str:
        """The table in a notebook; percent of the images, with 95% intervals."""
        titles = ("defense", "against", "promises", "masked images", "clean", "worst case")
        rows = [
            (
                one.spec,
                str(one.threat),
                one.guarantee,
                f"{one.masked_images:,}",
                _percent(one.clean_accuracy, one.intervals["clean_accuracy"]),
                ("" if one.worst_case_exact else ">=")
                + _percent(one.worst_case_accuracy, one.intervals["worst_case_accuracy"]),
            )
            for one in self.defenses
        ]
        undefended = _percent(self.undefended_accuracy, self.intervals["undefended_accuracy"])
        lines = [_html_row("th", titles), *(_html_row("td", row) for row in rows)]
        caption = f"{counted(self.num_images, 'image')}, undefended {undefended}, in percent"
        return f"<table><caption>{caption}</caption>{''.join(lines)}</table>"

    def __repr__(self) -> str:
        return (
            f"Report({counted(self.num_images, 'image')}, undefended "
            f"{100 * self.undefended_accuracy:.1f}%, "
            f"{counted(len(self.defenses), 'defense')})"
        )


def _percent(fraction: float, between: Interval) -> str:
    return f"{100 * fraction:.1f} [{100 * between[0]:.1f}, {100 * between[1]:.1f}]"


def _html_row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def wilson_interval(fraction: float, count: int, z: float = 1.959963984540054) -> Interval:
    """Wilson's 95% score interval of a fraction of ``count`` images (Wilson, 1927)."""
    if count < 1:
        raise ValueError(f"count: expected at least 1 image, got {count}")
    spread = z * z / count
    centre = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(fraction * (1 - fraction) / count + spread / count / 4)
    # At the ends the formula is exact; floating point is not.
    low = 0.0 if fraction <= 0 else max(0.0, centre - half)
    return low, 1.0 if fraction >= 1 else min(1.0, centre + half)


def to_json(report: Report) -> dict[str, Any]:
    """The content of ``results.json``: plain fractions, intervals beside them by the same names."""
    result = dataclasses.asdict(
        dataclasses.replace(
            report,
            ids=(),
            per_image={},
            notices=(),  # the provenance holds their facts
            class_names=(),
            left_out=dict(report.left_out),
            defenses=tuple(dataclasses.replace(d, per_image={}) for d in report.defenses),
        )
    )
    for name in ("ids", "per_image", "notices", "class_names"):
        del result[name]
    for defense in result["defenses"]:
        del defense["per_image"]
    return result
