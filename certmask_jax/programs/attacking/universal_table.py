"""What a universal patch comes to, on the images that it was made on and on those held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report.layout import Column, fits, paragraphs, table
from certmask_jax.programs.attacking import given_patch_table
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_summary import percent
from certmask_jax.programs.attacking.given_patches import GivenPatch
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.attacking.universal_job import NAME, Halves

_TITLES = {"held_out": "held out", "made_on": "made on"}


def summary(
    lines: Sequence[Line],
    specs: Sequence[str],
    patch: GivenPatch,
    claims: Claims,
    halves: Halves,
) -> dict[str, list[dict[str, Any]]]:
    """As of given patches, for each half of the images apart; one without images is left out."""
    made = {}
    for half in _TITLES:
        numbers = set(getattr(halves, half))
        own = [line for line in lines if line["number"] in numbers]
        if own:
            made[half] = given_patch_table.summary(own, specs, [patch], claims)
    return made


def text_of(halves: dict[str, list[dict[str, Any]]], width: int) -> str:
    """A summary as it is printed: for each half what is right without and with it, and proved."""
    if not halves:
        return "no image was asked about with the patch yet"
    keys = {"clean": "no patch", NAME: "the patch", "worst_case": "worst case"}
    titles = [f"{_TITLES[half]}, {title}" for half in halves for title in keys.values()]
    columns = [Column("right", tuple(titles))]
    for place, entry in enumerate(next(iter(halves.values()))):
        cells = [
            percent({**entries[place], **entries[place]["patches"]}, key)
            for entries in halves.values()
            for key in keys
        ]
        columns.append(Column(entry["defense"], tuple(cells), right=True))
    lines = table(columns)
    if not fits(lines, width):
        lines = table(columns, stacked=True, titles_in=3)
    counts = " and ".join(
        f"{counted(entries[0]['images'], 'image')} {_TITLES[half]}"
        for half, entries in halves.items()
    )
    notes = [
        f"% of {counts}, answered rightly (with the true label, or an alert where a defense "
        "detects). The patch was searched for on the images that it was made on; what it does to "
        "those held out is what it does to others. It leaves no fewer right than the worst case, "
        "which is proved. Brackets: 95% intervals (Wilson)."
    ]
    return "\n".join([*lines, "", *paragraphs(notes, width)])
