"""From a prediction table to what it proves: answers, verdicts, accuracies. Needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import SettingError
from certmask_jax.certification.defense_results import result_of
from certmask_jax.certification.report import DefenseResult, Report, notices, wilson_interval
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.guarded_evidence import checked_guard
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.inference.views import passes_each
from certmask_jax.masks import distinct_unions
from certmask_jax.tables import saved_table
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN, PredictionTable

# Rows of a table on disk are looked at in blocks, so that memory does not grow with the test set.
_ENTRIES_AT_ONCE = 1 << 19


def certify(
    saved: saved_table.SavedTable, defenses: Sequence[Defense], *, margin_guard: float = 0.0
) -> Report:
    """Everything that a table proves about ``defenses``.

    Rows that are left out (images that could not be read, or are gone) count nowhere.

    Args:
      saved: T images, at least one of which counts.
      defenses: whose masked images the table holds.
      margin_guard: an image is certified only if the logit margin of every masked image that was
        evaluated for the defense is larger. What another device or batch rounds otherwise, by less
        than half of that, then changes nothing (soundness, section 7).

    Raises:
      ValueError: when the table lacks a defense's masked images, or was not evaluated for it; for a
        guard that is not a number of at least 0; when no image counts.
    """
    margin_guard = checked_guard(margin_guard)
    table, counted = saved.table, saved.counted
    labels = saved.labels[counted]
    ids = tuple(one for one, counts in zip(saved.ids, counted, strict=True) if counts)
    count = len(labels)
    if not count:
        raise ValueError(f"expected an image that counts, but all {len(counted)} are left out")
    unmasked = distinct_unions.unmasked(table.masked_images.image_size)
    column = int(table.columns(unmasked)[0])
    undefended = np.concatenate(
        [np.asarray(table.predictions[rows])[:, column] for rows in _row_blocks(table)]
    ).astype(np.int32)[counted]
    accuracy = float((undefended == labels).mean())
    smallest, no_label = _margins(table)
    provenance = saved.about.get("provenance", {})
    each = passes_each(provenance)
    return Report(
        num_images=count,
        forward_passes={
            "made": each * _known(table, counted),
            "full_table": each * count * table.predictions.shape[1],
            **({} if each == 1 else {"a_masked_image": each}),
            **({"stem": count} if "two_parts" in provenance else {}),
        },
        undefended_accuracy=accuracy,
        intervals={"undefended_accuracy": wilson_interval(accuracy, count)},
        defenses=tuple(_result(defense, saved, margin_guard) for defense in defenses),
        margin_guard=margin_guard,
        non_finite_images=tuple(ids[i] for i in np.flatnonzero(no_label[counted])),
        provenance=provenance,
        notices=notices.recorded(provenance),
        class_names=tuple(provenance.get("class_names") or ()),
        left_out={saved.ids[row]: why for row, why in saved.left_out.items()},
        ids=ids,
        per_image={
            "label": labels,
            "undefended": undefended,
            "smallest_margin": smallest[counted],
        },
    )


def passes_guard(table: PredictionTable, margin_guard: float) -> NDArray[np.bool_]:
    """``bool[T]``: all masked images that were evaluated have a logit margin above the guard.

    A guard of 0 lets every image pass.
    """
    if not margin_guard:
        return np.ones(len(table), np.bool_)
    return _margins(table)[0] > margin_guard


def _result(defense: Defense, saved: saved_table.SavedTable, margin_guard: float) -> DefenseResult:
    answers: list[NDArray[np.int32]] = []
    verdicts: list[dict[str, NDArray[np.bool_]]] = []
    margins: list[NDArray[np.float32]] = []
    # Columns are matched once; rows then come from the disk a block at a time.
    chosen = saved.table.columns(defense.masked_images)
    rows = max(1, _ENTRIES_AT_ONCE // max(1, len(chosen)))
    counted = saved.counted
    labels = saved.labels[counted]
    for start in range(0, len(saved.table), rows):
        at = slice(start, start + rows)
        if not counted[at].any():
            continue
        part = saved.table.take(at, chosen, defense.masked_images).rows(counted[at])
        true = saved.labels[at][counted[at]]
        _check_decided(defense, part, true)
        answers.append(defense.rule(part))
        verdicts.append(defense.verdicts(part, true))
        margins.append(_margins(part)[0])
        for name in ("worst_case", "certificate"):  # the papers' conditions stay what they are
            verdicts[-1][name] &= passes_guard(part, margin_guard)
    answer = np.concatenate(answers)
    proved = {name: np.concatenate([v[name] for v in verdicts]) for name in verdicts[0]}
    per_image = {"answer": answer, **proved, "smallest_margin": np.concatenate(margins)}
    return result_of(defense, per_image, labels)


def _check_decided(defense: Defense, table: PredictionTable, labels: NDArray[np.int32]) -> None:
    """``ValueError`` if the defense depends on masked images that were not evaluated."""
    known = table.known
    for i in np.flatnonzero(~known.all(axis=1)):
        seen = Seen.in_row(table, i, known[i])
        if defense.undecided(seen, int(labels[i])).any():
            raise SettingError(
                lambda naming: (
                    f"{defense.name}: expected tables that decide it, but they hold only what "
                    f"other defenses needed; evaluate with it ({naming('defense', None)}), or the "
                    f"whole table ({naming('decide', False)})"
                )
            )


def _margins(table: PredictionTable) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Smallest margin of each image ``float32[T]`` (NaN if any is), and which lack some label."""
    smallest, broken = [], []
    for part in _row_blocks(table):
        smallest.append(np.asarray(table.margins[part]).min(axis=1).astype(np.float32))
        broken.append((np.asarray(table.predictions[part]) == NO_LABEL).any(axis=1))
    return np.concatenate(smallest), np.concatenate(broken)


def _known(table: PredictionTable, counted: NDArray[np.bool_]) -> int:
    """How many entries were evaluated, of the rows that count."""
    return sum(
        int((np.asarray(table.predictions[rows])[counted[rows]] != UNKNOWN).sum())
        for rows in _row_blocks(table)
    )


def _row_blocks(table: PredictionTable) -> list[slice]:
    rows = max(1, _ENTRIES_AT_ONCE // max(1, table.predictions.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(table), rows)]
