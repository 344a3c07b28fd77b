"""The defenses on local evidence that ``--defense`` can name, and how a model has them built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from certmask_jax.defenses.evidence_defense import (
    ClippedBagNet,
    EvidenceDefense,
    PatchGuard,
    PatchGuardDetection,
)
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.spec_keys import Key, pairs, values


@dataclasses.dataclass(frozen=True)
class EvidenceEntry:
    """One defense: its name, a line about it, what builds it of a threat, and its keys."""

    name: str
    about: str
    build: Callable[..., EvidenceDefense]
    keys: tuple[Key, ...]


def _clip_or_tanh(text: str) -> float | None:
    return None if text == "tanh" else float(text)


EVIDENCE = {
    entry.name: entry
    for entry in (
        EvidenceEntry(
            "patchguard",
            "PatchGuard's robust masking of local logits (Mask-BN); recovery",
            PatchGuard,
            (
                Key("clip", float, "local logits are clipped to 0 and this", "inf"),
                Key("threshold", float, "share of a class above which it is masked", "0"),
            ),
        ),
        EvidenceEntry(
            "patchguard_pp",
            "PatchGuard++, means of local logits with a window taken out; detection",
            PatchGuardDetection,
            (Key("tau", float, "confidence above which a dissenting mean alerts", "0.5"),),
        ),
        EvidenceEntry(
            "clipped_bagnet",
            "the label of the mean of clipped local logits; recovery",
            ClippedBagNet,
            (Key("clip", _clip_or_tanh, "as of patchguard, or tanh, the paper's", "tanh"),),
        ),
    )
}
"""Name -> entry. All need a model with local logits."""


def is_on_evidence(text: str) -> bool:
    """Whether a spec names one of these."""
    return text.partition(":")[0] in EVIDENCE


def check(text: str) -> dict[str, str]:
    """The keys of a spec that names one of these, and what they are given as.

    Raises:
      ValueError: for an unknown key, or what is not ``NAME:key=value,...``.
    """
    name, colon, rest = text.partition(":")
    given = dict(pairs(rest, f"--defense {text}"))
    if colon and not given:
        raise ValueError(f"--defense {text}: expected key=value after the colon, got none")
    known = [key.name for key in EVIDENCE[name].keys]
    for key in given:
        if key not in known:
            raise ValueError(
                f"--defense {text}: unknown option {key!r}{hint(key, known)}; expected keys of "
                f"{name}, which has no masks: {', '.join(known)}"
            )
    return given


def build(text: str, threat: Threat, *, field: int, stride: int) -> EvidenceDefense:
    """The defense of a spec, against a threat, on cells that see ``field`` pixels each ``stride``.

    Raises:
      ValueError: for an unknown key, a value that cannot be, or a window that does not fit.
    """
    given = check(text)
    entry = EVIDENCE[text.partition(":")[0]]
    try:
        arguments = values(entry.keys, given)
        return entry.build(threat, field=field, stride=stride, spec=text, **arguments)
    except ValueError as error:
        raise ValueError(f"--defense {text}: {error}") from error
