"""How masks, defenses and reports draw themselves in a notebook."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import hand_made_reports
import numpy as np

import certmask_jax as cm
from certmask_jax.masks.mask_drawing import svg_of
from certmask_jax.masks.threats import Threat


def _parts(svg):
    root = ElementTree.fromstring(svg)
    return [one for one in root.iter() if one.tag.endswith("rect")]


def test_every_distinct_box_is_drawn_once_where_it_is():
    masks = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
    ground, first, *outlines, patch = _parts(svg_of(masks.boxes, (8, 8), (1, 1), "a <b>"))
    assert ground.get("width") == "168"
    assert len(outlines) == len(masks) == 4
    of = {tuple(float(one.get(k)) / 21 for k in ("y", "x", "height", "width")) for one in outlines}
    boxes = masks.boxes[:, 0]
    expected = {(t, l, b - t, r - l) for t, l, b, r in boxes.tolist()}  # noqa: E741
    assert of == expected
    assert (first.get("y"), first.get("x")) == (patch.get("y"), patch.get("x"))
    assert patch.get("width") == "21.0"


def test_unused_boxes_are_not_drawn_and_many_are_cut():
    boxes = np.zeros((2, 2, 4), np.int32)
    boxes[:, 0] = [[0, 0, 4, 4], [4, 4, 8, 8]]
    assert len(_parts(svg_of(boxes, (8, 8), (1, 1), ""))) == 1 + 1 + 2 + 1
    many = cm.mask_sets.replicated(32, 5, mask_size=8, coverage=6)
    assert len(_parts(svg_of(many.boxes, (32, 32), (5, 5), ""))) < 450


def test_masks_defenses_and_reports_draw_themselves():
    masks = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
    defense = cm.defenses.double_masking(masks)
    for one in (masks, defense):
        html = one._repr_html_()
        ElementTree.fromstring(html)  # it is well formed
        assert "<svg" in html
        assert str(masks) in html
    assert "recovery" in defense._repr_html_()
    assert "<td>10</td>" in defense._repr_html_()
    threat = Threat.of(8, 1)
    for one, has_picture in (
        (cm.defenses.SmoothedViT(threat, band=2), True),
        (cm.defenses.MaskDS(threat, band=2), True),
        (cm.defenses.PatchGuard(threat, field=3, stride=1), False),
    ):
        html = one._repr_html_()
        ElementTree.fromstring(html)
        assert ("<svg" in html) == has_picture
        assert one.parts_and_threat in html
        assert "recovery" in html
    report = hand_made_reports.report(hand_made_reports.result("a<b", certified=4))
    html = report._repr_html_()
    ElementTree.fromstring(html)
    assert re.search(r"<td>50\.0 \[", html)
