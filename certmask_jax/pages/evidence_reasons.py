"""Why a defense on evidence answered what it did: by its rule, and by what the run kept of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.pages.evidence_maps import EvidenceMaps
from certmask_jax.pages.mask_words import counted, name_of

_VOTES = 3  # classes that are named


def why_answered(
    one: EvidenceMaps, row: int, label: int, answer: int, class_names: Sequence[str]
) -> str:
    """How the rule came to its answer on a clean image, and what the true class has to lose.

    Args:
      one: the defense on T images.
      row: which of them.
      label: the true one.
      answer: of the defense without a patch.
      class_names: of the data.
    """
    if any(np.isnan(each.margins[row]).any() for each in one.maps):
        return "The evidence is not finite."
    said = name_of(answer, class_names)
    if one.counts is None:
        rule = _by_rule(one.defense, answer, said)
    else:
        rule = _by_votes(one.defense, one.counts[row], answer, class_names)
    return " ".join(filter(None, [rule, _worst_lead(one, row, label, class_names)]))


def _by_rule(defense: EvidenceDefense, answer: int, said: str) -> str:
    """What the rule found, whatever the numbers were."""
    match defense:
        case DerandomizedSmoothing() | SmoothedViT():
            return f"No class has more votes of the {defense.num_parts} bands than {said}."
        case PatchGuard() | MaskDS():
            parts = "cells" if defense.of_bands is None else "bands"
            share = defense.threshold
            where = f", where it has more than {share:g} of its evidence" if share else ""
            return (
                f"No class keeps more evidence than {said}, once of each class the window of "
                f"{parts} that speaks most for it is masked{where}."
            )
        case ClippedBagNet():
            return f"No class has more clipped evidence in all cells than {said}."
        case BagCert():
            return f"For no class do more cells say above {defense.threshold:g} than for {said}."
        case PatchGuardDetection() if answer == ALERT:
            return (
                "An alert: without some window of cells the mean says another class than with all, "
                f"with a confidence above {defense.tau:g}."
            )
        case PatchGuardDetection():
            return (
                f"The mean of all cells says {said}, and without any window of them no other class "
                f"with a confidence above {defense.tau:g}."
            )
    return ""


def _by_votes(
    defense: EvidenceDefense, counts: NDArray[np.int64], answer: int, class_names: Sequence[str]
) -> str:
    """Who has how many votes: ``Of the votes of 4 bands bee has 3 and ant has 1.``"""
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] and i != answer]
    parts = [f"{name_of(answer, class_names)} has {int(counts[answer])}"]
    parts += [f"{name_of(i, class_names)} has {int(counts[i])}" for i in order[: _VOTES - 1]]
    rest = order[_VOTES - 1 :]
    if rest:
        most = int(counts[rest[0]])
        other = "one more class has" if len(rest) == 1 else f"{len(rest)} more have at most"
        parts.append(f"{other} {most}")
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    tied = order and counts[order[0]] == counts[answer]
    ties = getattr(defense, "ties", "smallest")
    end = f"; of classes with as many the one of the {ties} number is taken" if tied else ""
    return f"Of the votes of {counted(defense.num_parts, 'band')} {listed}{end}."


def _worst_lead(one: EvidenceMaps, row: int, label: int, class_names: Sequence[str]) -> str:
    """The least lead of the true class that a patch leaves; empty where there are no leads."""
    if one.unit is None:
        return ""
    each = min(one.maps, key=lambda place: float(place.margins[row].min()))
    lead, spot = float(each.margins[row].min()), int(each.margins[row].argmin())
    if not np.isfinite(lead):
        return ""
    top, left = each.spots.example[spot].tolist()
    size = f"{'x'.join(map(str, each.spots.shape))} " if len(one.maps) > 1 else ""
    if one.unit == "votes":
        much = f"{lead:.3g} vote{'' if abs(lead) == 1 else 's'}"
    else:
        much = f"{lead:.3g} in the mean evidence of a cell"
    least = "" if each.exact else "at least "
    return (
        f"In the worst place, a {size}patch at row {top}, column {left}, the lead of "
        f"{name_of(label, class_names)} is {least}{much}; it wins with more than 0."
    )
