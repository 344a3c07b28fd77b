"""What an audit comes to: for every defense what has to hold, from the certified to the clean.

What a paper alone calls certified has to hold for nobody but the paper: it is counted apart.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certmask_jax._text import counted, some
from certmask_jax.certification.report import wilson_interval
from certmask_jax.certification.report.layout import Column, paragraphs, table, wrapped
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_summary import OF_STOPPED_SEARCHES, percent
from certmask_jax.programs.attacking.attacked_run import AttackedRun
from certmask_jax.programs.attacking.run_claims import Claim, Claims

_KEYS = ("certified", "worst_case", "under_attack", "clean")
_SHOWN = 5
"""Images that are named in print; the JSON names all."""

_EVIDENCE = ("number", "image", "after", "file")

_OF_PAPERS = (
    "A patch that contradicts what a paper alone calls certified is a finding about that paper and "
    "no defect of this program, so it leaves the exit status as it is."
)


def rows(
    run: AttackedRun, claims: Claims, lines: Sequence[Line], specs: Sequence[str]
) -> list[dict[str, Any]]:
    """For each of ``specs``: the accuracies of the run, and what its images were attacked with.

    ``under_attack`` counts images that were not attacked as right, so it is at least what the
    attack would leave right of all. ``certificates`` are those of the worst case; ``papers`` has by
    the name of each condition of the defense's paper the images that the paper alone calls
    certified. Both say how many there are (``count``), how many were ``attacked``, which were
    ``contradicted`` (ids), and in ``evidence`` of each of these its number, its id, what was
    answered, and the file of the patched image: None where it is wrong without a patch.
    ``unconfirmed`` are those that do not give now what the run recorded.
    """
    count = len(claims.ids)
    by_spec = {one.get("spec") or one["name"]: one for one in run.results["defenses"]}
    made = []
    for spec in specs:
        own = [line for line in lines if line["defense"] == spec]
        of_run = [line for line in own if claims.agree(line)]
        tried = [line for line in of_run if line["broken"] is not None]
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
        entry["certificates"] = entry["papers"] = None
        if result is not None:
            of = claims.of[spec]
            entry["certificates"] = _held([one for one in of if one.is_certified], own, of_run)
            entry["papers"] = {
                name: _held([one for one in of if one.is_of_paper_alone(name)], own, of_run)
                for name in result.get("conditions", ())
            }
        entry["intervals"] = {
            key: wilson_interval(entry[key], count) for key in _KEYS if entry[key] is not None
        }
        made.append(entry)
    return made


def _held(claims: Sequence[Claim], lines: Sequence[Line], of_run: Sequence[Line]) -> dict[str, Any]:
    """Some claims of a defense against its attack: counts, and what was contradicted by what.

    ``lines`` are all of the defense, and ``of_run`` those that agree with what the run said.
    """
    numbers = {claim.number for claim in claims}
    wrong = {claim.number for claim in claims if claim.is_certified and claim.is_wrong}
    own = [line for line in of_run if line["number"] in numbers]
    against = [line for line in own if line["broken"] or line["number"] in wrong]
    known = {line["number"] for line in own}
    return {
        "count": len(numbers),
        "attacked": sum(line["broken"] is not None for line in own),
        "contradicted": [line["image"] for line in against],
        "evidence": [
            {"after": line.get("before"), "file": None}
            | {key: line[key] for key in _EVIDENCE if key in line}
            for line in against
        ],
        "unconfirmed": [
            line["image"]
            for line in lines
            if line["number"] in numbers and line["number"] not in known
        ],
    }


def text_of(rows: Sequence[dict[str, Any]], folder: Path, width: int, *, finished: bool) -> str:
    """The rows as they are printed: a table, and what there is to say of it.

    ``folder`` is where the files of the rows are, whose paths are printed as a shell takes them.
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
    said = [
        line
        for row in rows
        for sentence, evidence in _said(row)
        for line in (*wrapped(sentence, width), *_named(evidence, folder))
    ]
    of_papers = any(of["contradicted"] for row in rows for of in (row["papers"] or {}).values())
    notes = [
        "% of images, each column at most the next. certified and worst case are proved; under "
        "attack counts what was not attacked as right, so it is an upper bound; attacked: of those "
        "that are right without a patch, certificates first, then what a paper alone calls "
        "certified, each of the least margin first. Brackets: 95% intervals (Wilson).",
        *((_OF_PAPERS,) if of_papers else ()),
        *(() if finished else (OF_STOPPED_SEARCHES,)),
    ]
    return "\n".join([*table(columns), "", *said, "", *paragraphs(notes, width)])


def _said(row: dict[str, Any]) -> list[tuple[str, Sequence[dict[str, Any]]]]:
    """Sentences of a defense, and of each condition of its paper that holds alone somewhere.

    Beside each the images whose patches contradict what it is about.
    """
    spec, of = row["defense"], row["certificates"]
    if of is None:
        return [(f"{spec}: broken {row['broken']} of {row['attacked']}", ())]
    others = row["attacked"] - of["attacked"]
    by_patch = sum(one["file"] is not None for one in of["evidence"])
    unconfirmed = (
        f", {len(of['unconfirmed'])} left out as they are not confirmed now "
        f"({some(of['unconfirmed'])})"
        if of["unconfirmed"]
        else ""
    )
    own = (
        f"{spec}: {of['attacked']} of {counted(of['count'], 'certificate')} attacked, "
        f"{len(of['contradicted'])} contradicted{unconfirmed}; of images "
        f"without one broken {row['broken'] - by_patch} of {others}"
    )
    of_papers = [
        (
            f"{spec}, {name.replace('_', ' ')}: the paper alone calls "
            f"{counted(held['count'], 'image')} certified; {held['attacked']} attacked, "
            f"{len(held['contradicted'])} contradicted",
            held["evidence"],
        )
        for name, held in row["papers"].items()
        if held["count"]
    ]
    return [(own, of["evidence"]), *of_papers]


def _named(evidence: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Some of the images, a line each: its number, its id, and the path of the patched one.

    No line is broken, so that a path can be copied.
    """
    lines = [
        f"    number {one['number']}, {one['image']}: "
        + (shlex.quote(str(folder / one["file"])) if one["file"] else "wrong without a patch")
        for one in evidence[:_SHOWN]
    ]
    more = len(evidence) - _SHOWN
    return [*lines, f"    and {more} more, in attack.json"] if more > 0 else lines
