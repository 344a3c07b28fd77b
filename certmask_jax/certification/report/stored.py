"""A report read back from its files: what a run found, without its model, tables or images."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import json_of, words_of
from certmask_jax.certification.report import labels, notices
from certmask_jax.certification.report.files import IMAGES, RESULTS
from certmask_jax.certification.report.records import DefenseResult, Report, SizeCurve
from certmask_jax.certification.report.schema_misfits import misfit
from certmask_jax.defenses.defense import ALERT
from certmask_jax.files.storage import AnyPath, lacking
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import NO_LABEL

SCHEMA = "results.schema.json"
"""In this package: the JSON schema (2020-12) of ``results.json``."""

_WORDS = {"alert": ALERT, "none": NO_LABEL}
_SIZES = "certified_size:"


def schema() -> dict[str, Any]:
    """The JSON schema that every ``results.json`` of this version satisfies."""
    return dict(json.loads((Path(__file__).parent / SCHEMA).read_text(encoding="utf-8")))


def read(folder: AnyPath, *, warn: Callable[[str], None] | None = None) -> Report:
    """The report that ``write`` wrote into a folder.

    Numbers are those of the files, six digits of a margin. Where ``per_image.csv`` is gone the
    report has no ``ids`` and no columns of images, of itself and of its defenses.

    Args:
      folder: of the run.
      warn: told of ``per_image.csv`` where it is damaged or cannot be read, which then counts as
        gone.

    Raises:
      FileNotFoundError: for a folder without ``results.json``.
      ValueError: for a file that is damaged, or two that are not of one report; names it.
    """
    file = folder / RESULTS
    try:
        content = json_of(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{folder}: expected the folder of a finished run, with {RESULTS}, got "
            f"{lacking(folder, 'give the command of that run again, which ends with it')}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error})") from error
    wrong = misfit(content, schema())
    if wrong is not None:
        raise ValueError(f"{file}: expected the results of a run, but it is damaged ({wrong})")
    try:
        made = _of_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected the results of a run, but it is damaged ({words_of(error)})"
        ) from error
    images = folder / IMAGES
    try:
        text = images.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return made
    except OSError as error:
        if warn is None:
            raise
        warn(f"{images}: cannot be read ({error.strerror or error})")
        return made
    except ValueError as error:
        return _damaged(made, f"{images}: is damaged ({error})", warn, error)
    try:
        return _with_images(made, text)
    except (KeyError, ValueError, IndexError, StopIteration, csv.Error) as error:
        text = (
            f"{images}: expected a row for each of the {made.num_images} images of {RESULTS}, and "
            f"its columns, but it is damaged ({words_of(error)})"
        )
        return _damaged(made, text, warn, error)


def _damaged(
    made: Report, text: str, warn: Callable[[str], None] | None, error: Exception
) -> Report:
    if warn is None:
        raise ValueError(text) from error
    warn(text)
    return made


def _of_json(content: Mapping[str, Any]) -> Report:
    provenance = dict(content["provenance"])
    return Report(
        num_images=int(content["num_images"]),
        forward_passes=dict(content["forward_passes"]),
        undefended_accuracy=float(content["undefended_accuracy"]),
        intervals=_intervals(content["intervals"]),
        defenses=tuple(map(_defense, content["defenses"])),
        non_finite_images=tuple(content["non_finite_images"]),
        provenance=provenance,
        margin_guard=float(content["margin_guard"]),
        certified_size=tuple(map(_curve, content["certified_size"])),
        left_out=dict(content["left_out"]),
        notices=notices.recorded(provenance),
        class_names=tuple(provenance.get("class_names") or ()),
    )


def _defense(content: Mapping[str, Any]) -> DefenseResult:
    threat = content["threat"]
    known = {field.name for field in dataclasses.fields(DefenseResult)} - {"per_image"}
    return DefenseResult(
        **{
            **{name: content[name] for name in known},
            "threat": Threat(
                tuple(threat["image_size"]),
                tuple(tuple(map(tuple, shapes)) for shapes in threat["patches"]),
                tuple(map(tuple, threat["region"])),
            ),
            "intervals": _intervals(content["intervals"]),
        }
    )


def _curve(content: Mapping[str, Any]) -> SizeCurve:
    built_for = content["built_for"]
    usual = "own masks" if built_for is None else "built for"  # of a run that does not say it
    lists = ("results", "clean_accuracy", "worst_case_accuracy")
    return SizeCurve(
        **{
            "classifiers": usual,
            **content,
            **{name: tuple(content[name]) for name in lists},
            "built_for": None if built_for is None else tuple(built_for),
            "sizes": tuple(map(tuple, content["sizes"])),
            "intervals": {
                name: tuple(map(tuple, points)) for name, points in content["intervals"].items()
            },
        }
    )


def _intervals(content: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in content.items()}


def _with_images(made: Report, text: str) -> Report:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(rows)
    cells = list(rows)
    if len(cells) != made.num_images or any(len(row) != len(header) for row in cells):
        raise ValueError(f"{len(cells)} rows of {len(header)} columns")
    columns = dict(zip(header, map(list, zip(*cells, strict=True)), strict=True))
    own = {
        "label": np.array(columns["label"], np.int32),
        "undefended": _labels(columns["undefended"]),
        "smallest_margin": np.array(columns["smallest_margin"], np.float32),
        **{name: np.array(column) for name, column in columns.items() if name.startswith(_SIZES)},
    }
    prefixes = labels.unique([f"{d.spec} {labels.patch(d.threat)}" for d in made.defenses])
    defenses = []
    for prefix, defense in zip(prefixes, made.defenses, strict=True):
        of_images: dict[str, NDArray[Any]] = {"answer": _labels(columns[f"{prefix} answer"])}
        for name in ("worst_case", "certificate", *defense.conditions):
            of_images[name] = np.array(columns[f"{prefix} {name}"], np.int8).astype(np.bool_)
        margins = columns[f"{prefix} smallest_margin"]
        of_images["smallest_margin"] = np.array(margins, np.float32)
        defenses.append(dataclasses.replace(defense, per_image=of_images))
    return dataclasses.replace(
        made, ids=tuple(columns["id"]), per_image=own, defenses=tuple(defenses)
    )


def _labels(column: Sequence[str]) -> NDArray[np.int32]:
    return np.array([_WORDS[text] if text in _WORDS else int(text) for text in column], np.int32)
