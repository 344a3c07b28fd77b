"""Maps of several shapes, of several patches and of CrossCert, as a page holds them."""

from __future__ import annotations

import dataclasses
import json
import re

import mapped_run
import numpy as np
import paged_run
import pytest

from certmask_jax.certification import verdicts
from certmask_jax.defenses import by_first_placement
from certmask_jax.masks.threats import Threat
from certmask_jax.pages import inspected, proof_reasons
from certmask_jax.pages.map_limits import MapLimits
from certmask_jax.programs import defense_specs, page_of_run
from certmask_jax.tables.prediction_table import from_labels

STATE = {True: "h", False: "f"}


@pytest.fixture(scope="module")
def data():
    page = page_of_run.made_page(
        mapped_run.made(), mapped_run.saved(), paged_run.pixels, most_images=9
    )
    assert page.missing == ()
    script = re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(script[1])


def _cells(data, number, shape=0):
    """Of each image the state at each location, by its stretch."""
    places = data["defenses"][number]["maps"][shape]
    rows, cols = ([np.searchsorted(places[k], range(places["ends"][i]), side="right") - 1
                   for i, k in enumerate(("rows", "cols"))])  # fmt: skip
    spots = np.array(places["spot"])[np.ix_(rows, cols)]
    made = []
    for image in data["images"]:
        states = image["d"][number].get("s")
        said = "h" * (spots.max() + 1) if states is None else states[shape]
        made.append([[said[spot] for spot in row] for row in spots.tolist()])
    return made


@pytest.mark.parametrize(
    ("number", "shape", "size"), [(0, 0, (1, 2)), (0, 1, (2, 1)), (2, 0, (1, 1))]
)
def test_each_shape_has_its_map(data, number, shape, size):
    defense, saved = mapped_run.defenses()[number], mapped_run.saved()
    assert data["defenses"][number]["maps"][shape]["shape"] == list(size)
    cells = np.array(_cells(data, number, shape))
    assert cells.shape == (4, 5 - size[0], 5 - size[1])
    for row, col in np.ndindex(*cells.shape[1:]):
        if number == 2 and row != col:  # each place compiles a program
            continue
        region = (row, col, row + size[0], col + size[1])
        at = dataclasses.replace(defense, against=Threat.of(4, size, region=region))
        holds = np.asarray(at.worst_case(saved.table, saved.labels))
        assert cells[:, row, col].tolist() == [STATE[bool(one)] for one in holds]
    assert {"h", "f"} <= set(cells.ravel())


def test_several_patches_have_the_map_of_one_and_where_the_other_is_worst(data):
    defense, saved = mapped_run.defenses()[1], mapped_run.saved()
    spots = by_first_placement.first_spots_of(defense)
    states, worst = by_first_placement.verdicts_at_first(defense, saved.table, saved.labels, spots)
    (places,) = data["defenses"][1]["maps"]
    assert places["others"] == 1
    assert places["second"] == spots.others.tolist()
    failed = 0
    for image, own, group in zip(data["images"], states, worst, strict=True):
        verdict = image["d"][1]
        if verdict["c"]:
            assert (own == 1).all()
            continue
        assert verdict["s"] == ["".join("fh"[state] for state in own)]
        assert verdict["with"] == [group.tolist()]
        failed += 1
        if verdict["a"] == image["label"]:
            assert re.fullmatch(
                r"A patch at row \d, column \d (with another at row \d, column \d could change the "
                r"answer|could change the answer even alone)\.",
                verdict["proved"],
            )
    assert failed


def test_crosscert_says_what_masks_and_bands_say(data):
    said = [image["d"][2]["answered"] for image in data["images"]]
    assert said[0] == "The masks say ant, and so do the bands (4 of 4)."
    answers = [image["d"][2]["a"] for image in data["images"]]
    for text, answer in zip(said, answers, strict=True):
        assert text.startswith("An alert: the masks ") == (answer == -2)


@pytest.mark.parametrize("limits", [MapLimits(shapes=1, pairs=1), MapLimits(cells=1, pairs=1)])
def test_of_many_shapes_some_have_a_map_and_a_defense_without_says_why(limits):
    page = page_of_run.made_page(
        mapped_run.made(), mapped_run.saved(), paged_run.pixels, most_images=9, limits=limits
    ).html
    shapes, two, _ = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])[
        "defenses"
    ]
    assert len(shapes["maps"]) == 1
    assert shapes["note"] == "1 of the 2 shapes of the patch have a map here."
    assert two["noMap"].startswith("No map of places: there are too many places to look at one by")


@pytest.mark.parametrize("guard", [0.0, 0.25])
def test_map_and_verdict_agree_under_a_margin_guard(guard):
    """Of every sort of map: all places hold if and only if the image is certified."""
    saved, defenses = mapped_run.saved(), mapped_run.defenses()
    margins = np.full(saved.table.predictions.shape, 1, np.float16)
    margins[0, 2], margins[2, 5] = 0.25, 0.25  # of an image without a wrong label, and another
    table = dataclasses.replace(saved.table, margins=margins)
    guarded = saved._replace(table=table)
    made = verdicts.certify(guarded, list(defenses), margin_guard=guard)
    page = page_of_run.made_page(made, guarded, paged_run.pixels, most_images=9).html
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["guard"] == guard
    lost = 0
    for number, (before, after) in enumerate(
        zip(mapped_run.made().defenses, made.defenses, strict=True)
    ):
        assert len(data["defenses"][number]["maps"]) == len(defenses[number].threat.shapes)
        for row, image in enumerate(data["images"]):
            one, certified = image["d"][number], bool(after.per_image["worst_case"][row])
            cells = set("".join(one.get("s", ["h"])))
            assert (cells == {"h"}) == certified == bool(one["c"])
            if certified or not before.per_image["worst_case"][row]:
                continue
            lost += 1
            assert cells == {"g"}
            assert one["guardShare"] == [100.0] * len(one["s"])
            assert "the margin guard of 0.25" in one["proved"]
    assert bool(lost) == bool(guard)


def test_a_page_does_not_wait_for_choices_that_are_asked_about_one_by_one():
    defense = defense_specs.build("plurality:masks_per_axis=2", (4, 4), mapped_run.TWO)
    rng = np.random.default_rng(1)
    table = from_labels(rng.integers(0, 2, (3, len(defense.masked_images))),
                        defense.masked_images, num_classes=2)  # fmt: skip
    choices = len(by_first_placement.first_spots_of(defense).hidden)
    given = defense, table, np.zeros(3, np.int32), np.array([False, True, False])
    asked = choices * 2 * len(defense.masked_images)
    assert len(inspected.inspect(*given, limits=MapLimits(asked=asked)).maps) == 1
    without = inspected.inspect(*given, limits=MapLimits(asked=asked - 1))
    assert without.maps == ()
    assert without.note.startswith("there are too many places to look at one by one (plurality: ")
    # Of one whose places are looked at at once none is asked about.
    quick = defense_specs.build("challenger_masking:masks_per_axis=2", (4, 4), mapped_run.TWO)
    table = from_labels(rng.integers(0, 2, (3, len(quick.masked_images))), quick.masked_images,
                        num_classes=2)  # fmt: skip
    none = MapLimits(asked=0)
    assert len(inspected.inspect(quick, table, *given[2:], limits=none).maps) == 1


def test_an_image_that_only_a_shape_without_a_map_loses_is_said_to_be_that():
    """Masks 5 and 7 together err: an upright patch across both is lost, and none that lies."""
    defense = mapped_run.defenses()[0]
    labels = np.zeros((1, len(defense.masked_images)), int)
    labels[0, defense.rounds.pair[4, 6]] = 1
    table = from_labels(labels, defense.masked_images, num_classes=3)
    given = defense, table, np.zeros(1, np.int32), np.array([False])
    assert not defense.worst_case(table, given[2]).any()
    said = []
    for limits in (MapLimits(), MapLimits(shapes=1)):
        one = inspected.inspect(*given, limits=limits)
        said.append(proof_reasons.why_proved(one, 0, 0, 0, certified=False, class_names=()))
    assert [each.spots.shape for each in one.maps] == [(1, 2)]
    assert "a 2x1 patch" in said[0]
    assert said[1] == "A patch of a shape that has no map here could change the answer."
