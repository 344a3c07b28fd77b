"""The tables of defenses and masks: what they promise of the builders, and what is made of them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from certmask_jax import defenses
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import (
    certification_options,
    defense_entries,
    defense_specs,
    evidence_entries,
    listings,
    mask_entries,
    mask_specs,
    spec_keys,
)
from certmask_jax.programs.defense_specs import Spec

THREAT = Threat.of(32, 5)


def _with_keys(keys):
    """Every key with a default that can be typed, and that default."""
    return [(key, key.default) for key in keys if key.default and " " not in key.default]


@pytest.mark.parametrize(
    ("name", "key", "default"),
    [(e.name, k.name, d) for e in defense_entries.DEFENSES.values() for k, d in _with_keys(e.keys)],
)
def test_the_default_of_a_defenses_key_is_its_builders(name, key, default):
    usual = defense_specs.build(name, (32, 32), (5, 5))
    typed = defense_specs.build(f"{name}:{key}={default}", (32, 32), (5, 5))
    assert typed == usual
    assert typed.name == name
    if name != "crosscert":  # its keys make bands, which are what it has
        assert str(typed.options[key]) in (default, f"{default}.0")


@pytest.mark.parametrize(
    ("example", "key", "default"),
    [(e.example, k.name, d) for e in mask_entries.MASKS for k, d in _with_keys(e.keys)],
)
def test_the_default_of_a_key_of_masks_is_its_builders(example, key, default):
    chooser, _, value = example.partition("=")
    if example == "mask_stride=4" and key == "split":
        default = "stride"  # an even split needs a number of masks
    usual = mask_specs.mask_set(THREAT, {chooser: value})
    typed = mask_specs.mask_set(THREAT, {chooser: value, key: default})
    np.testing.assert_array_equal(typed.boxes, usual.boxes)
    assert typed.promise == usual.promise


def test_every_defense_of_the_library_and_every_usual_set_of_masks_is_there():
    library = {"double_masking", "challenger_masking", "minority_reports", "mrcert", "pair_cover",
               "certmask", "certmask_detection", "vot", "plurality", "minimum_explanation",
               "robust_masking", "patchcure", "crosscert", "interval_bounds"}  # fmt: skip
    assert set(defense_entries.DEFENSES) == library
    for name, entry in defense_entries.DEFENSES.items():
        if name != "crosscert":  # the module of that name is its mathematics
            assert entry.build is getattr(defenses, name)
        side = 8 if entry.masks == "mask_stride=1" else 32  # a mask for every place
        usual = defense_specs.build(name, (side, side), (5, 5))
        named = defense_specs.build(f"{name}:{entry.masks}", (side, side), (5, 5))
        np.testing.assert_array_equal(usual.mask_set.boxes, named.mask_set.boxes)
        assert (usual.name, usual.spec) == (name, name)
    assert isinstance(defense_specs.build("crosscert", (32, 32), (5, 5)), defenses.CrossCert)


def test_what_papers_call_a_defense_is_one_that_there_is():
    for meant in set(defense_entries.CALLED_ELSEWHERE.values()):
        assert evidence_entries.is_on_evidence(meant) or meant in defense_entries.DEFENSES


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("VOT", "vot"),
        ("CrossCert", "crosscert"),
        ("PATCHGUARD", "patchguard or patchguard_pp"),
        ("Mask-DS", "mask_ds"),
    ],
)
def test_capitals_of_papers_are_answered_with_a_name(typed, meant):
    with pytest.raises(ValueError, match=rf"got '{typed}' \(did you mean {meant}\?\)"):
        defense_specs.check(typed)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("plurality", Spec("plurality")),
        ("plurality:a=1,b=x=y", Spec("plurality", (("a", "1"), ("b", "x=y")))),
        ("a.b:C", Spec("a.b:C")),
        ("a.b:C.d:k=v", Spec("a.b:C.d", (("k", "v"),))),
        ("plurality:x=a:b", Spec("plurality", (("x", "a:b"),))),
    ],
)
def test_a_spec_has_a_name_and_keys_and_says_itself_again(text, spec):
    assert defense_specs.parsed(text) == spec
    assert str(spec) == text
    larger = defense_specs.with_built_for(text, (3, 4))
    assert defense_specs.without_built_for(larger) == (text, "3x4")
    assert defense_specs.without_built_for(text) == (text, None)


@pytest.mark.parametrize(
    ("given", "default", "example"),
    [
        ({}, "masks_per_axis=6", "masks_per_axis=6"),
        ({"split": "even"}, "masks_per_axis=6", "masks_per_axis=6"),
        ({"mask_size": "8"}, "masks_per_axis=6", "mask_size=9"),
        ({"mask_size": "8"}, "tiling=replicated", "tiling=replicated"),  # of the tiling
        ({"coverage": "2"}, "tiling=replicated", "tiling=replicated"),
        ({"tiling": "tight"}, "tiling=replicated", "tiling=tight"),
        ({"masks_per_axis": "3"}, "tiling=replicated", "masks_per_axis=6"),
        ({"mask_size": "8"}, "budget=15", "mask_size=9"),
        ({"mask_size": "8", "tiling": "exact"}, "budget=15", "tiling=exact"),
    ],
)
def test_one_key_chooses_the_kind_of_masks(given, default, example):
    assert mask_specs.chosen(given, default)[0].example == example


def test_a_key_of_other_masks_is_named_with_those_that_these_have():
    message = (
        "--defense double_masking:masks_per_axis=3,coverage=2: unknown option 'coverage' here; "
        "expected ties, masks_per_axis, split of double_masking with masks by masks_per_axis "
        "(--list)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        defense_specs.build(message[10:].partition(": ")[0], (32, 32), (5, 5))


@pytest.mark.parametrize("text", ["x", "0", "-3", "3x", "3x4x5", "", "\u0663"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="expected pixels"):
        spec_keys.size(text)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("plurality:bands=9", "bands: expected columns from 1 to 7"),  # the builder's word is band
        ("plurality:bands=3,stride=9", "stride: expected columns from 1 to 8"),
        ("pair_cover:plane=6", "plane: expected an order q"),
        ("pair_cover:partition=99", "partition: expected at most 8 rows"),
    ],
)
def test_errors_of_builders_call_a_key_as_it_is_typed(spec, said):
    with pytest.raises(ValueError, match=f"^--defense {spec}: {said}"):
        defense_specs.build(spec, (8, 8), (1, 1))


# --- what is made of them ---


def test_the_list_fits_80_columns_and_has_every_name():
    text = listings.everything()
    assert max(map(len, text.splitlines())) <= 80
    for name in (*defense_entries.DEFENSES, *mask_entries.KEYS, "--defense package.module:Class"):
        assert f"  {name}" in text
    assert "[ties=largest, second_ before keys" in " ".join(text.split())


def test_tables_for_documents():
    table = listings.defenses_as_markdown().splitlines()
    assert len(table) == 2 + len(defense_entries.DEFENSES) + len(evidence_entries.EVIDENCE)
    assert len({line.count(" | ") for line in table}) == 1
    assert "| `minority_reports` | one round of votes" in listings.defenses_as_markdown()
    assert "| `tiling=exact` |" in listings.masks_as_markdown()
    assert "| `tau` | confidence above which" in listings.keys_as_markdown()
    options = listings.options_as_markdown(certification_options.parser())
    assert "| `--patch SIZE[,SIZE...]` | pixels (5, or 5x9" in options
    assert "%(default)s" not in options
    assert "2%)" in options
