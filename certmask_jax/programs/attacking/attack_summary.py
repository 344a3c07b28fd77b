"""What an attack comes to: accuracy without a patch, under attack, and in the worst case."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax._text import counted
from certmask_jax.certification.report import wilson_interval
from certmask_jax.certification.report.layout import Column, paragraphs, table
from certmask_jax.defenses import ALERT, Guarantee
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_options import UNDEFENDED

OF_STOPPED_SEARCHES = (
    "Of images that are attacked together those that break are counted first, and those that do "
    "not when their search has ended. So here, where it was stopped, too large a share is broken."
)


def summary(lines: Sequence[Line], specs: Sequence[str], detects: Sequence[bool]) -> list[Line]:
    """For each that was attacked: accuracy without a patch, under attack, and in the worst case.

    An accuracy is None where there is no image yet, in an attack that was stopped. Images that do
    not give what the run that is attacked recorded count nowhere but in ``otherwise``.
    """
    made = []
    for spec, may_alert in zip(specs, detects, strict=True):
        every = [line for line in lines if line["defense"] == spec]
        rows = [line for line in every if not line.get("otherwise")]
        right = [line["before"] == line["label"] for line in rows]
        tried = [line for line in rows if line["broken"] is not None]
        broken = sum(bool(line["broken"]) for line in tried)
        settled = len(tried) == sum(right)
        entry: Line = {
            "defense": spec,
            "images": len(rows),
            "guarantee": (Guarantee.DETECTION if may_alert else Guarantee.RECOVERY).value,
            "clean": sum(right) / len(rows) if rows else None,
            "attacked": len(tried),
            "broken": broken,
            "under_attack": (sum(right) - broken) / len(rows) if rows and settled else None,
            "worst_case": None
            if spec == UNDEFENDED or not rows
            else sum(line["certified"] for line in rows) / len(rows),
            "contradictions": [
                line["image"]
                for line in rows
                if line["certified"] and (line["broken"] or is_wrong(line, may_alert))
            ],
            "by_kind": _by_kind(tried),
            "otherwise": [line["image"] for line in every if line.get("otherwise")],
        }
        if any("reached" in line for line in tried):
            entry["reached"] = sum(bool(line.get("reached")) for line in tried)
        entry["intervals"] = {
            key: wilson_interval(entry[key], len(rows))
            for key in ("clean", "under_attack", "worst_case")
            if entry[key] is not None
        }
        made.append(entry)
    return made


def is_wrong(line: Line, may_alert: bool) -> bool:
    """Whether the answer without a patch is wrong, which an alert of a detector is not."""
    return line["before"] != line["label"] and not (may_alert and line["before"] == ALERT)


def _by_kind(tried: Sequence[Line]) -> dict[str, dict[str, int]]:
    """Counts of those that were attacked: certified, by a paper's condition alone, and neither."""
    kinds: dict[str, dict[str, int]] = {}
    for line in tried:
        names = [name for name, holds in line.get("conditions", {}).items() if holds]
        kind = "worst_case" if line["certified"] else " and ".join(names) or "not certified"
        entry = kinds.setdefault(kind, {"attacked": 0, "broken": 0})
        entry["attacked"] += 1
        entry["broken"] += bool(line["broken"])
    return kinds


def percent(entry: Line, key: str) -> str:
    """A fraction of an entry with its interval, in percent; a dash where there is none."""
    if entry[key] is None:
        return "-"
    low, high = entry["intervals"][key]
    return f"{100 * entry[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def text_of(summary: Sequence[Line], width: int, *, finished: bool) -> str:
    """A summary as it is printed: a table, and what there is to say of it.

    ``finished`` is whether all images were attacked to the end.
    """
    columns = [
        Column("attacked", tuple(entry["defense"] for entry in summary)),
        Column("images", tuple(str(entry["images"]) for entry in summary), right=True),
        *(
            Column(title, tuple(percent(entry, key) for entry in summary), right=True)
            for title, key in (
                ("clean", "clean"),
                ("under attack", "under_attack"),
                ("worst case", "worst_case"),
            )
        ),
    ]
    said = []
    for entry in summary:
        kinds = [
            f"{kind.replace('_', ' ')} {of['broken']} of {of['attacked']}"
            for kind, of in sorted(entry["by_kind"].items())
        ]
        said.append(
            f"{entry['defense']}: broken {', '.join(kinds) or 'none, as none was attacked'}"
        )
        if "reached" in entry:
            said.append(
                f"{entry['defense']}: answered as --target says, {entry['reached']} of "
                f"{counted(entry['attacked'], 'image')}"
            )
    notes = [
        "under attack: % of images that the strongest attack that was tried leaves right; a "
        "stronger one may leave fewer, and none leaves fewer than the worst case. A dash: not all "
        "images that are right were attacked. Brackets: 95% intervals (Wilson).",
        "broken: how many of those attacked are answered wrongly, by what was said of them before",
        *(() if finished or not any(e["attacked"] for e in summary) else (OF_STOPPED_SEARCHES,)),
    ]
    lines = [*table(columns), "", *paragraphs(said, width), "", *paragraphs(notes, width)]
    return "\n".join(lines)
