"""The files of a report: ``results.json``, a row a result, a row an image, and what they say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import encodable
from certmask_jax.certification.report import labels
from certmask_jax.certification.report.records import DefenseResult, Report, to_json
from certmask_jax.defenses.defense import ALERT
from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables.prediction_table import NO_LABEL

RESULTS, ROWS, IMAGES, EXPLAINED = "results.json", "results.csv", "per_image.csv", "README.txt"

FILES = (RESULTS, EXPLAINED, ROWS, IMAGES)
"""What ``write`` writes."""

_WORDS = {ALERT: "alert", NO_LABEL: "none"}
_LABELS = {word: label for label, word in _WORDS.items()}
_ARE_LABELS = ("label", "undefended", "answer")  # columns of labels; names stand beside them

_EXPLAINED = """\
The results of a run of certmask_jax.

results.json   all that was measured and proved: fractions, 95% intervals, and where they come from
results.csv    the same numbers as a table: one row a defense and threat
per_image.csv  one row an image
tables         what the model said of every masked image, from which all else can be made again

results.csv: accuracies are fractions of num_images; NAME_low and NAME_high are the ends of a 95%
interval. left_out images could not be read, or are gone, and count nowhere. worst_case_accuracy is
what is proved (bound: exact, or at least that much), certified_accuracy the defense's own
certificate, condition_accuracy what its paper calls certified (condition: under which name).

per_image.csv, of an image:
  id, label               its name, and its true class
  undefended              what the model says without a defense
  smallest_margin         the smallest distance of two best logits, over all its masked images
of an image, a defense and the patch that it is certified against (DEFENSE PATCH ...):
  answer                  what the defended classifier says: a class; alert, from a defense that
                          detects; none, where no label is told
  worst_case              1: no such patch changes the outcome, whatever it holds
  certificate             1: the defense's own certificate holds
  smallest_margin         as above, over the masked images of the defense
  other names             1: that condition of the defense's paper holds
of a run over patch sizes (certified_size:DEFENSE):
  the largest patch for which the image is certified; 0x0: none
NAME_name is the name of class NAME, where the data set has names. "DEFENSE PATCH #2" is the same
once more. Text is UTF-8.
"""


def write(report: Report, folder: AnyPath) -> None:
    """Writes the files of a report into a folder or bucket, each atomically.

    ``results.json`` comes last: where it stands, the others are of the same report.

    Raises:
      OSError: when a file cannot be written; it names the file and says what to do.
    """
    _write(folder / EXPLAINED, _EXPLAINED)
    _write(folder / IMAGES, per_image_csv(report))
    _write(folder / ROWS, results_csv(report))
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    _write(folder / RESULTS, text + "\n")


def per_image_csv(report: Report) -> str:
    """The content of ``per_image.csv``: one row an image that counts.

    Its id, label, undefended label and smallest margin over all masked images; then for each
    defense and threat its answer (a class, ``alert`` or ``none``), verdicts and smallest margin,
    under names such as ``double_masking 5x5 worst_case``. Names of classes stand beside their
    numbers where the report has names that say more.
    """
    names = report.class_names
    columns: dict[str, Sequence[Any]] = {"id": report.ids}
    columns |= _columns(report.per_image, names)
    prefixes = labels.unique([f"{_spec(d)} {labels.patch(d.threat)}" for d in report.defenses])
    for prefix, defense in zip(prefixes, report.defenses, strict=True):
        columns |= _columns(defense.per_image, names, f"{prefix} ")
    return _csv([list(columns), *zip(*columns.values(), strict=True)])


def results_csv(report: Report) -> str:
    """The content of ``results.csv``: one row a defense and threat."""
    rows = [_row(report, defense) for defense in report.defenses]
    header = dict.fromkeys(name for row in rows for name in row)
    return _csv([list(header), *([row.get(name, "") for name in header] for row in rows)])


def _row(report: Report, result: DefenseResult) -> dict[str, str]:
    facts = {
        "defense": _spec(result),
        "name": result.name,
        "patch": labels.patch(result.threat),
        "threat": str(result.threat),
        "guarantee": result.guarantee,
        "mask_set": result.mask_set,
        "masks": str(result.masks),
        "masked_images": str(result.masked_images),
        "num_images": str(report.num_images),
        "left_out": str(len(report.left_out)),
        "margin_guard": f"{report.margin_guard:g}",
        "bound": "exact" if result.worst_case_exact else "at least",
    }
    for name in ("clean_accuracy", "worst_case_accuracy", "certified_accuracy", "false_alert_rate"):
        facts |= _number(name, getattr(result, name), result.intervals)
    undefended = report.undefended_accuracy
    facts |= _number("undefended_accuracy", undefended, report.intervals)
    for number, (name, value) in enumerate(result.conditions.items(), 1):
        column = "condition" if number == 1 else f"condition_{number}"
        facts[column] = name
        facts |= _number(
            f"{column}_accuracy", value, {f"{column}_accuracy": result.intervals[name]}
        )
    return facts


def _number(
    name: str, value: float | None, intervals: Mapping[str, tuple[float, float]]
) -> dict[str, str]:
    """A number and its interval under three names; empty where there is none."""
    numbers = ["", "", ""] if value is None else [f"{x:.6g}" for x in (value, *intervals[name])]
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))


def _columns(
    given: Mapping[str, NDArray[Any]], class_names: Sequence[str], prefix: str = ""
) -> dict[str, Sequence[Any]]:
    """Columns as they are written, and the names of classes beside their numbers."""
    columns: dict[str, Sequence[Any]] = {}
    for name, values in given.items():
        if name not in _ARE_LABELS:
            columns[prefix + name] = _plain(values)
            continue
        numbers = [int(value) for value in values]
        columns[prefix + name] = [_WORDS.get(number, number) for number in numbers]
        if any(name and name != str(number) for number, name in enumerate(class_names)):
            columns[f"{prefix}{name}_name"] = list(_named(numbers, class_names))
    return columns


def _named(numbers: Sequence[int], class_names: Sequence[str]) -> Iterator[str]:
    for number in numbers:
        yield class_names[number] or "" if 0 <= number < len(class_names) else ""


def _spec(result: DefenseResult) -> str:
    return result.spec or result.name


def _plain(values: Any) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    if values.dtype == np.bool_:
        return values.astype(np.int8).tolist()
    if np.issubdtype(values.dtype, np.floating):
        return [f"{v:.6g}" for v in values.astype(np.float64)]
    return list(values.tolist())


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return encodable(text.getvalue())


def _write(path: AnyPath, text: str) -> None:
    try:
        whole_files.write(path, text.encode())
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: could not be written ({error.strerror}); the prediction table beside it is "
            "complete: free some space and give the same command again to write the report",
        ) from error


def label_of(text: str) -> int:
    """What an answer in ``per_image.csv`` says: a label, ``ALERT`` or ``NO_LABEL``.

    Raises:
      ValueError: for what is none of these.
    """
    return _LABELS[text] if text in _LABELS else int(text)
