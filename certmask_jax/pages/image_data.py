"""What a page holds of each image, as plain values for its script; small, as there may be 1,000."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.report import Report, labels
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.pages import drawn_maps, evidence_maps, evidence_reasons
from certmask_jax.pages.answer_reasons import why_answered
from certmask_jax.pages.evidence_maps import EvidenceMaps
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.proof_reasons import one_mask_to_blame, why_proved
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN

_FIRST = ord("a")
_UNSEEN = "of this defense only verdicts are at hand"


class Attacked(NamedTuple):
    """What an attack made of one image under one defense.

    Attributes:
      defense: its number in the report; None for the model without one.
      after: what is answered with the patch.
      broken: whether that is wrong.
      picture: the patched image as an address, or None.
    """

    defense: int | None
    after: int
    broken: bool
    picture: str | None


def key_of(number: int) -> str:
    """``A`` to ``Z``, then ``A2``: what a defense is called in a narrow place."""
    return chr(ord("A") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


def page_data(
    report: Report,
    rows: NDArray[np.intp],
    inspected: Mapping[int, Inspected],
    *,
    pictures: Sequence[str | None] | None,
    attacked: Mapping[int, Sequence[Attacked]],
    covered: Mapping[int, Mapping[str, Any]],
    on_evidence: Mapping[int, EvidenceMaps],
    unseen: Mapping[int, str],
) -> dict[str, Any]:
    """Everything that the script of a page shows, JSON-able.

    Args:
      report: with rows of images.
      rows: which of its images are shown, ``int[T]``.
      inspected: number of a defense in the report -> what its table tells of those images.
      pictures: an address for each, None where one is not at hand, or all are not.
      attacked: row of the report -> what attacks made of it.
      covered: row of the report -> what is shown of the size of its objects.
      on_evidence: number of a defense in the report -> what a run on evidence kept of those images.
      unseen: number of a defense that was not inspected -> why it has no map.
    """
    names = labels.in_a_line(report.defenses)
    looks, tables = _tables(report, rows, inspected)
    for number, of_evidence in on_evidence.items():
        maps = [
            drawn_maps.drawn(one, np.zeros(0, np.intp), others=0) | {"reached": reached.tolist()}
            for one, reached in zip(of_evidence.maps, of_evidence.reached, strict=True)
        ]
        looks[number] = {**evidence_maps.look_of(of_evidence), "maps": maps}
    true = report.per_image["label"]
    images = []
    for place, row in enumerate(rows.tolist()):
        label = int(true[row])
        entry: dict[str, Any] = {
            "id": report.ids[row],
            "label": label,
            "undefended": int(report.per_image["undefended"][row]),
            "d": [
                _verdict(
                    report, number, row, place, inspected.get(number) or on_evidence.get(number)
                )
                for number in range(len(report.defenses))
            ],
        }
        entry["t"], entry["w"] = _labels(tables[place], label)
        if pictures is not None and pictures[place] is not None:
            entry["pic"] = pictures[place]
        entry |= covered.get(row, {})
        if attacked.get(row):
            entry["attack"] = [
                {"d": one.defense, "after": one.after, "broken": one.broken, "pic": one.picture}
                for one in attacked[row]
            ]
        images.append(entry)
    size = list(report.defenses[0].threat.image_size)
    in_cells = "two_parts" in report.provenance  # masks are then those of a map of features
    if in_cells:
        size = list(report.provenance.get("data_config", {}).get("input_size", (224, 224)))
    return {
        "cells": in_cells,
        "classes": list(report.class_names),
        "imageSize": size,
        "guard": report.margin_guard,
        "defenses": [
            {
                "key": key_of(number),
                "name": name,
                **(looks.get(number) or _unseen(unseen.get(number, _UNSEEN))),
            }
            for number, name in enumerate(names)
        ],
        "images": images,
    }


def _unseen(why: str) -> dict[str, Any]:
    return {"single": [], "pair": [], "noMap": f"No map of places: {why}."}


def _tables(
    report: Report, rows: NDArray[np.intp], inspected: Mapping[int, Inspected]
) -> tuple[dict[int, dict[str, Any]], NDArray[np.int64]]:
    """How each defense is drawn, and the labels that are shown of each image: ``int[T, W]``."""
    if not inspected:
        return {}, np.zeros((len(rows), 0), np.int64)
    numbers = list(inspected)
    parts = [inspected[number].defense.masked_images for number in numbers]
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, part in enumerate(parts):
        by_size.setdefault(part.image_size, []).append(place)
    looks: dict[int, dict[str, Any]] = {}
    tables: list[NDArray[np.int64]] = []
    count = 0
    for places in by_size.values():
        merged, columns = distinct_unions.merge([parts[place] for place in places])
        labels = np.full((len(rows), len(merged)), UNKNOWN, np.int64)
        for place, column in zip(places, columns, strict=True):
            labels[:, column] = np.asarray(inspected[numbers[place]].table.predictions)
        shown = [
            column[np.concatenate([one.single, one.pair.ravel()]).astype(np.intp)]
            for place, column in zip(places, columns, strict=True)
            for one in [inspected[numbers[place]]]
        ]
        used, where = np.unique(np.concatenate(shown), return_inverse=True)
        tables.append(labels[:, used])
        start = 0
        for place, columns_shown in zip(places, shown, strict=True):
            own = where[start : start + len(columns_shown)] + count
            start += len(columns_shown)
            looks[numbers[place]] = _look(inspected[numbers[place]], own)
        count += len(used)
    return looks, np.concatenate(tables, axis=1)


def _look(one: Inspected, columns: NDArray[np.intp]) -> dict[str, Any]:
    """How a defense is drawn; ``columns`` are those of its masks alone, then of its pairs."""
    masks, singles = one.defense.mask_set, len(one.single)
    look: dict[str, Any] = {
        "size": list(masks.image_size),
        "masks": _boxes(masks),
        "second": None if one.defense.second_set is None else _boxes(one.defense.second_set),
        "single": columns[:singles].tolist(),
        "pair": columns[singles:].reshape(one.pair.shape).tolist(),
    }
    if not one.maps:
        return look | {"noMap": f"No map of places: {one.note}."}
    others = len(one.defense.threat) - 1
    maps = [drawn_maps.drawn(each, one.single, others=others) for each in one.maps]
    return look | {"maps": maps, "note": one.note}


def _verdict(
    report: Report, number: int, row: int, place: int, one: Inspected | EvidenceMaps | None
) -> dict[str, Any]:
    result = report.defenses[number]
    columns = result.per_image
    certified, answer = bool(columns["worst_case"][row]), int(columns["answer"][row])
    margin = float(columns["smallest_margin"][row])
    entry: dict[str, Any] = {
        "a": answer,
        "c": int(certified),
        "m": float(f"{margin:.3g}") if np.isfinite(margin) else None,
    }
    others = [name for name in result.conditions if bool(columns[name][row]) != certified]
    if others:
        holds = "holds" if not certified else "does not hold"
        entry["conditions"] = f"What its paper calls certified ({', '.join(others)}) {holds}."
    if one is None:
        return entry
    label = int(report.per_image["label"][row])
    names = report.class_names
    if isinstance(one, EvidenceMaps):
        entry["answered"] = evidence_reasons.why_answered(one, place, label, answer, names)
        entry["proved"] = evidence_maps.why_on_evidence(one, place, label, answer, certified, names)
        if not certified:
            drawn_maps.add_places(entry, one.maps, place)
        if one.unit is not None:
            entry["q"] = [
                evidence_maps.levels_of(each.margins[place], one.unit) for each in one.maps
            ]
        return entry
    entry["answered"] = why_answered(one, place, answer, names)
    entry["proved"] = why_proved(
        one, place, label, answer, certified, names, margin_guard=report.margin_guard
    )
    if not certified:
        blamed = one_mask_to_blame(one, place, label)
        if blamed is not None:
            entry["only"] = blamed
    if one.maps:
        if not certified:
            drawn_maps.add_places(entry, one.maps, place)
        entry["q"] = [
            "".join(map(drawn_maps.level, each.margins[place].tolist())) for each in one.maps
        ]
    return entry


def _labels(row: NDArray[np.int64], label: int) -> tuple[str, list[int]]:
    """A sign for each masked image, and the labels that letters stand for."""
    wrong = [int(x) for x in np.unique(row) if x not in (label, UNKNOWN, NO_LABEL)]
    signs = {label: ".", UNKNOWN: "?", NO_LABEL: "!"}
    signs |= {one: chr(_FIRST + place) for place, one in enumerate(wrong)}
    return "".join(signs[int(x)] for x in row), wrong


def _boxes(masks: MaskSet) -> list[list[list[int]]]:
    """The boxes of each mask, without those that are not used."""
    return [
        [box for box in mask if box[0] < box[2] and box[1] < box[3]]
        for mask in masks.boxes.tolist()
    ]
