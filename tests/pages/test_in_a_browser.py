"""The page of a run in a real browser: nothing complains, filters filter, maps have their cells."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import browser
import evidence_by_hand
import mapped_run
import numpy as np
import paged_run
import pytest

from certmask_jax.certification.evidence_verdicts import certify_evidence
from certmask_jax.pages import rendering
from certmask_jax.pages.image_data import Attacked
from certmask_jax.pages.inspected import inspect
from certmask_jax.pages.object_sizes import ObjectSizes
from certmask_jax.pages.pictures import data_uris
from certmask_jax.pages.run_page import page_of
from certmask_jax.programs import page_of_run

pytestmark = pytest.mark.skipif(
    browser.executable() is None, reason="needs a browser: Chromium, which is not installed"
)

_CHOOSE = """((id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
})"""
_CARDS = "[...document.querySelectorAll('.card')].map(card => card.dataset.id)"
_CELLS = "[...document.querySelectorAll('#map .cell')].map(cell => cell.dataset.state).join('')"


def _written(folder: Path) -> Path:
    report, saved = paged_run.made(), paged_run.saved()
    rows = np.arange(5)
    inspected = {
        number: inspect(defense, saved.table, saved.labels, result.per_image["worst_case"])
        for number, (defense, result) in enumerate(
            zip((paged_run.DOUBLE, paged_run.ALERTS), report.defenses, strict=True)
        )
    }
    pictures = data_uris(paged_run.pixels(rows)[0], budget=10**6)
    attacked = {1: [Attacked(0, paged_run.DOG, True, pictures[0])]}
    file = folder / "report.html"
    file.write_text(
        page_of(
            report,
            rows=rows,
            inspected=inspected,
            pictures=pictures,
            attacked=attacked,
            object_sizes=ObjectSizes(np.array([0.15, 0.95, 0.11, np.nan, 0.5]), "boxes.csv"),
            missing=["Images are not at hand: " + "a_folder_with_a_long_name/" * 9 + "."],
        )
    )
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return _written(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def of_maps(tmp_path_factory):
    """A page with maps of several shapes, of several patches, and of CrossCert."""
    made = page_of_run.made_page(
        mapped_run.made(), mapped_run.saved(), paged_run.pixels, most_images=9
    )
    file = tmp_path_factory.mktemp("maps") / "report.html"
    file.write_text(made.html)
    return file


@pytest.fixture(scope="module")
def of_evidence(tmp_path_factory):
    """A page of defenses on evidence alone."""
    folder = tmp_path_factory.mktemp("evidence")
    saved = evidence_by_hand.saved(folder)
    report = certify_evidence(saved, evidence_by_hand.DEFENSES)
    made = page_of_run.made_page(report, None, paged_run.pixels, evidence=saved, most_images=9)
    file = folder / "report.html"
    file.write_text(made.html)
    return file


@pytest.fixture(scope="module")
def shown(file):
    with browser.page() as page:
        page.resize(1100, 800)
        page.open(file)
        yield page


@pytest.fixture(autouse=True)
def _anew(shown, file):
    """Every test begins with the page as it opens, and ends without a complaint."""
    shown.resize(1100, 800)
    shown.open(file)
    yield
    assert shown.complaints == []
    assert [one for one in shown.asked if not one.startswith(("file:", "data:"))] == []


def _opened(shown, name):
    number = paged_run.IDS.index(name)
    shown.ask(f"document.querySelectorAll('.card')[{number}].click()")


def test_filters_filter_and_orders_order(shown):
    assert shown.ask(_CARDS) == list(paged_run.IDS)
    for kind, wanted in (
        ("yes", [0]), ("no", [1, 2, 3, 4]), ("one", [1]), ("wrong", [2]), ("broken", [1]),
    ):  # fmt: skip
        shown.ask(f"{_CHOOSE}('f-kind', '{kind}')")
        assert shown.ask(_CARDS) == [paged_run.IDS[i] for i in wanted], kind
    # The detector: mask 2 alone dissents; two dissent; and the image itself is taken for a dog.
    shown.ask(f"{_CHOOSE}('f-a', '1')")
    for kind, wanted in (("one", [1]), ("alert", [1, 3]), ("wrong", [2])):
        shown.ask(f"{_CHOOSE}('f-kind', '{kind}')")
        assert shown.ask(_CARDS) == [paged_run.IDS[i] for i in wanted], kind
    shown.ask(f"{_CHOOSE}('f-a', '0')")
    shown.ask(f"{_CHOOSE}('f-kind', 'all'); {_CHOOSE}('f-class', '{paged_run.DOG}')")
    assert shown.ask(_CARDS) == [paged_run.IDS[4]]
    shown.ask(f"{_CHOOSE}('f-class', ''); {_CHOOSE}('f-sort', 'wide')")
    assert shown.ask(_CARDS)[0] == "wrong"
    # Certified by the alarm and not by double masking: all masks alone say dog.
    shown.ask(f"{_CHOOSE}('f-sort', 'run'); {_CHOOSE}('f-kind', 'but')")
    shown.ask(f"{_CHOOSE}('f-a', '1'); {_CHOOSE}('f-b', '0')")
    assert shown.ask(_CARDS) == [paged_run.IDS[4]]
    assert shown.ask("document.getElementById('count').textContent") == "1 of 5 images"


def test_images_are_chosen_and_ordered_by_object_size(shown):
    shown.ask(f"{_CHOOSE}('f-sort', 'small')")
    ids = paged_run.IDS
    assert shown.ask(_CARDS) == [ids[i] for i in (2, 0, 4, 1, 3)]
    shown.ask(f"{_CHOOSE}('f-sort', 'large')")
    assert shown.ask(_CARDS) == [ids[i] for i in (1, 4, 0, 2, 3)]
    names = "[...document.getElementById('f-size').options].map(one => one.text)"
    assert shown.ask(names) == ["all sizes", "10 to 20%", "50 to 60%", "90 to 100%", "not known"]
    for value, wanted in (("0", (0, 2)), ("1", (4,)), ("2", (1,)), ("none", (3,)), ("", range(5))):
        shown.ask(f"{_CHOOSE}('f-sort', 'run'); {_CHOOSE}('f-size', '{value}')")
        assert shown.ask(_CARDS) == [ids[i] for i in wanted]
    _opened(shown, ids[1])
    said = shown.ask("document.getElementById('detail-facts').textContent")
    assert said.endswith("Its objects cover 95% of what the model sees.")


def test_shapes_are_chosen_and_two_patches_are_both_shown(shown, of_maps):
    shown.open(of_maps)
    number = mapped_run.IDS.index("three")
    shown.ask(f"document.querySelectorAll('.card')[{number}].click()")
    shapes = "[...document.getElementById('map-shape').options].map(one => one.text)"
    assert shown.ask(shapes) == ["1x2 patch", "2x1 patch"]
    count = []
    for shape in "01":
        shown.ask(f"{_CHOOSE}('map-shape', '{shape}')")
        count.append(shown.ask("document.getElementById('map').getAttribute('aria-label')"))
    assert "middle of a 1x2 patch" in count[0]
    assert "middle of a 2x1 patch" in count[1]
    shown.ask("document.querySelectorAll('#detail-defenses input')[1].click()")
    assert shown.ask("document.getElementById('map-shape').parentElement.hidden")
    title = "document.getElementById('map-title').textContent"
    assert shown.ask(title) == "Where one of the patches could change the answer"
    shown.ask("document.getElementById('map').focus()")
    shown.press("ArrowRight")
    said = shown.ask("document.getElementById('map-readout').textContent")
    assert said.startswith("Patch at row 0, column 0: could change the answer")
    assert " with the other at row " in said or " even alone; " in said
    assert shown.ask("document.querySelectorAll('#map .patch.inner').length") == 2


def test_maps_have_the_known_cells_and_say_them(shown):
    for name, cells in (("certified", "hhhh"), ("mask 2 errs", "hfhh"), (paged_run.IDS[4], "ffoo")):
        _opened(shown, name)
        assert shown.ask(_CELLS) == cells
        shown.ask("document.getElementById('close').click()")
    _opened(shown, "mask 2 errs")
    shown.ask("document.getElementById('map').focus()")
    shown.press("ArrowRight")
    shown.press("ArrowRight")
    said = shown.ask("document.getElementById('map-readout').textContent")
    assert said.startswith("Patch at row 0, column 2: could change the answer; hidden by mask 2 (")
    shown.ask("document.getElementById('by-margin').click()")
    assert shown.ask("document.querySelector('#map .cell').getAttribute('style')")


def test_maps_of_evidence_say_what_a_patch_meets_and_where_the_lead_ends(shown, of_evidence):
    shown.open(of_evidence)
    shown.ask("document.querySelectorAll('.card')[1].click()")
    assert shown.ask(_CELLS) == "fffh"
    shown.ask("document.getElementById('by-margin').click()")
    assert "Lead of the true class in the worst case, in votes:" in shown.ask(
        "document.getElementById('map-legend').textContent"
    )
    shown.ask("document.getElementById('map').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
        shown.ask(
            f"document.getElementById('map').dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: '{key}', bubbles: true, cancelable: true}}))"
        )
    assert shown.ask("document.getElementById('map-readout').textContent") == (
        "Patch at row 0, column 3: cannot change the answer; meets 1 of 4 bands. Lead of the true "
        "class in the worst case, in votes: up to 3."
    )
    assert shown.ask("document.getElementById('labels-panel').hidden")
    shown.ask("document.querySelectorAll('[name=defense]')[2].click()")  # it has no leads
    assert shown.ask("document.getElementById('by-margin').parentElement.hidden")
    assert set(shown.ask(_CELLS)) == {"h"}


def test_each_distinct_mask_is_outlined_once_and_many_in_thin_lines(shown, file, tmp_path):
    outlines = "document.querySelectorAll('#map .mask').length"
    lines = "getComputedStyle(document.querySelector('#map .mask'))"
    _opened(shown, "certified")
    shown.ask("document.getElementById('show-masks').click()")
    assert shown.ask(outlines) == 4
    assert shown.ask(f"{lines}.filter") != "none"
    # 726 masks, as of tilings that are repeated: 66 of them are distinct.
    before, text, after = re.split(r"(?<=id=\"data\">)(.*?)(?=</script>)", file.read_text())
    data = json.loads(text)
    data["defenses"][0]["masks"] = [[[i % 11, i % 6, i % 11 + 1, i % 6 + 1]] for i in range(726)]
    many = tmp_path / "report.html"
    many.write_text(before + str(rendering.as_json(data)) + after)
    shown.open(many)
    _opened(shown, "certified")
    shown.ask("document.getElementById('show-masks').click()")
    assert shown.ask(outlines) == 66
    assert shown.ask(f"{lines}.filter") == "none"
    assert shown.ask("getComputedStyle(document.querySelector('#map .masks')).opacity") == "0.5"


def test_the_table_of_pairs_shows_its_masked_image(shown):
    _opened(shown, "mask 2 errs")
    shown.ask("document.getElementById('labels').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        shown.press(key)
    said = shown.ask("document.getElementById('labels-readout').textContent")
    assert said == f"Mask 2: {paged_run.NAMES[paged_run.DOG]}."
    boxes = "[...document.querySelectorAll('#map .hidden-part')].map(b => b.getAttribute('x'))"
    assert shown.ask(boxes) == ["2", "2"]  # mask 2 twice
    shown.ask("document.getElementById('labels').blur()")
    assert shown.ask(boxes) == []


def test_keys_alone_reach_everything(shown):
    shown.ask("document.querySelector('.card').focus()")
    shown.ask("document.activeElement.click()")
    assert shown.ask("document.getElementById('detail').open")
    shown.ask("document.getElementById('next').click()")
    assert "mask 2 errs" in shown.ask("document.getElementById('detail-title').textContent")
    assert "broken: answered dog" in shown.ask("document.querySelector('.patched').textContent")
    shown.press("Escape")
    assert not shown.ask("document.getElementById('detail').open")
    # First the browser gives the focus back to the first card; then the page moves it on.
    shown.wait_for("document.activeElement.dataset.id === 'mask 2 errs'")


def test_printed_nothing_is_wider_than_the_paper(shown):
    shown.resize(718, 1000)  # A4 between its margins
    names = "document.querySelectorAll('.card .name')"
    shown.ask(f"{names}.forEach(name => name.textContent = 'a long name '.repeat(5))")
    with shown.printing():
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert shown.ask(wide) <= 0
        assert not shown.ask("document.getElementById('filters').checkVisibility()")


@pytest.mark.parametrize("size", [(1100, 800), (360, 740)])
def test_nothing_is_wider_than_the_window_and_axe_finds_nothing_serious(shown, size):
    package = importlib.util.find_spec("axe_core_python")
    if package is None or package.origin is None:
        pytest.skip("needs axe-core-python, which is not installed")
    shown.resize(*size, phone=size[0] < 500)
    for opened in (False, True):
        if opened:
            _opened(shown, "mask 2 errs")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert shown.ask(wide) <= 0
        shown.ask((Path(package.origin).parent / "axe.min.js").read_text() + ";0")
        violations = shown.ask(
            "axe.run().then(found => found.violations.map(one => "
            "[one.impact, one.id, one.nodes.map(node => node.html).join(' ').slice(0, 300)]))"
        )
        assert [one for one in violations if one[0] in ("serious", "critical")] == []
