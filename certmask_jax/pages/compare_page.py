"""Runs on the same images as one page: paired differences, and the images that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from certmask_jax._text import counted, some
from certmask_jax._version import __version__
from certmask_jax.certification.report import Report, numbers
from certmask_jax.certification.report.paired import Match, Paired, matches, unmatched
from certmask_jax.pages import rendering
from certmask_jax.pages.image_data import key_of
from certmask_jax.pages.mask_words import name_of
from certmask_jax.pages.run_said import facts_of, sentences

_MOST_ALONE = 12  # defenses that are named

_SETTINGS = ("data", "classes", "model", "weights", "weights, sha256", "fill", "precision",
             "versions", "devices")  # fmt: skip
_OPTIONS = ("views", "encoding", "hidden_tokens", "two_parts", "patch_lives", "only_classes")

MOST_NAMED = 200
"""Images that changed, of each defense, that are named on a page."""


class Named(NamedTuple):
    """A report, and what its run is called."""

    name: str
    report: Report


def page_of(runs: Sequence[Named]) -> str:
    """The page, HTML: each run beside the first.

    Args:
      runs: two or more, of the same images.

    Raises:
      ValueError: for runs of other images, or without a defense in common.
    """
    first = runs[0].report
    parts = []
    for number, run in enumerate(runs[1:], 1):
        matched = matches(first, run.report)
        common = {match.name for match in matched}
        rows = [row for match in matched for row in _rows(first, match)]
        key = key_of(number)
        parts.append(
            {
                "title": f"A and {key}: {len(common)} defenses in common"
                if len(common) > 1
                else f"A and {key}: {matched[0].name}",
                "key": key,
                "rows": rows,
                "alone": alone(("A", key), first, run.report),
                "unlike": unlike(("A", key), first, run.report),
            }
        )
    return rendering.rendered(
        "compare.html",
        title=f"{counted(len(runs), 'run')} on the same {counted(first.num_images, 'image')}",
        lead="A difference is of what the later run finds less what A finds; an image is gained "
        "where only the later run holds, and lost where only A does.",
        runs=[
            {
                "key": key_of(number),
                "name": run.name,
                "about": sentences(run.report)[0],
                "command": run.report.provenance.get("command", ""),
            }
            for number, run in enumerate(runs)
        ],
        parts=parts,
        count=f"{first.num_images:,}",
        version=__version__,
    )


def difference(paired: Paired) -> str:
    """``"+3.0 [1.1, 5.2]"``, in percent."""
    low, high = paired.interval
    return f"{100 * paired.difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def p_value(paired: Paired) -> str:
    """In two digits, or that it is below 0.001."""
    return "< 0.001" if paired.p_value < 0.001 else f"{paired.p_value:.2g}"


def alone(names: tuple[str, str], first: Report, second: Report) -> str:
    """What one of two runs has and the other has not, both ways; empty where there is nothing."""
    return " ".join(
        f"Only {name} has {some(own, _MOST_ALONE)}."
        for name, own in zip(names, unmatched(first, second), strict=True)
        if own
    )


def unlike(names: tuple[str, str], first: Report, second: Report) -> str:
    """In what two runs differ that decides numbers, in a sentence; of the same in all none is left.

    Commands are no help there: a run may have been printed anew with other options.
    """
    differences = [
        f"{name} ({one or 'none'}, then {two or 'none'})"
        for name, one, two in (
            (name, _settings(first).get(name, ""), _settings(second).get(name, ""))
            for name in dict.fromkeys([*_settings(first), *_settings(second)])
        )
        if one != two
    ]
    if not differences:
        return f"{names[1]} has the settings of {names[0]}."
    return f"{names[1]} differs from {names[0]} in: {'; '.join(differences)}."


def _settings(report: Report) -> dict[str, str]:
    """What decides the numbers of a run, as far as it recorded that."""
    known = report.provenance
    facts = {name: text for name, text in facts_of(report) if name in _SETTINGS}
    facts |= {name: str(known[name]) for name in _OPTIONS if known.get(name)}
    if "weights, sha256" in facts:
        facts["weights, sha256"] = f"{facts['weights, sha256'][:12]}..."
    return facts | {"margin guard": f"{report.margin_guard:g}" if report.margin_guard else ""}


def _rows(first: Report, match: Match) -> list[dict[str, Any]]:
    return [
        {
            "name": match.name,
            "what": what,
            "first": one,
            "second": two,
            "difference": difference(paired),
            "p": p_value(paired),
            "gained": len(paired.gained),
            "lost": len(paired.lost),
            **_changed(first, paired),
        }
        for what, one, two, paired in (
            ("certified", numbers.worst_case(match.first), numbers.worst_case(match.second),
             match.certified),
            ("clean", numbers.clean(match.first), numbers.clean(match.second), match.clean),
        )
    ]  # fmt: skip


def _changed(report: Report, paired: Paired) -> dict[str, Any]:
    changed = [("gained", i) for i in paired.gained.tolist()]
    changed += [("lost", i) for i in paired.lost.tolist()]
    label = report.per_image["label"]
    return {
        "changed": [
            {
                "how": how,
                "id": report.ids[i],
                "label": name_of(int(label[i]), report.class_names),
            }
            for how, i in changed[:MOST_NAMED]
        ],
        "more": max(0, len(changed) - MOST_NAMED),
    }
