"""The defenses on evidence that ``--defense`` can name, and how a model has them built.

Evidence is the local logits of a model that has them, or what any model says of bands of an image.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from certmask_jax.defenses import evidence_defense
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_entries, imported
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.keys_of_signatures import own_keys, own_words
from certmask_jax.programs.spec_keys import Key, flag, pairs, size, values


@dataclasses.dataclass(frozen=True)
class EvidenceEntry:
    """One defense.

    Attributes:
      name: as it is typed.
      about: a line about it.
      build: what makes it of a threat and the values of keys.
      keys: those that it takes.
      is_local: whether it is on local logits; else on bands.
      kind: its class, where it is not ``build``.
    """

    name: str
    about: str
    build: Callable[..., EvidenceDefense]
    keys: tuple[Key, ...]
    is_local: bool = True
    kind: type[EvidenceDefense] | None = None


def _clip_or_tanh(text: str) -> float | None:
    return None if text == "tanh" else float(text)


def _theta_or_top(text: str) -> float | None:
    return None if text == "top" else float(text)


_BANDS = (
    Key(
        "band",
        size,
        "pixels that a band shows, or HxW of blocks, in papers 4 on images of up to 64 pixels, "
        "else 25, and 19 of smoothed_vit",
    ),
    Key("stride", size, "pixels from one band to the next", "1"),
    Key("axis", str, "columns, rows, both (rows, then columns) or blocks", "columns"),
    Key("wrap", flag, "bands that cross the border go on at the other side", "true"),
)


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
        EvidenceEntry(
            "bagcert",
            "the class for which most cells of local logits score, each by a threshold; recovery",
            BagCert,
            (Key("threshold", float, "local logit above which a cell scores for a class", "0"),),
        ),
        EvidenceEntry(
            "derandomized_smoothing",
            "votes of bands, each seen alone, by a threshold of the softmax; recovery",
            DerandomizedSmoothing,
            (
                *_BANDS,
                Key(
                    "threshold",
                    _theta_or_top,
                    "or softmax from which a band votes, top: its best",
                    "0.2",
                ),
                Key("ties", str, "the label that wins where several have most votes", "smallest"),
            ),
            is_local=False,
        ),
        EvidenceEntry(
            "smoothed_vit",
            "votes of bands for their labels, of any model; recovery",
            SmoothedViT,
            _BANDS,
            is_local=False,
        ),
        EvidenceEntry(
            "mask_ds",
            "PatchGuard's robust masking of the confidences of bands; recovery",
            MaskDS,
            (
                *_BANDS,
                Key("features", str, "confidence, or votes: 1 where it is above", "confidence"),
                Key("above", float, "softmax that a vote of mask_ds has to exceed", "0.2"),
                Key("threshold", float, "share of a class above which it is masked", "0"),
            ),
            is_local=False,
        ),
    )
}
"""Name -> entry."""


def name_of(text: str) -> str:
    """The name in a spec: all before the first colon, or an import path, which has a colon."""
    name = text.partition(":")[0]
    return name if name in EVIDENCE else imported.begins_with_path(text) or name


def entry_of(text: str) -> EvidenceEntry | None:
    """The entry that a spec names, or that of a user's own class; None for other defenses.

    A user's own is a class, by its import path or as another package registers it.
    """
    name = name_of(text)
    if name in EVIDENCE or name in defense_entries.DEFENSES:
        return EVIDENCE.get(name)
    path = imported.path_of(name, imported.DEFENSES)
    try:
        built = None if path is None else imported.attribute(path)
    except ValueError:  # of what cannot be imported: who builds it says why
        return None
    if path is None or not (inspect.isclass(built) and issubclass(built, EvidenceDefense)):
        return None
    is_local = issubclass(built, LocalDefense)
    given = {"spec", "field", "stride", "seen_size"} if is_local else {"spec"}
    return EvidenceEntry(
        name,
        own_words(path),
        functools.partial(imported.called, path, wanted=EvidenceDefense),
        own_keys(path, given=given),
        is_local=is_local,
        kind=built,
    )


def is_on_evidence(text: str) -> bool:
    """Whether a spec names one of these, or a user's own."""
    return entry_of(text) is not None


def is_local(text: str) -> bool:
    """Whether a spec names one that is on local logits."""
    entry = entry_of(text)
    return entry is not None and entry.is_local


def is_one_rule(text: str) -> bool:
    """Whether a spec names one whose rule is the same against every patch."""
    entry = entry_of(text)
    kind: Any = None if entry is None else entry.kind or entry.build
    return isinstance(kind, type) and evidence_defense.is_one_rule(kind)


def check(text: str) -> dict[str, str]:
    """The keys of a spec that names one of these, and what they are given as.

    Raises:
      ValueError: for an unknown key, or what is not ``NAME:key=value,...``.
    """
    name = name_of(text)
    colon, rest = text[len(name) : len(name) + 1], text[len(name) + 1 :]
    given = dict(pairs(rest, f"--defense {text}"))
    if colon and not given:
        raise ValueError(f"--defense {text}: expected key=value after the colon, got none")
    entry = entry_of(text)
    assert entry is not None
    known = [key.name for key in entry.keys]
    for key in given:
        if key not in known:
            raise ValueError(
                f"--defense {text}: unknown option {key!r}{hint(key, known)}; expected keys of "
                f"{name}, which takes no masks: {', '.join(known)}"
            )
    return given


def build(
    text: str,
    threat: Threat,
    local: LocalLogits | None,
    seen_size: tuple[int, int] | None = None,
) -> EvidenceDefense:
    """The defense of a spec against a threat; of local logits on the cells of a model.

    ``seen_size`` is what images are resized to before the model sees them, if they are.

    Raises:
      ValueError: for an unknown key, a value that cannot be, a window that does not fit, or bands
        that do not.
    """
    given = check(text)
    entry = entry_of(text)
    assert entry is not None
    try:
        arguments = values(entry.keys, given)
        if entry.is_local:
            assert local is not None
            arguments |= {"field": local.field, "stride": local.stride, "seen_size": seen_size}
        return entry.build(threat, spec=text, **arguments)
    except ValueError as error:
        raise ValueError(f"--defense {text}: {error}") from error
