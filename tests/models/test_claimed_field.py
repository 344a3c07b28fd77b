"""Models that see more than they claim, or claim what they see: found when they are made."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
    first_params,
    in_own_parts,
    parts_of_wrong_field,
    small_bagnet,
    small_local,
    small_split_vit,
)

import certmask_jax as cm
from certmask_jax import models, weights
from certmask_jax.inference import claimed_fields
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.programs import certify, train

PARTS = "tests.support.small_models:parts_of_wrong_field"
WRONG = "tests.support.small_models:bagnet_of_wrong_field"


def _claiming(model, *, before=0, after=0, **claims):
    """A model on images with more rows and columns of 0, and what it says of its cells."""
    honest = model.local

    def local_logits(params, images):
        pads = ((0, 0), (before, after), (before, after), (0, 0))
        return honest.apply_fn(params, jnp.pad(images, pads))

    said = {"field": honest.field, "stride": honest.stride, **claims}
    return dataclasses.replace(model, local=LocalLogits(local_logits, **said))


def test_honest_models_pass_with_drawn_variables_and_with_their_own():
    for model in (small_bagnet(), small_local()):
        models.check_field(model)
    random = np.random.default_rng(1)
    own = jax.tree.map(
        lambda leaf: abs(random.normal(size=leaf.shape)).astype(np.float32),
        small_local().param_shapes(),
    )
    models.check_field(small_local(), own)
    models.check_field(models.create("cifar_resnet8"))  # which claims nothing
    # A field that is larger than the truth is safe: fewer windows are left alone.
    models.check_field(_claiming(small_local(), field=6))


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        # one pixel more than it claims, behind and before the field
        (small_bagnet, {"after": 1, "field": 2}, r"cell \(0, 0\) .* also sees \(0, 2\)"),
        (small_local, {"after": 1, "field": 4}, r"cell \(0, 0\) .* also sees \(0, 4\)"),
        (small_local, {"before": 1, "field": 4}, r"cell \(0, 1\) .* also sees \(0, 1\)"),
        # another stride than it has: cells of 3, which see from 2 on
        (small_local, {"stride": 3}, r"cell \(0, 1\) .* also sees \(0, 2\)"),
        (small_local, {"stride": 1}, r"expected \[1, 2, 2, K\] .* got \[1, 1, 1, 10\]"),
        (small_bagnet, {"field": 2}, r"expected \[1, 2, 2, K\] .* got \[1, 1, 1, 10\]"),
    ],
)
def test_a_pixel_more_than_a_model_claims_is_found(model, how, words):
    with pytest.raises(ValueError, match=f"local logits: expected .*{words}|local logits: {words}"):
        models.check_field(_claiming(model(), **how))


def test_logits_that_are_no_mean_of_the_local_ones_are_found():
    model = small_local()

    def largest(params, images):
        return model.local.apply_fn(params, images).max(axis=(1, 2))

    def of_two_classes(params, images):
        return model.apply_fn(params, images)[:, :2]

    with pytest.raises(ValueError, match="local logits: expected logits that are the mean"):
        models.check_field(dataclasses.replace(model, apply_fn=largest))
    with pytest.raises(ValueError, match=r"got \[1, 2\] beside means \[1, 10\]"):
        models.check_field(dataclasses.replace(model, apply_fn=of_two_classes))


def test_parts_that_see_more_than_they_claim():
    models.check_field(in_own_parts())
    with pytest.raises(ValueError, match=r"stem: expected the cell .* but it also sees"):
        models.check_field(parts_of_wrong_field())


@pytest.mark.parametrize("which", ["parts", "local"])
def test_a_model_that_claims_less_than_it_sees_is_refused_where_it_is_first_used(which):
    """By ``predict`` and by ``defended``, however often they are asked."""
    images = np.zeros((1, 8, 8, 1), np.uint8)
    if which == "parts":
        model, more = parts_of_wrong_field(), {}
        masks = cm.mask_sets.budgeted_grid((1, 8), (1, 2), mask_stride=1)
    else:
        model = _claiming(small_local(), before=1, after=1, field=4)
        masks, more = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2), {"local": model.local}
    params = first_params(small_split_vit() if which == "parts" else small_local())
    defense = cm.defenses.DoubleMasking(masks)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"expected the cell .* but it also sees"):
            cm.predict(model.apply_fn, params, images, defense.masked_images, **more)
    with pytest.raises(ValueError, match=r"expected the cell .* but it also sees"):
        cm.defended(model.apply_fn, params, defense, channels=1, **more)


def test_what_was_looked_at_is_not_looked_at_again(monkeypatch):
    looked = []
    monkeypatch.setattr(claimed_fields, "check_parts", lambda *given: looked.append(given))
    how = {"preprocessing": cm.Preprocessing()}
    parts, other = (dataclasses.replace(in_own_parts().apply_fn, name=name) for name in "ab")
    for model, params in ((parts, {"a": 1.0}), (parts, {"a": 2.0}), (other, {"a": 1.0})):
        claimed_fields.check_claims(model, None, params, 1, **how)
    claimed_fields.check_claims(lambda params, images: images, None, {}, 1, **how)
    assert [given[0].name for given in looked] == ["a", "b"]


def test_training_does_not_begin_with_a_model_that_claims_less_than_it_sees(tmp_path, capsys):
    words = ["--model", WRONG, "--feature-window", "2", "--out", str(tmp_path / "w.npz")]
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --model: local logits: expected the cell (0, 0) to see")
    assert "but it also sees (0, 2)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("program", [train, certify])
def test_no_program_begins_with_parts_of_which_a_cell_sees_more(program, tmp_path, capsys):
    words = ["--model", PARTS, "--out", str(tmp_path / "out")]
    if program is certify:
        weights.save(tmp_path / "w.npz", first_params(small_split_vit()))
        words += ["--weights", str(tmp_path / "w.npz"), "--num-images", "2"]
    assert program.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --model: stem: expected the cell (0, 0) to see")
    assert "but it also sees" in error
    assert error.count("\n") == 1
