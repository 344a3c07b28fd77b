"""What given patches come to: accuracy with each of them, with all, without any, and proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report import wilson_interval
from certmask_jax.certification.report.layout import Column, fits, paragraphs, table
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_options import UNDEFENDED
from certmask_jax.programs.attacking.attack_summary import percent
from certmask_jax.programs.attacking.given_patches import GivenPatch
from certmask_jax.programs.attacking.run_claims import Claims


def summary(
    lines: Sequence[Line], specs: Sequence[str], patches: Sequence[GivenPatch], claims: Claims
) -> list[dict[str, Any]]:
    """What share of images is right with each patch, with every one of them, and without any.

    Images that were not asked about with every patch yet, in a test that was stopped, do not count,
    but for ``contradictions``.

    Those of ``specs`` in their order, each with its images, ``clean``, ``worst_case``, ``patches``
    by name, ``all_patches`` (None where no image counts) and the 95% intervals of all these, and
    ``contradictions``, the images that a patch broke though they are certified.
    """
    made = []
    for spec in specs:
        every = [line for line in lines if line["defense"] == spec]
        asked = Counter(line["image"] for line in every)
        own = [line for line in every if asked[line["image"]] == len(patches)]
        row_of = {image_id: row for row, image_id in enumerate(claims.ids)}
        images = sorted({row_of[line["image"]] for line in own})
        count = len(images)
        wrong = {line["image"] for line in own if not line["right"]}
        of = claims.of[spec]
        certified = sum(of[i].is_certified for i in images)
        entry: dict[str, Any] = {
            "defense": spec,
            "images": count,
            "clean": sum(of[i].is_right for i in images) / count if count else None,
            "worst_case": certified / count if count and spec != UNDEFENDED else None,
            "all_patches": (count - len(wrong)) / count if count else None,
        }
        shares = {}
        for name in (patch.name for patch in patches):
            here = [line["right"] for line in own if line["patch"] == name]
            shares[name] = sum(here) / len(here) if here else None
        keys = ("clean", "worst_case", "all_patches")
        fractions = {**{key: entry[key] for key in keys}, **shares}
        entry["patches"] = shares
        entry["intervals"] = {
            key: wilson_interval(value, count)
            for key, value in fractions.items()
            if value is not None
        }
        entry["contradictions"] = [
            line["image"] for line in every if line["broken"] and line["certified"]
        ]
        made.append(entry)
    return made


def text_of(entries: Sequence[dict[str, Any]], width: int) -> str:
    """A summary as it is printed: rows for no patch, each patch, all, and what is proved."""
    names = list(entries[0]["patches"])
    titles = ["no patch", *names, "every one of these", "worst case"]
    columns = [Column("right with", tuple(titles))]
    for entry in entries:
        cells = {**entry, **entry["patches"]}
        keys = ["clean", *names, "all_patches", "worst_case"]
        columns.append(
            Column(entry["defense"], tuple(percent(cells, key) for key in keys), right=True)
        )
    lines = table(columns)
    if not fits(lines, width):
        lines = table(columns, stacked=True, titles_in=3)
    notes = [
        f"% of {counted(entries[0]['images'], 'image')} answered rightly (with the true label, "
        "or an "
        "alert where a defense detects). every one of these: with whichever of the patches. None "
        "can leave fewer right than the worst case, which is proved. Brackets: 95% intervals "
        "(Wilson)."
    ]
    return "\n".join([*lines, "", *paragraphs(notes, width)])
