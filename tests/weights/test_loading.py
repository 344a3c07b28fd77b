"""One call from a model's name and a file to all that certifying takes."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import certmask_jax as cm
from certmask_jax import data, models, weights
from tests.support.small_models import drawn_params


def _saved(tmp_path, name="cifar_resnet20", **options):
    model = models.create(name, **options)
    weights.save(tmp_path / "w.npz", drawn_params(model))
    return tmp_path / "w.npz"


def test_the_call_gives_what_its_parts_give(tmp_path):
    path = _saved(tmp_path, num_classes=7)
    loaded = cm.load_model("cifar_resnet20", path, fill=(1, 2, 3), precision="high")
    model = models.create("cifar_resnet20", num_classes=7)
    assert loaded.num_classes == 7  # as many as the head has
    assert loaded.apply_fn is model.apply_fn
    assert weights.digest(loaded.params) == weights.digest(weights.load(path, model))
    config = model.data_config
    assert loaded.preprocessing == cm.Preprocessing(config.mean, config.std, (1, 2, 3), "high")
    assert (loaded.image_size, loaded.channels, loaded.data_config) == ((32, 32), 3, config)
    assert repr(loaded) == ("LoadedModel('cifar_resnet20', images uint8 [B, 32, 32, 3], 7 classes)")


def test_a_model_that_ships_with_weights():
    loaded = cm.load_model("vit_digits", fill=0)
    assert (loaded.image_size, loaded.channels, loaded.num_classes) == ((8, 8), 1, 10)
    images = data.load("digits", data_config=loaded.data_config, num_images=4)
    batch = images.read(0, 4)
    defense = cm.defenses.double_masking(
        cm.mask_sets.budgeted_grid(image_size=8, patch_size=2, masks_per_axis=2)
    )
    guarded = cm.defended(
        loaded.apply_fn, loaded.params, defense,
        channels=loaded.channels, preprocessing=loaded.preprocessing,
    )  # fmt: skip
    table = cm.predict(
        loaded.apply_fn, loaded.params, batch.images, defense.masked_images,
        preprocessing=loaded.preprocessing,
    )  # fmt: skip
    np.testing.assert_array_equal(guarded(batch.images).labels, defense.rule(table))


def test_options_of_a_vit(tmp_path):
    path = _saved(tmp_path, "vit_tiny_patch4_32")
    loaded = cm.load_model(
        "vit_tiny_patch4_32", path, input_size=16, resize_positions=True, gelu="tanh"
    )
    assert loaded.image_size == (16, 16)
    assert loaded.params["params"]["pos_embed"].shape == (1, 17, 192)
    assert loaded.model.module.gelu == "tanh"


def test_the_name_says_the_classes_before_the_file(tmp_path):
    path = _saved(tmp_path, num_classes=7)
    with pytest.raises(ValueError, match=r"with 10 classes, got others.*num_classes=7 takes"):
        cm.load_model("cifar_resnet20", path, num_classes=10)
    with pytest.raises(ValueError, match=r"weights\.load\(\.\.\., new_head=True\) starts"):
        cm.load_model("cifar_resnet20", path, num_classes=3)
    with pytest.raises(ValueError, match=r"with 100 classes, got others"):
        cm.load_model("cifar_resnet20_cifar100", path)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("vit_digit",), {}, "did you mean vit_digits"),
        (("cifar_resnet20",), {}, "'cifar_resnet20'; only vit_digits ships with weights"),
        (("cifar_resnet20", "no.npz"), {"gelu": "tanh"}, "gelu: expected only for ViTs"),
        (("vit_digits",), {"fill": (1, 2, 3)}, r"fill: expected 1 values"),
        (("vit_digits",), {"fill": 300}, r"fill: expected .*255"),
        (("vit_digits",), {"precision": "best"}, "precision: expected highest"),
        (("vit_digits",), {"entry": "ema"}, "called 'ema', found"),
        (("vit_digits", "gs://b/w.npz"), {}, "expected a local path"),
    ],
)
def test_what_cannot_be_loaded(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cm.load_model(*arguments, **options)


def test_images_from_files(tmp_path):
    loaded = cm.load_model("vit_digits")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.T.copy()).save(tmp_path / "b.tif")
    images = loaded.images([tmp_path / "a.png", str(tmp_path / "b.tif")])
    np.testing.assert_array_equal(images, np.stack([pixels, pixels.T])[..., None])
    (tmp_path / "c.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"c\.jpg"):
        loaded.images([tmp_path / "c.jpg"])
    with pytest.raises(ValueError, match="at least 1 path, got none"):
        loaded.images([])
    with pytest.raises(ValueError, match="expected several paths, got one"):
        loaded.images(tmp_path / "a.png")


def test_photographs_from_files_to_certificates(shared):
    """The README's lines, on a model that two cores carry."""
    loaded = cm.load_model("cifar_resnet20", shared / "weights" / "cifar10_resnet20_cutout.npz")
    folder = shared / "data" / "imagenet_sample" / "val"
    files = sorted(path for path in folder.rglob("*") if path.is_file())[:4]
    images = loaded.images(files)
    assert images.shape == (4, 32, 32, 3)
    masks = cm.mask_sets.budgeted_grid(image_size=loaded.image_size, patch_size=5, masks_per_axis=3)
    defense = cm.defenses.double_masking(masks)
    how = {"preprocessing": loaded.preprocessing}
    table = cm.predict(loaded.apply_fn, loaded.params, images, defense.masked_images, **how)
    guarded = cm.defended(loaded.apply_fn, loaded.params, defense, **how)
    np.testing.assert_array_equal(guarded(images).labels, defense.rule(table))


def test_names_are_there_without_flax():
    code = (
        "import sys, certmask_jax as cm; assert {'load_model', 'LoadedModel'} <= {*dir(cm)}; "
        "from certmask_jax import data, models; models.names(); cm.load_model; "
        "assert 'flax' not in sys.modules; models.create('bagnet9'); assert 'flax' in sys.modules; "
        "from certmask_jax import load_model; cm.nothing"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in ended.stderr.splitlines()[-1]


def test_a_scripted_model_is_refused_in_one_line(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    path = tmp_path / "scripted.pt"
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns that it might be executed
        with pytest.raises(ValueError, match="expected weights only, got TorchScript too"):
            weights.read(path)
