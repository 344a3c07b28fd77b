"""What stands below a table: what its columns mean, what was left out, what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax._text import counted
from certmask_jax.certification.report import notices, numbers
from certmask_jax.certification.report.notices import Notice, Place
from certmask_jax.certification.report.records import BY_BOUNDS, MARGINS, Report


def notices_of(report: Report) -> list[Notice]:
    """All notices of a report in their order: those that it holds, and those that numbers tell."""
    said = list(report.notices)
    if report.left_out:
        said.append(notices.LeftOut(report.left_out))
    made, whole = report.forward_passes["made"], report.forward_passes["full_table"]
    if made < whole:
        said.append(notices.FewerPasses(made, whole, report.num_images))
    if report.margin_guard:
        on_evidence = [not one.near_ties for one in report.defenses]
        said.append(
            notices.MarginGuard(report.margin_guard, not all(on_evidence), any(on_evidence))
        )
    if report.non_finite_images:
        said.append(notices.NonFinite(report.non_finite_images))
    order = {kind: number for number, kind in enumerate(notices.IN_ORDER)}
    return sorted(said, key=lambda notice: order.get(type(notice), len(order)))


def heading(report: Report) -> list[str]:
    """How many images there are, and how the model does on them without a defense."""
    count = counted(report.num_images, "image")
    if report.left_out:
        count = f"{report.num_images:,} of {report.num_images + len(report.left_out):,} images"
    return [
        f"{count}, undefended accuracy {numbers.undefended(report)}",
        *_at(report, Place.HEADING),
    ]


def of_columns(report: Report, *, short: bool) -> list[str]:
    """What the worst case is, and the two guarantees; in a table of short words also these."""
    usual = all(len(d.threat) == 1 and not d.threat.region for d in report.defenses)
    several = len({d.threat for d in report.defenses}) > 1
    patches = "the patches of its row" if several else "these patches"
    where = "one patch anywhere" if usual else f"{patches} where they may be"
    lines = [
        f"worst case: % of images on which no attacker can win who puts {where} and chooses "
        f"{chosen(report)} a patch pixel. Only this number is a certificate. Brackets: 95% "
        "intervals (Wilson)."
    ]
    words = {
        "recovery": ("rec", "always the true label"),
        "detection": ("det", "the true label or an alert"),
    }
    there = list(dict.fromkeys(d.guarantee for d in report.defenses))
    said = []
    for guarantee in there:
        word, meaning = words.get(guarantee, (guarantee, guarantee))
        said.append(f"{word}, {guarantee}: {meaning}" if short else f"{guarantee}: {meaning}")
    lines.append("; ".join(said))
    if not all(d.worst_case_exact for d in report.defenses):
        lines.append(">=: a proved lower bound of the worst case")
    return lines


def chosen(report: Report) -> str:
    """What an attacker chooses, up to what it sees."""
    on_cells = [not d.masked_images for d in report.defenses]
    if all(d.name == BY_BOUNDS for d in report.defenses):  # which are never with others
        return "the colour of"
    if all(on_cells):
        return "all local logits that see"
    if any(on_cells):
        return "every prediction, or all local logits, that see"
    return "every prediction that sees"


def of_conditions(report: Report, *, column: str = "paper's condition") -> list[str]:
    """Where the papers' conditions are, in which column, and which are the worst case itself."""
    others = any(map(numbers.other_conditions, report.defenses))
    same: dict[str, None] = {}
    for result in report.defenses:
        other = numbers.other_conditions(result)
        same |= dict.fromkeys(name for name in result.conditions if name not in other)
    lines = []
    if others:
        lines.append(
            f"{column}: what the defense's paper calls certified, where it is not the worst case "
            "itself"
        )
    if same:
        lines.append(
            f"the papers' own {_and(list(same))} {'hold' if len(same) > 1 else 'holds'} on the "
            f"same images as the worst case{', where not shown' if others else ''}"
        )
    return lines


def of_work(report: Report) -> list[str]:
    """What was evaluated, and of which images."""
    return _at(report, Place.WORK)


def of_near_ties(report: Report, names: Sequence[str]) -> list[str]:
    """Certified images with a small margin; ``names`` are those of the report's defenses."""
    near = [
        f"{name} {', '.join(map(str, d.near_ties.values()))}"
        for name, d in zip(names, report.defenses, strict=True)
        if any(d.near_ties.values()) and d.name != BY_BOUNDS  # which devices round within
    ]
    if not near:
        return []
    margins = ", ".join(f"{margin:g}" for margin in MARGINS)
    return [
        "near ties, which another device or batch may break otherwise (a margin guard leaves them "
        f"out): certified images with a logit margin below {margins}: {'; '.join(near)}"
    ]


def warnings(report: Report) -> list[str]:
    """What may make certificates differ from those of exact arithmetic, in lines."""
    return _at(report, Place.WARNING)


def _at(report: Report, place: Place) -> list[str]:
    return [notice.text() for notice in notices_of(report) if notice.place is place]


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
