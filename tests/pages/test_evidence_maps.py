"""Maps of runs on evidence: of evidence by hand the known cells, on a page as in the store."""

from __future__ import annotations

import dataclasses
import json
import re

import evidence_by_hand
import hand_made_reports
import numpy as np
import paged_run
import pytest
from evidence_by_hand import DEFENSES

from certmask_jax.certification.evidence_verdicts import certify_evidence
from certmask_jax.defenses.evidence_places import NoPlacesError
from certmask_jax.masks.threats import Threat
from certmask_jax.pages.evidence_maps import maps_on_evidence
from certmask_jax.pages.evidence_reasons import why_answered
from certmask_jax.pages.map_limits import MapLimits
from certmask_jax.programs import evidence_entries, evidence_of_run, page_of_run
from certmask_jax.tables.evidence_kept import KeptFiles


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return evidence_by_hand.saved(tmp_path_factory.mktemp("evidence"))


def _data(saved, report=None, **how):
    made = report or certify_evidence(saved, DEFENSES)
    page = page_of_run.made_page(made, None, paged_run.pixels, evidence=saved, most_images=9, **how)
    assert page.missing == ()
    return json.loads(re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def data(saved):
    return _data(saved)


def _cells(data, number):
    """Of each image the state at each of the 4 x 4 locations."""
    (places,) = data["defenses"][number]["maps"]
    rows, cols = ([np.searchsorted(places[k], range(4), side="right") - 1
                   for k in ("rows", "cols")])  # fmt: skip
    spots = np.array(places["spot"])[np.ix_(rows, cols)]
    return [
        ["".join(image["d"][number].get("s", ["h" * 16])[0][spot] for spot in row)
         for row in spots.tolist()]
        for image in data["images"]
    ]  # fmt: skip


def test_evidence_by_hand_has_the_known_cells(data):
    # Ant by four votes: three against one are left. Bee by three to one: without one of the three
    # two against two are left, and ant wins a tie; the fourth makes it three to one.
    assert _cells(data, 0) == [["hhhh"] * 4, ["fffh"] * 4, ["ffff"] * 4]
    # A quarter less for bee, and four for ant: above 8 against 8, and below 10 against 6.
    assert _cells(data, 1) == [["hhhh"] * 4, ["ffff", "ffff", "hhhh", "hhhh"], ["ffff"] * 4]
    assert _cells(data, 2) == [["hhhh"] * 4, ["hhhh"] * 4, ["ffff"] * 4]
    for number in range(3):
        for image, cells in zip(data["images"], _cells(data, number), strict=True):
            assert image["d"][number]["c"] == (cells == ["hhhh"] * 4)


def test_levels_are_those_of_leads_and_a_certificate_without_has_none(data):
    votes, cells, alerts = data["defenses"]
    # 3 - 1 votes, and a tie is won: 3 more than needed. Bee: 2 - 2, or 3 - 1; ant wins the ties.
    assert [image["d"][0]["q"][0] for image in data["images"][:2]] == ["5555", "3334"]
    assert votes["levels"][3] == "0 (lost)"
    assert votes["levelsOf"] == "Lead of the true class in the worst case, in votes"
    assert len(cells["levels"]) == 7
    assert "levels" not in alerts
    assert "q" not in data["images"][0]["d"][2]
    assert votes["maps"][0]["reached"] == [1] * 4
    assert (votes["parts"], votes["reach"], cells["parts"], cells["window"]) == (
        4,
        "bands",
        4,
        "1x1",
    )


def test_why_is_said_of_windows_and_bands(data):
    said = [[one["proved"] for one in image["d"]] for image in data["images"]]
    assert said[0] == [
        "No patch at any place changes this, whatever the bands that it meets are made to say.",
        "No patch at any place changes this, whatever the window of cells that it reaches is made "
        "to say.",
        "No patch at any place brings about a wrong answer without an alert, whatever the window "
        "of cells that it reaches is made to say.",
    ]
    assert said[1][0] == (
        "A patch at row 0, column 0 could change the answer: what is left without the 1 band that "
        "it meets is too little for bee."
    )
    assert said[1][1] == (
        "A patch at row 0, column 0 could change the answer: what is left without the window of "
        "1x1 cells around it is too little for bee."
    )
    assert said[2][:2] == [
        f"Without any patch the answer is {one}, not ant." for one in ("bee",) * 2
    ]


def _answered(data, number):
    return [image["d"][number]["answered"] for image in data["images"]]


def test_why_it_was_answered_is_said_by_the_rule_and_what_was_kept(data):
    place, wins = "In the worst place, a patch at row", "; it wins with more than 0."
    assert _answered(data, 0) == [
        f"No class has more votes of the 4 bands than ant. {place} 0, column 0, the lead of ant is "
        f"3 votes{wins}",
        f"No class has more votes of the 4 bands than bee. {place} 0, column 0, the lead of bee is "
        f"0 votes{wins}",
        # Ant has no votes; a patch on a bee makes it three for cow, and ant would win a tie.
        f"No class has more votes of the 4 bands than bee. {place} 0, column 0, the lead of ant is "
        f"-2 votes{wins}",
    ]
    # Four quarters of 4 for ant: three are left against one of 4, and the mean is over four.
    assert _answered(data, 1)[0] == (
        f"No class has more clipped evidence in all cells than ant. {place} 0, column 0, the lead "
        f"of ant is 2 in the mean evidence of a cell{wins}"
    )
    assert _answered(data, 2)[0] == (
        "The mean of all cells says ant, and without any window of them no other class with a "
        "confidence above 0.5."
    )


def test_a_count_of_cells_leads_in_votes_of_cells():
    """Of four quarters ant has all, three without one, against one; it would win a tie."""
    defense = evidence_entries.build(
        "bagcert:threshold=2", Threat.of((4, 4), 1), evidence_by_hand.LOCAL
    )
    at = defense.at_places(evidence_by_hand.quarters(), evidence_by_hand.LABELS)
    one = maps_on_evidence(defense, np.asarray(at.holds), np.asarray(at.leads, np.float16))
    names = evidence_by_hand.NAMES
    assert why_answered(one, 0, 0, 0, names) == (
        "For no class do more cells say above 2 than for ant. In the worst place, a patch at row "
        "0, column 0, the lead of ant is 3 votes; it wins with more than 0."
    )
    # Two cells say bee, and two say 2, which is not above it: one is left against one.
    assert np.asarray(at.leads)[1].tolist() == [0, 0, 1, 1]
    assert np.asarray(at.holds)[1].tolist() == [False, False, True, True]


def test_kept_votes_are_counted_and_damaged_ones_are_named(saved):
    sources = [{"shape": [4, 3]}]
    about = {**saved.about, "kept": {"sources": sources, "of": [0, 0, 0]}}
    kept = saved._replace(about=about)
    KeptFiles(saved.folder, sources).write(0, [evidence_by_hand.votes()])
    said = [text.partition(" In the worst")[0] for text in _answered(_data(kept), 0)]
    assert said == [
        "Of the votes of 4 bands ant has 4.",
        "Of the votes of 4 bands bee has 3 and ant has 1.",
        "Of the votes of 4 bands bee has 2 and cow has 2; of classes with as many the one of the "
        "smallest number is taken.",
    ]
    (file,) = saved.folder.glob("kept-*")
    file.write_bytes(file.read_bytes()[:-1])
    data = _data(kept)
    assert "damaged" in data["defenses"][0]["note"]
    assert _answered(data, 0)[0].startswith("No class has more votes of the 4 bands than ant.")
    file.unlink()


def test_of_several_shapes_the_worst_place_is_of_the_worst():
    """A patch of 2x1 meets two rows of bands, and one of 1x2 a single row."""
    defense = evidence_entries.build(
        "smoothed_vit:band=1,axis=rows", Threat.of(4, (1, 2), (2, 1)), None
    )
    at = defense.at_places(evidence_by_hand.votes(), evidence_by_hand.LABELS)
    one = maps_on_evidence(defense, np.asarray(at.holds), np.asarray(at.leads, np.float16))
    assert why_answered(one, 0, 0, 0, evidence_by_hand.NAMES).endswith(
        "In the worst place, a 2x1 patch at row 0, column 0, the lead of ant is 1 vote; it wins "
        "with more than 0."
    )


def test_other_rules_say_what_they_take_away():
    for spec, part in (
        ("mask_ds:band=1", "the window of bands that speaks most for it is masked. In the worst"),
        ("mask_ds:band=1,threshold=0.5", "is masked, where it has more than 0.5 of its evidence."),
    ):
        defense = evidence_entries.build(spec, Threat.of(4, 1), None)
        at = defense.at_places(evidence_by_hand.votes(), evidence_by_hand.LABELS)
        leads = None if at.leads is None else np.asarray(at.leads, np.float16)
        if defense.kept_places[1] == 0:
            leads = None
        one = maps_on_evidence(defense, np.asarray(at.holds), leads)
        said = why_answered(one, 0, 0, 0, evidence_by_hand.NAMES)
        assert said.startswith("No class keeps more evidence than ant, once of each class the ")
        assert part in said
    alert = evidence_by_hand.ALERTS
    one = maps_on_evidence(alert, np.ones((1, alert.kept_places[0]), bool), None)
    assert why_answered(one, 0, 0, -2, evidence_by_hand.NAMES).startswith(
        "An alert: without some window of cells the mean says another class than with all, "
    )


def test_what_a_margin_guard_alone_takes_is_told_from_what_a_patch_does(saved):
    made = certify_evidence(saved, DEFENSES)
    votes = made.defenses[0]
    lost = {**votes.per_image, "worst_case": np.zeros(3, bool)}
    guarded = dataclasses.replace(votes, per_image=lost)
    data = _data(saved, dataclasses.replace(made, margin_guard=0.5, defenses=(guarded,)))
    assert _cells(data, 0) == [["gggg"] * 4, ["fffh"] * 4, ["ffff"] * 4]
    first, second, _ = (image["d"][0] for image in data["images"])
    assert (first["c"], first["guardShare"], second["guardShare"]) == (0, [100.0], [0.0])
    assert first["proved"] == (
        "No patch at any place changes this here, but that is not proved of all evidence less than "
        "0.25 away, as the margin guard of 0.5 asks."
    )
    assert second["proved"].startswith("A patch at row 0, column 0 could change the answer")
    assert data["defenses"][0]["note"] == (
        "Places are without the margin guard, which takes whole images."
    )


def test_a_run_of_before_says_so_and_shows_the_rest(saved):
    about = {key: value for key, value in saved.about.items() if key != "places"}
    old = saved._replace(about=about)
    for defense in _data(old)["defenses"]:
        assert defense["noMap"] == f"No map of places: {evidence_of_run.OLD}."


def test_what_has_no_map_says_why(saved):
    made = certify_evidence(saved, DEFENSES)
    two = dataclasses.replace(made.defenses[0], threat=Threat.of(4, 1, patches=2))
    gone = dataclasses.replace(made.defenses[0], spec="smoothed_vit:band=2")
    report = dataclasses.replace(made, defenses=(two, gone))
    (of_two, of_gone) = _data(saved, report)["defenses"]
    assert of_two["noMap"].endswith("a map is of one patch, and here are several at once.")
    assert of_gone["noMap"] == f"No map of places: {evidence_of_run.GONE}."
    page = page_of_run.made_page(made, None, paged_run.pixels, most_images=9).html
    assert page.count(evidence_of_run.GONE) == 3


def test_evidence_of_other_images_is_named_and_not_shown(saved):
    usual = hand_made_reports.report(
        hand_made_reports.result("smoothed_vit", "smoothed_vit:band=1", conditions={})
    )
    page = page_of_run.made_page(usual, None, paged_run.no_pixels, evidence=saved, most_images=9)
    assert page.missing[:1] == (
        "Defenses on evidence have no maps: the evidence is of other images than the results "
        "(test:0).",
    )


def test_maps_that_would_make_a_page_too_large_are_left_out(saved):
    few = MapLimits(evidence_cells=3 * (4 + 4))  # 3 images; maps of 4, 4 and 4
    first, second, third = _data(saved, limits=few)["defenses"]
    assert len(first["maps"]) == len(second["maps"]) == 1
    assert third["noMap"].startswith("No map of places: maps of 3 images with so many places")


def test_of_many_shapes_some_have_a_map():
    defense = evidence_entries.build("smoothed_vit:band=1", Threat.of(4, (1, 2), (2, 1)), None)
    at = defense.at_places(evidence_by_hand.votes(), evidence_by_hand.LABELS)
    verdicts = np.asarray(at.holds), np.asarray(at.leads, np.float16)
    maps = maps_on_evidence(defense, *verdicts, limits=MapLimits(shapes=1))
    assert [one.spots.shape for one in maps.maps] == [(1, 2)]
    assert maps.note == "1 of the 2 shapes of the patch have a map here."
    two = dataclasses.replace(defense, threat=Threat.of(4, 1, patches=2))
    with pytest.raises(NoPlacesError):
        maps_on_evidence(two, np.asarray(at.holds), None)
