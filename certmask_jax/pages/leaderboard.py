"""A leaderboard of runs: what is proved on which images, with where every number comes from.

An entry is a defense of a run. It counts if the run says how it was made, on which images and with
which weights, if its rows of images give the numbers that it prints, and if no attack contradicts
it. What ranks is ``worst_case``, never what a paper calls certified. Whatever is refused is named
with why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from certmask_jax._text import counted
from certmask_jax._version import __version__
from certmask_jax.certification.report import Interval, Report, labels, numbers, wilson_interval
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.pages import charts, rendering
from certmask_jax.pages.claims import CLAIMS, Claim
from certmask_jax.pages.run_tables import breakable

FORMAT = "certmask_jax leaderboard 1"

PAGE, ENTRIES = "leaderboard.html", "leaderboard.json"
"""What a leaderboard's folder holds."""

_NEEDED = ("command", "versions", "devices", "dataset", "model", "weights_sha256", "precision")
_CLOSE = 5e-6  # results and rows are of the same counts


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
      report: read back from its files.
      recomputed: whether its verdicts were derived anew from its tables; else its rows are taken.
      attacks: by spec, of the defenses that were attacked.
    """

    name: str
    report: Report
    recomputed: bool = False
    attacks: Mapping[str, Attacked] = MappingProxyType({})


def board(
    candidates: Sequence[Candidate], unreadable: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The content of ``leaderboard.json``.

    Args:
      candidates: whatever was given.
      unreadable: names of folders that are left out because they could not be read, with why.

    Returns:
      ``tasks``, each with its ``entries``, the most certified first, and the ``claims`` of papers
      about the same; ``other_claims``; and ``refused`` with why.
    """
    tasks: dict[tuple[str, ...], dict[str, Any]] = {}
    refused: list[dict[str, Any]] = [
        {"run": name, "defense": None, "why": f"left out, as it cannot be read: {why}"}
        for name, why in unreadable.items()
    ]
    for candidate in candidates:
        why = refusal(candidate)
        if why:
            refused.append({"run": candidate.name, "defense": None, "why": why})
            continue
        for result in candidate.report.defenses:
            attack = candidate.attacks.get(result.spec)
            if attack is not None and attack.contradictions:
                why = f"an attack contradicts {attack.contradictions} of its certificates"
                refused.append({"run": candidate.name, "defense": result.spec, "why": why})
                continue
            task = _task(candidate.report, result)
            known = tasks.setdefault(tuple(map(str, task.values())), {**task, "entries": []})
            known["entries"].append(_entry(candidate, result))
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
    }


def refusal(candidate: Candidate) -> str:
    """Why a run gets no place; empty if it does."""
    report = candidate.report
    missing = [name for name in _NEEDED if not report.provenance.get(name)]
    if missing:
        return f"it does not say where it comes from: {', '.join(missing)} not recorded"
    if "patched_with_noise_of_seed" in report.provenance:
        return "its images are patched already"
    if not len(report.ids):
        return "it has no rows of images (per_image.csv), by which its numbers are checked"
    for result in report.defenses:
        label = report.per_image["label"]
        for name, printed, rows in (
            ("worst_case_accuracy", result.worst_case_accuracy, result.per_image["worst_case"]),
            ("clean_accuracy", result.clean_accuracy, result.per_image["answer"] == label),
        ):
            found = float(np.mean(rows))
            if abs(found - printed) > _CLOSE:
                return (
                    f"its rows of images give {name} {found:.4f} of {result.spec}, and it prints "
                    f"{printed:.4f}"
                )
        wrong = result.per_image["worst_case"] & (result.per_image["answer"] != label)
        if wrong.any():
            what = counted(int(wrong.sum()), "image")
            return f"{result.spec} certifies {what} that it answers wrongly"
    return ""


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


def _entry(candidate: Candidate, result: DefenseResult) -> dict[str, Any]:
    report, known = candidate.report, candidate.report.provenance
    subset = known.get("subset")
    sample = "all" if subset is None else f"{subset['how']} of {subset['of']:,}"
    each = report.forward_passes.get("a_masked_image", 1)
    attack = candidate.attacks.get(result.spec)
    return {
        "defense": result.spec,
        "model": known["model"],
        "weights": known.get("weights"),
        "weights_sha256": known["weights_sha256"],
        "worst_case": result.worst_case_accuracy,
        "interval": list(result.intervals["worst_case_accuracy"]),
        "bound": "exact" if result.worst_case_exact else "at least",
        "clean": result.clean_accuracy,
        "clean_interval": list(wilson_interval(result.clean_accuracy, report.num_images)),
        "text": numbers.worst_case(result),
        "clean_text": numbers.clean(result),
        "images": report.num_images,
        "sample": sample,
        "left_out": len(report.left_out),
        "passes_an_image": max(1, result.masked_images) * each,
        "margin_guard": report.margin_guard,
        "precision": known["precision"],
        "conditions": dict(result.conditions),
        **_under_attack(attack),
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
