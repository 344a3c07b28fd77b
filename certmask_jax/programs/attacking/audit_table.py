"""What an audit comes to: for every defense what has to hold, from the certified to the clean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report import wilson_interval
from certmask_jax.certification.report.layout import Column, paragraphs, table
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_summary import OF_STOPPED_SEARCHES, percent
from certmask_jax.programs.attacking.attacked_run import AttackedRun, Claims

_KEYS = ("certified", "worst_case", "under_attack", "clean")


def rows(
    run: AttackedRun, claims: Claims, lines: Sequence[Line], specs: Sequence[str]
) -> list[dict[str, Any]]:
    """For each of ``specs``: the accuracies of the run, and what its images were attacked with.

    ``under_attack`` counts images that were not attacked as right, so it is at least what the
    attack would leave right of all.
    """
    count = len(claims.ids)
    by_spec = {one.get("spec") or one["name"]: one for one in run.results["defenses"]}
    made = []
    for spec in specs:
        tried = [line for line in lines if line["defense"] == spec and line["broken"] is not None]
        broken = sum(bool(line["broken"]) for line in tried)
        result = by_spec.get(spec)
        entry: dict[str, Any] = {
            "defense": spec,
            "images": count,
            "attacked": len(tried),
            "broken": broken,
            "certified": None if result is None else result["certified_accuracy"],
            "worst_case": None if result is None else result["worst_case_accuracy"],
            "clean": run.results["undefended_accuracy"]
            if result is None
            else result["clean_accuracy"],
        }
        right = round(entry["clean"] * count)
        entry["under_attack"] = (right - broken) / count
        entry["right"] = right
        entry["certificates"] = None if result is None else _certificates(claims, spec, tried)
        entry["intervals"] = {
            key: wilson_interval(entry[key], count) for key in _KEYS if entry[key] is not None
        }
        made.append(entry)
    return made


def _certificates(claims: Claims, spec: str, tried: Sequence[Line]) -> dict[str, Any]:
    """Those of a defense: how many there are and were attacked, and which were contradicted."""
    certified = {claim.number for claim in claims.of[spec] if claim.is_certified}
    attacked = [line for line in tried if line["number"] in certified]
    return {
        "count": len(certified),
        "attacked": len(attacked),
        "contradicted": [line["image"] for line in attacked if line["broken"]],
    }


def text_of(rows: Sequence[dict[str, Any]], width: int, *, finished: bool) -> str:
    """The rows as they are printed: a table, and what there is to say of it.

    ``finished`` is whether all images were attacked to the end.
    """
    columns = [
        Column("audited", tuple(row["defense"] for row in rows)),
        Column("images", tuple(str(row["images"]) for row in rows), right=True),
        *(
            Column(key.replace("_", " "), tuple(percent(row, key) for row in rows), right=True)
            for key in _KEYS
        ),
        Column("attacked", tuple(f"{row['attacked']} of {row['right']}" for row in rows), True),
    ]
    said = []
    for row in rows:
        of = row["certificates"]
        if of is None:
            said.append(f"{row['defense']}: broken {row['broken']} of {row['attacked']}")
            continue
        others = row["attacked"] - of["attacked"]
        said.append(
            f"{row['defense']}: {of['attacked']} of {counted(of['count'], 'certificate')} "
            "attacked, "
            f"{len(of['contradicted'])} contradicted; of images that are not certified broken "
            f"{row['broken'] - len(of['contradicted'])} of {others}"
        )
    notes = [
        "% of images, each column at most the next. certified and worst case are proved; under "
        "attack counts what was not attacked as right, so it is an upper bound; attacked: of those "
        "that are right without a patch, certificates of the least margin first. Brackets: 95% "
        "intervals (Wilson).",
        *(() if finished else (OF_STOPPED_SEARCHES,)),
    ]
    return "\n".join([*table(columns), "", *paragraphs(said, width), "", *paragraphs(notes, width)])
