"""The defenses that ``--defense`` can name: one table, that reading, help and documents share.

A user's own class or function has an entry too, made from its signature.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from certmask_jax import defenses
from certmask_jax._text import like, names_of
from certmask_jax.defenses import Defense
from certmask_jax.defenses.band_defense import SmoothedViT
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import imported, mask_entries
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.keys_of_signatures import own_keys, own_words
from certmask_jax.programs.program import LISTED
from certmask_jax.programs.spec_keys import Key, size

BUILT_FOR = Key("built_for", size, "masks for that patch, anywhere, whatever is proved against")
"""What every defense takes beside its masks."""

SECOND = "second_"
"""Before the keys of masks: those of the second round."""


@dataclasses.dataclass(frozen=True)
class DefenseEntry:
    """One defense.

    Attributes:
      name: as it is typed; of a user's own its import path, or the name it is registered with.
      about: one line.
      build: ``(masks, [second masks], **arguments) -> Defense``, also with ``against``.
      keys: its hyper-parameters.
      masks: what stands for masks that nothing is said of.
      second_round: whether it takes other masks for a second round, or None.
      counts_patches: whether its masks are for one of several equal patches, and it is told how
        many there are.
      counts_labels: whether its rule is of the labels of its masks alone, and asks nothing of what
        they hide.
      asks_the_image: whether its rule is of the image alone, and its masks are for its proof.
      rounds: how many of its masks it unites, with no other masks for the second round; 0 where
        that is not known.
      path: the import path of a user's own; empty for those of this package.
    """

    name: str
    about: str
    build: Callable[..., Defense]
    keys: tuple[Key, ...] = ()
    masks: str = mask_entries.DEFAULT
    second_round: bool = False
    counts_patches: bool = False
    counts_labels: bool = False
    asks_the_image: bool = False
    rounds: int = 0
    path: str = ""

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names of all keys that it may have, its own first."""
        second = map(SECOND.__add__, mask_entries.KEYS) if self.second_round else ()
        own = (key.name for key in self.keys)
        return tuple(dict.fromkeys((*own, *mask_entries.KEYS, *second, BUILT_FOR.name)))


def _crosscert(
    masks: MaskSet,
    *,
    band: Size | None = None,
    band_stride: Size = 1,
    band_axis: Any = "columns",
    against: Threat | None = None,
) -> Defense:
    try:
        bands = SmoothedViT(masks.threat, band=band, stride=band_stride, axis=band_axis).masks
    except ValueError as error:
        name, colon, rest = str(error).partition(": ")
        typed = {"stride": "band_stride", "axis": "band_axis"}.get(name, name)
        raise ValueError(f"{typed}{colon}{rest}") from error
    return defenses.CrossCert(masks, bands, against=against)


_TIES = Key("ties", str, "the label that wins where several have most votes", "largest")

DEFENSES = {
    entry.name: entry
    for entry in (
        DefenseEntry(
            "double_masking",
            "PatchCleanser, two rounds; recovery",
            defenses.double_masking,
            (_TIES,),
            second_round=True,
            rounds=2,
        ),
        DefenseEntry(
            "challenger_masking",
            "PatchCleanser, Appendix C; recovery",
            defenses.challenger_masking,
            rounds=2,
        ),
        DefenseEntry(
            "patchcure",
            "PatchCURE, two rounds against the unmasked label, made for --two-parts; recovery",
            defenses.patchcure,
            masks="mask_stride=1",
            rounds=2,
        ),
        DefenseEntry(
            "minority_reports",
            "one round of votes against the unmasked label; detection",
            defenses.minority_reports,
            (Key("tau", float, "confidence above which a dissenting mask alerts, in [0, 1)", "0"),),
            rounds=1,
        ),
        DefenseEntry(
            "crosscert",
            "CrossCert, double masking and votes of bands that check each other; detection",
            _crosscert,
            (
                Key("band", size, "pixels that a band shows (4 on images of up to 64, else 19)"),
                Key("band_stride", size, "pixels from one band to the next", "1"),
                Key("band_axis", str, "columns, rows, both or blocks", "columns"),
            ),
            rounds=2,
        ),
        DefenseEntry(
            "vot",
            "VOT, the votes of bands in CrossCert by themselves; recovery",
            defenses.vot,
            (_TIES,),
            masks="bands=usual",
            counts_labels=True,
            rounds=1,
        ),
        DefenseEntry(
            "mrcert",
            "MRCert, all unions of four masks (four times --patches); recovery that may be asked "
            "of a patched image",
            defenses.mrcert,
            counts_patches=True,
        ),
        DefenseEntry(
            "pair_cover",
            "one round whose masks hide every two locations together; recovery",
            defenses.pair_cover,
            (_TIES,),
            masks="budget=15",
        ),
        DefenseEntry(
            "certmask",
            "CertMask's one-round rule; claims recovery, proves none",
            defenses.certmask,
            (_TIES,),
            masks="tiling=replicated",
            rounds=1,
        ),
        DefenseEntry(
            "certmask_detection",
            "what CertMask's condition does prove; detection",
            defenses.certmask_detection,
            (Key("tolerance", int, "votes of masks that may dissent without an alert", "0"),),
            masks="tiling=replicated",
            rounds=1,
        ),
        DefenseEntry(
            "plurality",
            "one round, the label of most masks; recovery",
            defenses.plurality,
            (_TIES,),
            counts_labels=True,
            rounds=1,
        ),
        DefenseEntry(
            "minimum_explanation",
            "one round, the label that needs the fewest errors of the model; recovery",
            defenses.minimum_explanation,
            (_TIES,),
            rounds=1,
        ),
        DefenseEntry(
            "robust_masking",
            "one round, PatchGuard's masking on votes; recovery",
            defenses.robust_masking,
            (_TIES,),
            rounds=1,
        ),
        DefenseEntry(
            "interval_bounds",
            "the classifier itself, by interval bounds that it has to be trained for (IBP); "
            "recovery",
            defenses.interval_bounds,
            masks="mask_stride=1",
            asks_the_image=True,
            rounds=1,
        ),
    )
}
"""Name -> entry, of the defenses of this package."""


CALLED_ELSEWHERE = {
    "patchcleanser": "double_masking",
    "doublemask": "double_masking",
    "patchguard++": "patchguard_pp",
    "maskbn": "patchguard",
    "maskds": "mask_ds",
    "cbn": "clipped_bagnet",
    "ds": "derandomized_smoothing",
    "drs": "derandomized_smoothing",
    "svit": "smoothed_vit",
    "ecvit": "smoothed_vit",
    "mr": "minority_reports",
    "vip": "minority_reports",
    "ibp": "interval_bounds",
}
"""What papers call defenses, in small letters and ``+`` alone, and our names for these."""


def entry(name: str, *, others: Iterable[str] = ()) -> DefenseEntry:
    """The entry of a name, or of an import path; ``others`` may be meant too, for the error.

    Raises:
      ValueError: for a name that there is not, with those that are like it; for a path that
        cannot be imported or is no defense.
    """
    if name in DEFENSES:
        return DEFENSES[name]
    path = imported.path_of(name, imported.DEFENSES)
    known = [*DEFENSES, *others, *imported.registered(imported.DEFENSES)]
    if path is None:
        word = re.split("[,= ]", name)[0]
        meant = CALLED_ELSEWHERE.get(re.sub("[^a-z+]", "", word.lower()))
        close = like(word, known) or like(word.lower(), known)
        close = f" (did you mean {meant}?)" if meant in known else close
        named = names_of(known, "defenses", LISTED)
        raise ValueError(f"expected one of {named}, got {name!r}{close}")
    try:
        return _own(name, path)
    except ValueError as error:
        raise ValueError(f"{error}{hint(name.partition(':')[0], known)}") from error


def _own(name: str, path: str) -> DefenseEntry:
    """The entry of a user's own: its first parameter is the masks, the others are its keys."""
    there = list(imported.parameters(path).values())
    first = there[0] if there else None
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"{path}: expected a defense, which takes masks first")
    keys = own_keys(path, given={"second", "against", "spec"})

    def build(*masks: Any, **arguments: Any) -> Defense:
        if "against" in arguments and not imported.accepts(path, "against"):
            raise ValueError(f"{BUILT_FOR.name}: expected a defense that takes against={{threat}}")
        defense: Defense = imported.called(path, *masks, wanted=Defense, **arguments)
        return defense

    has_second = any(p.name == "second" for p in there)
    return DefenseEntry(name, own_words(path), build, keys, second_round=has_second, path=path)
