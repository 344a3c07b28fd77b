"""A table of accuracies: the paper's on the left, those of the runs here on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report.numbers import with_interval
from experiments.papers import figures
from experiments.papers.recipes import Row, Table
from experiments.papers.sheets import NOT_AT_HAND, Sheet, by_source, numbered

Results = Mapping[str, Any]
"""``results.json`` of a run."""

_TITLES = ("", "the paper's data, model", "clean", "certified", "patch", "`--defense`")
_OURS = ("clean", "by the paper's condition", "worst case")


def sheet_of(table: Table, results: Mapping[str, Results]) -> Sheet:
    """The table with our figures.

    Args:
      table: the rows that are shown.
      results: of the run of each ``Row.patch``; rows without one have no figures of ours.
    """
    our_figures = [_found(row, results.get(row.patch)) for row in table.rows]
    sources: list[str] = []
    some: Results = next(iter(results.values()), {})
    return Sheet(
        measured=measured(some),
        titles=(*_TITLES, *_OURS),
        rows=[
            _cells(row, ours, sources) for row, ours in zip(table.rows, our_figures, strict=True)
        ],
        numbers=[_numbers(row, ours) for row, ours in zip(table.rows, our_figures, strict=True)],
        record={
            "here": here(some),
            "rows": [
                {
                    **{name: getattr(row, name) for name in ("label", "defense", "data", "patch")},
                    "model": row.model,
                    "paper": {"clean": row.clean, "certified": row.certified, "source": row.source},
                    "ours": ours,
                }
                for row, ours in zip(table.rows, our_figures, strict=True)
            ],
        },
        below=numbered(sources),
        svg=figures.accuracy(table, our_figures) if table.axis else "",
    )


def here(results: Results) -> dict[str, Any]:
    """What our figures are of."""
    known = results.get("provenance", {})
    return {
        "dataset": known.get("dataset"),
        "model": known.get("model"),
        "weights": known.get("weights"),
        "num_images": results.get("num_images"),
        "undefended_accuracy": results.get("undefended_accuracy"),
    }


def measured(results: Results) -> str:
    """The same in a sentence."""
    facts = here(results)
    if facts["num_images"] is None:
        return "Nothing was run."
    return (
        f"Measured here: {counted(facts['num_images'], 'image')} of {facts['dataset']}, "
        f"{facts['model']} "
        f"({facts['weights'] or 'no file of weights'}), undefended "
        f"{100 * facts['undefended_accuracy']:.1f}."
    )


def patch_of(threat: Mapping[str, Any]) -> str:
    """``"5x5"``; of several shapes or patches their number."""
    shapes = threat["patches"][0]
    height, width = shapes[0]
    text = f"{height}x{width}" if len(shapes) == 1 else f"{len(shapes)} shapes"
    count = len(threat["patches"])
    return text if count == 1 else f"{count} of {text}"


def _found(row: Row, results: Results | None) -> dict[str, Any] | None:
    """Our figures for a row: fractions, each with its 95% interval."""
    if results is not None and not row.defense:
        share, between = results["undefended_accuracy"], results["intervals"]
        clean = [share, *between["undefended_accuracy"]]
        return {"patch": "none", "clean": clean, "condition": None, "worst_case": None}
    for one in (results or {}).get("defenses", ()):
        if one["spec"] == row.defense:
            between = one["intervals"]
            name = next(iter(one["conditions"]), "worst_case_accuracy")
            condition = one["conditions"].get(name, one["worst_case_accuracy"])
            return {
                "patch": patch_of(one["threat"]),
                "masked_images": one["masked_images"],
                "clean": [one["clean_accuracy"], *between["clean_accuracy"]],
                "condition": [condition, *between[name]],
                "condition_name": name,
                "worst_case": [one["worst_case_accuracy"], *between["worst_case_accuracy"]],
                "worst_case_exact": one["worst_case_exact"],
            }
    return None


def _cells(row: Row, ours: Mapping[str, Any] | None, sources: list[str]) -> list[str]:
    mark = by_source(sources, row.source)
    spec = f"`{row.defense}`" if row.defense else "none"
    cells = [row.label, ", ".join(filter(None, [row.data, row.model]))]
    cells += [_claimed(row.clean, mark), _claimed(row.certified, mark)]
    if ours is None:
        return [*cells, row.patch.replace("--", ""), spec, "not run", "", ""]
    bound = "" if ours.get("worst_case_exact", True) else ">="
    figures_here = [_percent(ours["clean"]), _percent(ours["condition"])]
    worst = _percent(ours["worst_case"])
    return [*cells, ours["patch"], spec, *figures_here, bound + worst if worst else ""]


def _numbers(row: Row, ours: Mapping[str, Any] | None) -> dict[str, Any]:
    known = ours or {}
    record: dict[str, Any] = {
        "label": row.label,
        "data": row.data,
        "x": row.x,
        "defense": row.defense,
        "patch": known.get("patch"),
        "paper_clean": None if row.clean is None else row.clean / 100,
        "paper_certified": None if row.certified is None else row.certified / 100,
    }
    for name in ("clean", "condition", "worst_case"):
        ends = known.get(name) or (None, None, None)
        record |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    return record


def _claimed(figure: float | None, mark: str) -> str:
    return NOT_AT_HAND if figure is None else f"{figure}{mark}"


def _percent(ends: Sequence[float] | None) -> str:
    return "" if ends is None else with_interval(ends[0], (ends[1], ends[2]))
