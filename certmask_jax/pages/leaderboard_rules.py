"""Which runs have a place on a leaderboard: those that say what they are of, and of how much of it.

That a run prints what its own files give is checked before, where these are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report import Report

_NEEDED = (
    "command", "versions", "devices", "dataset", "model", "weights_sha256", "precision",
    "data_config",
)  # fmt: skip
_PATCHES = ("patch", "patch_area", "sizes")

SIZES: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        ("digits", "train"): 1_297,
        ("digits", "test"): 500,
        ("cifar10", "train"): 50_000,
        ("cifar10", "test"): 10_000,
        ("cifar100", "train"): 50_000,
        ("cifar100", "test"): 10_000,
        ("imagenette", "train"): 9_469,
        ("imagenette", "validation"): 3_925,
        ("imagenet2012", "train"): 1_281_167,
        ("imagenet2012", "validation"): 50_000,
    }
)
"""Images of data sets that everybody has alike, by name and split (TFDS; digits as embedded)."""


def refusal(report: Report) -> str:
    """Why a run gets no place; empty if it does."""
    known = report.provenance
    missing = [name for name in _NEEDED if not known.get(name)]
    if known.get("split") is None:  # that of a folder without splits is empty
        missing.append("split")
    if not any(known.get(name) for name in _PATCHES):
        missing.append("patch")
    if missing:
        return f"it does not say where it comes from: {', '.join(missing)} not recorded"
    if "patched_with_noise_of_seed" in known:
        return "its images are patched already"
    if not len(report.ids):
        return "it has no rows of images (per_image.csv), by which its numbers are checked"
    for result in report.defenses:
        wrong = result.per_image["worst_case"] & (
            result.per_image["answer"] != report.per_image["label"]
        )
        if wrong.any():
            what = counted(int(wrong.sum()), "image")
            return f"{result.spec} certifies {what} that it answers wrongly"
    return _unclear_sample(report)


def sample_of(report: Report) -> str:
    """Which of the images of its data set a run is of that is not refused."""
    subset = report.provenance.get("subset")
    return "all" if subset is None else f"{subset['how']} of {subset['of']:,}"


def _unclear_sample(report: Report) -> str:
    """Why nobody can tell which share of its data set a run is of; empty if one can."""
    known = report.provenance
    count = len(report.ids) + len(report.left_out)
    subset, said = known.get("subset"), known.get("images_in_set")
    size = _size_of(known)
    name = " ".join(filter(None, [str(known["dataset"]), str(known["split"])]))
    if subset is not None:
        if not _is_subset(subset):
            return "it does not say how its subset of the images was chosen (subset)"
        total = subset["of"]
        if count >= total:
            return (
                f"it says that it is of some of {counted(total, 'image')}, and it is of {count:,}"
            )
    elif said is None and size is None:
        return (
            "it does not say how many images its data set has (images_in_set), so nobody can tell "
            "whether it is of all; certify it anew"
        )
    else:
        total = size if said is None else said
        if count != total:
            return (
                f"it says nothing of a subset, and it is of {count:,} of the {total:,} images of "
                f"{name}"
            )
    for other in (said, size):
        if other is not None and other != total:
            return f"it says that {name} has {counted(total, 'image')}, and {name} has {other:,}"
    return ""


def _is_subset(subset: Any) -> bool:
    if not isinstance(subset, Mapping):
        return False
    how, of = subset.get("how"), subset.get("of")
    return isinstance(how, str) and bool(how) and isinstance(of, int)


def _size_of(known: Mapping[str, Any]) -> int | None:
    """How many images a data set has that everybody has alike; None of others."""
    is_other = known.get("registered") or known.get("only_classes") or known.get("labels")
    return None if is_other else SIZES.get((str(known["dataset"]), str(known["split"])))
