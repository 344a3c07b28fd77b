"""What a page says of a run in sentences, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePath

from certmask_jax.certification.report import Report, labels, notes, numbers
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.pages.mask_words import counted, upper

_OF_FILES = ("image_folder", "image_list")


def title_of(report: Report) -> str:
    """What a page is called."""
    provenance = report.provenance
    return f"{data_name(report)}, {provenance.get('model', 'a model')}: certified against patches"


def data_name(report: Report) -> str:
    """What the images are called: of folders and lists of files by their folder."""
    name = str(report.provenance.get("dataset") or "images")
    folder = report.provenance.get("data_dir")
    if name in _OF_FILES and folder:
        return PurePath(folder).name or name
    return name


def sentences(report: Report) -> list[str]:
    """What was certified, against what, and what came of it."""
    provenance = report.provenance
    split = f" ({provenance['split']})" if provenance.get("split") else ""
    weights = f" with the weights {provenance['weights']}" if provenance.get("weights") else ""
    heading = [upper(line.lstrip()) for line in notes.heading(report)[1:]]
    what = (
        f"{counted(report.num_images, 'image')} of {data_name(report)}{split} "
        f"{'was' if report.num_images == 1 else 'were'} certified for the model "
        f"{provenance.get('model', '')}{weights}."
    )
    if heading:
        what += f" {'. '.join(heading)}."
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    against = [labels.against(threat) for threat in threats]
    if len(threats) == 1:
        threat = threats[0]
        number = "one patch" if len(threat) == 1 else f"{len(threat)} patches at once"
        height, width = threat.shapes[0]
        size = f"{height}x{width}" if len(threat.shapes) == 1 else "one of several sizes"
        where = "inside a region" if threat.region else "anywhere"
        image = "x".join(map(str, threat.image_size))
        attacker = (
            f"The attacker puts {number} of {size} pixels {where} on the {image} image, and what "
            "it shows is up to them."
        )
        if "two_parts" in provenance or not (len(threat) == 1 and len(threat.shapes) == 1):
            attacker = f"The attacker has {against[0]}, and what they show is up to them."
    else:
        attacker = (
            f"Against {len(threats)} sorts of patches, from {against[0]} to {against[-1]}, "
            "whatever they show."
        )
    return [what, attacker, _found(report)]


def facts_of(report: Report) -> list[tuple[str, str]]:
    """Where the numbers come from: names and values, as far as the run recorded them."""
    known = report.provenance
    versions, devices = known.get("versions", {}), known.get("devices", {})
    passes = report.forward_passes
    seconds = known.get("seconds", {}).get("all")
    facts = {
        "begun": known.get("started"),
        "data": " ".join(str(known[k]) for k in ("dataset", "split") if known.get(k)),
        "data folder": known.get("data_dir"),
        "classes": known.get("class_mapping"),
        "model": known.get("model"),
        "weights": known.get("weights"),
        "weights, sha256": known.get("weights_sha256"),
        "threats": "; ".join(known.get("threats", ())),
        "fill": known.get("fill"),
        "precision": known.get("precision"),
        "forward passes": f"{passes['made']:,} made, {passes['full_table']:,} in the whole table",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "devices": " ".join(str(devices[k]) for k in ("count", "kind", "machine") if k in devices),
        "seconds": None if seconds is None else f"{seconds:g}",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _found(report: Report) -> str:
    """What is proved by the best of each sort: of several threats, of the first and the last."""
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    ends = [threats[0], *threats[1:][-1:]]
    parts = []
    names = [one.name for one in report.defenses]
    alike = {one.name for one in report.defenses if names.count(one.name) > len(threats)}
    for threat in ends:
        said = _best([d for d in report.defenses if d.threat == threat], alike)
        against = f"against {labels.patch(threat)}, " if len(ends) > 1 else ""
        parts.append(f"{against}{', and '.join(said)}")
    return (
        f"{upper('; '.join(parts))}. The model alone is right on "
        f"{_percent(numbers.undefended(report))} without a patch, and nothing is proved of it."
    )


def _best(results: Sequence[DefenseResult], alike: Collection[str]) -> list[str]:
    """What the best of each sort promises; of names that are ``alike`` as on the command line."""
    best: dict[str, DefenseResult] = {}
    for result in results:
        there = best.get(result.guarantee)
        if there is None or result.worst_case_accuracy > there.worst_case_accuracy:
            best[result.guarantee] = result
    parts = []
    for guarantee, promise in (
        ("recovery", "no such patch can change the right answer"),
        ("detection", "none can bring about a wrong answer without an alert"),
    ):
        if guarantee in best:
            one = best[guarantee]
            parts.append(
                f"on {_percent(numbers.worst_case(one))} of the images {promise} "
                f"({one.spec if one.name in alike else one.name})"
            )
    return parts


def _percent(number: str) -> str:
    """``"74.0% [70.0, 77.7]"``."""
    return number.replace(" [", "% [", 1)
