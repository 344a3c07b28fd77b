"""What a reader has to know beside the numbers: a record for each, which says itself in a line.

Those that numbers of a report tell are made from it (``notes.notices_of``). The others come from
the facts that are stored with a prediction table, which ``recorded`` reads, or from the program.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from certmask_jax._text import counted
from certmask_jax.certification.report.layout import printable

_SHOWN = 5  # images


class Place(enum.Enum):
    """Where a notice stands."""

    HEADING = "above the table"
    WORK = "below it, with what was evaluated"
    WARNING = "at the end: what may make certificates differ from those of exact arithmetic"


@dataclasses.dataclass(frozen=True)
class Notice(abc.ABC):
    """Something to know about a run; a subclass says what, and where it stands."""

    place: ClassVar[Place]

    @abc.abstractmethod
    def text(self) -> str:
        """One line, as long as it needs; what comes from outside is made printable."""


@dataclasses.dataclass(frozen=True)
class LeftOut(Notice):
    """Images that could not be read, or are gone, by id, with why."""

    place = Place.HEADING
    images: Mapping[str, str]

    def text(self) -> str:
        named = [f"{printable(one)} ({printable(why)})" for one, why in self.images.items()]
        return f"{len(named):,} left out, which count nowhere: {_some(named)}"


@dataclasses.dataclass(frozen=True)
class Subset(Notice):
    """The images are some of a data set of ``of``: "first", "evenly over classes", "at random"."""

    place = Place.HEADING
    how: str
    of: int
    seed: int | None = None  # of those that were drawn

    def text(self) -> str:
        if self.seed is not None:
            return (
                f"images drawn at random from {self.of:,}, seed {self.seed}; intervals are about "
                "all of them"
            )
        if self.how != "first":
            return (
                f"images of {self.of:,}, as many of each class as can be; intervals are about "
                "images that are spread so"
            )
        return f"the first images of {self.of:,}"


@dataclasses.dataclass(frozen=True)
class MissingImages(Notice):
    """Images that a list of labels names and that are not in the folder."""

    place = Place.HEADING
    ids: Sequence[str]

    def text(self) -> str:
        return (
            f"{len(self.ids):,} more in the list of labels, not in the folder, counted "
            f"nowhere: {_some(list(map(printable, self.ids)))}"
        )


@dataclasses.dataclass(frozen=True)
class OnlyClasses(Notice):
    """The model has more outputs than the so many classes among which it chooses here."""

    place = Place.HEADING
    count: int

    def text(self) -> str:
        what = counted(self.count, "class", "classes")
        return f"the model chooses among the {what} of the data set only"


@dataclasses.dataclass(frozen=True)
class PatchedAlready(Notice):
    """Every image has a patch of random noise; the seed says which."""

    place = Place.WORK
    seed: int

    def text(self) -> str:
        return (
            "the images are patched already, each with random noise of the size of the patch; the "
            "worst case is over other contents of it (the clean image too), or one patch more"
        )


@dataclasses.dataclass(frozen=True)
class FewerPasses(Notice):
    """Fewer masked images were evaluated than the whole table has."""

    place = Place.WORK
    made: int
    full_table: int
    num_images: int

    def text(self) -> str:
        return (
            f"forward passes: {self.made / self.num_images:.1f} an image of "
            f"{self.full_table / self.num_images:.0f}; the others could not change a verdict"
        )


@dataclasses.dataclass(frozen=True)
class Viewed(Notice):
    """The logits are means over these views of each masked image."""

    place = Place.WORK
    views: Sequence[str]

    def text(self) -> str:
        return (
            f"views: logits are means over {len(self.views)} views of each masked image, which is "
            f"{len(self.views)} forward passes: {', '.join(map(printable, self.views))}"
        )


@dataclasses.dataclass(frozen=True)
class InTwoParts(Notice):
    """A stem was run once an image, a head for every mask of its map of features."""

    place = Place.HEADING
    name: str
    threats: Sequence[str]  # in pixels
    windows: Sequence[str]  # the same, in cells

    def text(self) -> str:
        met = "; ".join(
            f"{patches} reach windows of {cells.replace(' patches', '', 1)} cells"
            for patches, cells in zip(self.threats, self.windows, strict=False)
        )
        return (
            f"two parts: {printable(self.name)}; masks, and what they are against, are in cells of "
            f"the map between them ({printable(met)}); forward passes are those of the head, the "
            "stem makes one an image"
        )


@dataclasses.dataclass(frozen=True)
class DroppedTokens(Notice):
    """The model was given the tokens alone that masks leave, so many of them at most."""

    place = Place.WORK
    tokens: Sequence[int]

    def text(self) -> str:
        counts = ", ".join(map(str, self.tokens))
        return (
            "hidden tokens: left out of the model's sequence and not filled, so masked images have "
            f"at most {counts} tokens" + ", by the mask" * (len(self.tokens) > 1)
        )


@dataclasses.dataclass(frozen=True)
class DistinctFields(Notice):
    """Local logits were evaluated on distinct fields, as many as so many whole images have."""

    place = Place.WORK
    fields: int
    as_whole_images: float

    def text(self) -> str:
        return (
            f"local logits: all masked images of an image from {self.fields} distinct fields, as "
            f"many as {self.as_whole_images:g} whole images have"
        )


@dataclasses.dataclass(frozen=True)
class LabelFlips(Notice):
    """How many labels of ``compared`` masked images are others in float32.

    ``largest_margin`` is the largest logit margin (as the table holds it) of those ``flips``.
    """

    place = Place.WARNING
    compared: int
    flips: int
    largest_margin: float

    def text(self) -> str:
        return (
            f"precision: {self.flips} of {counted(self.compared, 'masked image')} have another "
            "label in "
            f"float32 (largest margin {self.largest_margin:.3g})"
        )


@dataclasses.dataclass(frozen=True)
class MarginGuard(Notice):
    """Images with a logit margin of at most this are not certified.

    On evidence those are not whose worst case is not proved of all evidence less than half of it
    away (soundness, 15).
    """

    place = Place.WARNING
    margin: float
    of_tables: bool = True
    of_evidence: bool = False

    def text(self) -> str:
        of_tables = f"no image is certified with a logit margin of {self.margin:g} or less"
        of_evidence = (
            "on evidence an image is certified only where that is proved of all logits less than "
            f"{self.margin / 2:g} away"
        )
        said = [of_tables] * self.of_tables + [of_evidence] * self.of_evidence
        return f"margin guard: {'; '.join(said)}"


@dataclasses.dataclass(frozen=True)
class NonFinite(Notice):
    """Images of which some masked image has NaN or infinite logits."""

    place = Place.WARNING
    ids: Sequence[str]

    def text(self) -> str:
        shown = list(map(printable, self.ids))
        return (
            f"WARNING: NaN or infinite logits on {counted(len(shown), 'image')}, never certified: "
            f"{_some(shown)}"
        )


IN_ORDER: tuple[type[Notice], ...] = (
    LeftOut,
    Subset,
    MissingImages,
    OnlyClasses,
    InTwoParts,
    PatchedAlready,
    FewerPasses,
    Viewed,
    DroppedTokens,
    DistinctFields,
    LabelFlips,
    MarginGuard,
    NonFinite,
)
"""The order in which those of a place stand; a notice of another kind comes after these."""


def recorded(provenance: Mapping[str, Any]) -> tuple[Notice, ...]:
    """The notices that the facts stored with a table, or with results, call for."""
    notices: list[Notice] = []
    subset = provenance.get("subset")
    if subset is not None:
        notices.append(Subset(subset["how"], subset["of"], subset["seed"]))
    if provenance.get("missing_images"):
        notices.append(MissingImages(tuple(provenance["missing_images"])))
    if provenance.get("only_classes") is not None:
        notices.append(OnlyClasses(len(provenance["only_classes"])))
    if "patched_with_noise_of_seed" in provenance:
        notices.append(PatchedAlready(provenance["patched_with_noise_of_seed"]))
    if provenance.get("views"):
        notices.append(Viewed(tuple(provenance["views"])))
    if provenance.get("kept_tokens"):
        notices.append(DroppedTokens(tuple(provenance["kept_tokens"])))
    if "two_parts" in provenance:
        of_run = (provenance.get("threats", ()), provenance.get("windows_of_cells", ()))
        notices.append(InTwoParts(provenance["two_parts"]["name"], *map(tuple, of_run)))
    if "fields" in provenance:
        notices.append(DistinctFields(provenance["fields"], provenance["fields_as_whole_images"]))
    flips = provenance.get("label_flips_against_float32")
    if flips:
        notices.append(LabelFlips(flips["compared"], flips["flips"], flips["largest_margin"]))
    return tuple(notices)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
