"""A leaderboard of runs: what is proved on which images, with where every number comes from.

An entry is a defense of a run. It counts if the run says how it was made, on which images and with
which weights, if its files give the numbers that it prints, and if no attack contradicts it. What
ranks is ``worst_case``, never what a paper calls certified. Rows that are given twice have one
place. Whatever is refused is named with why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from certmask_jax._text import counted
from certmask_jax._version import __version__
from certmask_jax.certification.report import Interval, Report, labels, numbers
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.files import fingerprint
from certmask_jax.pages import charts, rendering
from certmask_jax.pages.claims import CLAIMS, Claim
from certmask_jax.pages.leaderboard_rules import refusal, sample_of
from certmask_jax.pages.run_tables import breakable

FORMAT = "certmask_jax leaderboard 1"

PAGE, ENTRIES = "leaderboard.html", "leaderboard.json"
"""What a leaderboard's folder holds."""


class Attacked(NamedTuple):
    """What an attack on one defense of a run came to.

    Attributes:
      images: how many it was told of.
      attacked: how many of these it tried to break, those that were answered rightly.
      contradictions: certificates that a patch contradicted.
      left_right: share of the images that it left right, and its 95% interval; None where not all
        that were right were attacked.
    """

    images: int
    attacked: int
    contradictions: int
    left_right: tuple[float, Interval] | None = None


class Candidate(NamedTuple):
    """A run that asks for a place.

    Attributes:
      name: of its folder.
      report: what its files give; of one without rows of images, what it says.
      recomputed: whether its verdicts were derived anew from its tables; else its rows are taken.
      attacks: by spec, of the defenses that were attacked.
    """

    name: str
    report: Report
    recomputed: bool = False
    attacks: Mapping[str, Attacked] = MappingProxyType({})


class _Place(NamedTuple):
    candidate: Candidate
    result: DefenseResult

    @property
    def attack(self) -> Attacked | None:
        return self.candidate.attacks.get(self.result.spec)

    @property
    def contradictions(self) -> int:
        return 0 if self.attack is None else self.attack.contradictions


def board(
    candidates: Sequence[Candidate], left_out: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The content of ``leaderboard.json``.

    Args:
      candidates: whatever was given.
      left_out: names of folders that are no candidates, with why.

    Returns:
      ``tasks``, each with its ``entries``, the most certified first, and the ``claims`` of papers
      about the same; ``other_claims``; ``refused`` with why; and ``repeated``, what has the same
      rows as an entry, and of which run that is.
    """
    refused: list[dict[str, Any]] = [_refused(name, why) for name, why in left_out.items()]
    same_rows: dict[str, list[_Place]] = {}
    for candidate in candidates:
        why = refusal(candidate.report)
        if why:
            refused.append(_refused(candidate.name, why))
            continue
        for result in candidate.report.defenses:
            identity = _identity(candidate.report, result)
            same_rows.setdefault(identity, []).append(_Place(candidate, result))
    tasks: dict[tuple[str, ...], dict[str, Any]] = {}
    repeated: list[dict[str, Any]] = []
    for places in same_rows.values():
        if any(place.contradictions for place in places):
            refused += [_contradicted(place, places) for place in places]
            continue
        shown = max(places, key=lambda one: (one.candidate.recomputed, one.attack is not None))
        task = _task(shown.candidate.report, shown.result)
        known = tasks.setdefault(tuple(map(str, task.values())), {**task, "entries": []})
        known["entries"].append(_entry(shown))
        repeated += [
            {"run": one.candidate.name, "defense": one.result.spec, "as": shown.candidate.name}
            for one in places
            if one is not shown
        ]
    taken: set[Claim] = set()
    for task in tasks.values():
        task["entries"].sort(key=lambda entry: -entry["worst_case"])
        same = [c for c in CLAIMS if (c.data, str(c.threat), c.guarantee) == _about(task)]
        taken |= {*same}
        task["claims"] = [_claim(one) for one in same]
    order = sorted(tasks.values(), key=lambda task: (task["data"], task["threat"]))
    return {
        "format": FORMAT,
        "made_by": f"certmask_jax {__version__}",
        "tasks": order,
        "other_claims": [_claim(one) for one in CLAIMS if one not in taken],
        "refused": refused,
        "repeated": repeated,
    }


def _refused(run: str, why: str, defense: str | None = None) -> dict[str, Any]:
    return {"run": run, "defense": defense, "why": why}


def _contradicted(place: _Place, places: Sequence[_Place]) -> dict[str, Any]:
    """Refuses rows that an attack contradicts, in whichever folder of them it lies."""
    why = f"an attack contradicts {place.contradictions} of its certificates"
    if not place.contradictions:
        other = next(one for one in places if one.contradictions)
        why = f"an attack in {other.candidate.name} contradicts certificates of the same rows"
    return _refused(place.candidate.name, why, place.result.spec)


def _identity(report: Report, result: DefenseResult) -> str:
    """The same for the same rows of the same defense, wherever they lie and however it is typed."""
    names = ("answer", "worst_case", "smallest_margin")
    about = {
        **_task(report, result),
        "defense": [result.name, dict(result.options), result.mask_set],
        "ids": list(report.ids),
        "label": report.per_image["label"].tolist(),
        "rows": fingerprint.of_arrays({name: result.per_image[name] for name in names}),
    }
    return fingerprint.of_facts(fingerprint.plain(about))


def board_page(content: Mapping[str, Any]) -> str:
    """The page of a leaderboard, HTML; ``content`` as ``board`` makes it."""
    for task in content["tasks"]:
        for entry in task["entries"]:
            entry["label"] = breakable(entry["defense"], after=":,")
            entry["bar"] = charts.bar(entry["worst_case"], tuple(entry["interval"]), "proved")
    page = rendering.rendered("leaderboard.html", **content)
    for task in content["tasks"]:
        for entry in task["entries"]:
            del entry["bar"], entry["label"]
    return page


def _task(report: Report, result: DefenseResult) -> dict[str, Any]:
    """What entries have to have in common to be compared."""
    known = report.provenance
    name = str(known["dataset"])
    if name in ("image_folder", "image_list") and known.get("data_dir"):
        name = PurePath(str(known["data_dir"])).name
    classes = len(report.class_names)
    chosen = "its classes only" if known.get("only_classes") else "all outputs of the model"
    return {
        "data": name,
        "split": str(known.get("split") or ""),
        "classes": f"{counted(classes, 'class', 'classes')}, {chosen}",
        "threat": labels.against(result.threat),
        "guarantee": result.guarantee,
    }


def _about(task: Mapping[str, Any]) -> tuple[str, str, str]:
    data = str(task["data"]).removesuffix("2012").rstrip("0123456789") or str(task["data"])
    return (data if data != "cifar" else str(task["data"]), task["threat"], task["guarantee"])


def _entry(place: _Place) -> dict[str, Any]:
    candidate, result = place.candidate, place.result
    report, known = candidate.report, candidate.report.provenance
    each = report.forward_passes.get("a_masked_image", 1)
    return {
        "defense": result.spec,
        "model": known["model"],
        "weights": known.get("weights"),
        "weights_sha256": known["weights_sha256"],
        "worst_case": result.worst_case_accuracy,
        "interval": list(result.intervals["worst_case_accuracy"]),
        "bound": "exact" if result.worst_case_exact else "at least",
        "clean": result.clean_accuracy,
        "clean_interval": list(result.intervals["clean_accuracy"]),
        "text": numbers.worst_case(result),
        "clean_text": numbers.clean(result),
        "images": len(report.ids),
        "sample": sample_of(report),
        "left_out": len(report.left_out),
        "passes_an_image": max(1, result.masked_images) * each,
        "margin_guard": report.margin_guard,
        "precision": known["precision"],
        "conditions": dict(result.conditions),
        **_under_attack(place.attack),
        "verified": "recomputed from its tables" if candidate.recomputed else "by rows of images",
        "command": known["command"],
        "versions": known["versions"],
        "run": candidate.name,
    }


def _under_attack(attack: Attacked | None) -> dict[str, Any]:
    """What an attack says of an entry: over how many images, and what it left right of them."""
    facts = {"under_attack": None, "under_attack_interval": None, "under_attack_images": None}
    if attack is None:
        return {"audit": "not attacked", **facts}
    audit = (
        f"{attack.attacked:,} of {counted(attack.images, 'image')} attacked, nothing contradicted"
    )
    if attack.left_right is None:
        return {"audit": audit, **facts}
    share, interval = attack.left_right
    return {
        "audit": f"{audit}, {numbers.with_interval(share, interval)} left right of these "
        f"{attack.images:,}",
        "under_attack": share,
        "under_attack_interval": list(interval),
        "under_attack_images": attack.images,
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {**claim._asdict(), "threat": str(claim.threat)}
