"""Weights: strict files of every format, Google's and timm's against timm's own readers."""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.tree_util import DictKey
from timm_oracle import load_timm

from certmask_jax import models, weights
from certmask_jax.programs import convert_weights
from certmask_jax.weights import adaptation, families, google, kinds

FORMATS = [".npz", ".safetensors", ".orbax", ""]


def _key(*names):
    return tuple(DictKey(name) for name in names)


def _random(name, seed=3, **options):
    """A model and variables that are random throughout, zero-initialised ones too."""
    model = models.create(name, **options)
    rng = np.random.default_rng(seed)
    shapes = model.param_shapes()
    draw = lambda leaf: rng.normal(1, 0.2, leaf.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(draw, shapes)


def _assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _arrays(tmp_path, params):
    """What our .npz of them holds."""
    weights.save(tmp_path / "_.npz", params)
    with np.load(tmp_path / "_.npz") as file:
        return {name: file[name] for name in file.files}


def _saved(tmp_path, name="cifar_resnet20", **changed):
    """A .npz of a model with some entries replaced, added or (None) left out."""
    model, params = _random(name)
    arrays = {**_arrays(tmp_path, params), **changed}
    path = tmp_path / "w.npz"
    np.savez(path, **{n: a for n, a in arrays.items() if a is not None})
    return path, model


# Names and layouts


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("params", "blocks_0", "attn", "qkv", "kernel"), "blocks.0.attn.qkv.weight"),
        (("params", "blocks_11", "mlp_fc1", "bias"), "blocks.11.mlp.fc1.bias"),
        (("params", "patch_embed_proj", "kernel"), "patch_embed.proj.weight"),
        (("params", "cls_token"), "cls_token"),
        (("params", "layer1_0", "conv1", "kernel"), "layer1.0.conv1.weight"),
        (("params", "layer1_0", "downsample_1", "scale"), "layer1.0.downsample.1.weight"),
        (("batch_stats", "layer4_2", "bn3", "mean"), "layer4.2.bn3.running_mean"),
        (("batch_stats", "bn1", "var"), "bn1.running_var"),
        (("params", "stages_3", "blocks_2", "norm1", "scale"), "stages.3.blocks.2.norm1.weight"),
        (
            ("params", "stages_0", "blocks_0", "downsample", "conv", "kernel"),
            "stages.0.blocks.0.downsample.conv.weight",
        ),
        (("params", "head", "fc", "kernel"), "head.fc.weight"),
        (("params", "blocks_1", "norm1", "alpha"), "blocks.1.norm1.alpha"),
        (("params", "blocks_1", "ls1"), "blocks.1.ls1"),
        (("params", "blocks_1", "linear_tokens", "kernel"), "blocks.1.linear_tokens.weight"),
        (("params", "blocks_1", "mlp_channels", "fc2", "bias"), "blocks.1.mlp_channels.fc2.bias"),
    ],
)
def test_names_are_torchs(key, name):
    assert weights.torch_name(_key(*key)) == name


def test_layouts_by_hand(tmp_path):
    """A convolution's [h, w, in, out] and a dense layer's [in, out] become torch's."""
    _, params = _random("vit_digits")
    arrays = _arrays(tmp_path, params)
    conv, dense = params["params"]["patch_embed_proj"]["kernel"], params["params"]["head"]["kernel"]
    assert conv.shape == (2, 2, 1, 48)
    assert dense.shape == (48, 10)
    assert arrays["patch_embed.proj.weight"].shape == (48, 1, 2, 2)
    assert arrays["patch_embed.proj.weight"][7, 0, 1, 0] == conv[1, 0, 0, 7]
    assert arrays["head.weight"].shape == (10, 48)
    assert arrays["head.weight"][3, 21] == dense[21, 3]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["cifar_resnet20", "vit_digits"])
def test_weights_survive_the_round_trip(tmp_path, name, suffix):
    model, params = _random(name)
    path = tmp_path / "new" / f"w{suffix}"
    weights.save(path, params)
    again = weights.load(path, model)
    _assert_same(params, again)
    assert weights.digest(params) == weights.digest(again)
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    assert weights.digest(changed) != weights.digest(params)
    weights.save(path, changed)  # replaces
    _assert_same(changed, weights.load(path, model))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_shipped_weights_load():
    model = models.create(models.DEFAULT)
    weights.load(models.default_weights(models.DEFAULT), model)


# Files that others write, against their own readers


def _google_vit(rng, *, width, depth, heads, classes, patch, tokens, mlp=4):
    """Random arrays as google-research/vision_transformer names and shapes them."""

    def draw(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    arrays = {
        "embedding/kernel": draw(patch, patch, 3, width),
        "embedding/bias": draw(width),
        "cls": draw(1, 1, width),
        "Transformer/posembed_input/pos_embedding": draw(1, tokens, width),
        "Transformer/encoder_norm/scale": draw(width),
        "Transformer/encoder_norm/bias": draw(width),
        "head/kernel": draw(width, classes),
        "head/bias": draw(classes),
    }
    for block in range(depth):
        at = f"Transformer/encoderblock_{block}"
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for norm in (0, 2):
            arrays[f"{at}/LayerNorm_{norm}/scale"] = draw(width)
            arrays[f"{at}/LayerNorm_{norm}/bias"] = draw(width)
        for projection in ("query", "key", "value"):
            arrays[f"{attention}/{projection}/kernel"] = draw(width, heads, width // heads)
            arrays[f"{attention}/{projection}/bias"] = draw(heads, width // heads)
        arrays[f"{attention}/out/kernel"] = draw(heads, width // heads, width)
        arrays[f"{attention}/out/bias"] = draw(width)
        arrays[f"{at}/MlpBlock_3/Dense_0/kernel"] = draw(width, mlp * width)
        arrays[f"{at}/MlpBlock_3/Dense_0/bias"] = draw(mlp * width)
        arrays[f"{at}/MlpBlock_3/Dense_1/kernel"] = draw(mlp * width, width)
        arrays[f"{at}/MlpBlock_3/Dense_1/bias"] = draw(width)
    return arrays


def _assert_state(arrays, state):
    assert sorted(arrays) == sorted(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), err_msg=name)


def _timm_tiny():
    """timm's twin of our vit_tiny_patch4_32."""
    return (
        load_timm()
        .models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10
        )
        .eval()
    )


def _assert_same_logits(model, params, module):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(model.apply_fn(params, images))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_googles_vit_as_timm_reads_it(tmp_path, prefix):
    vit = load_timm().models.vision_transformer.VisionTransformer
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    module = vit(img_size=32, patch_size=8, **sizes)
    arrays = _google_vit(
        np.random.default_rng(0), width=24, depth=2, heads=3, classes=5, patch=8, tokens=17
    )
    if prefix == "params/":  # big_vision counts layers of each kind apart
        renamed = {"LayerNorm_2": "LayerNorm_1", "Attention_1": "Attention_0", "Block_3": "Block_0"}
        for old, new in {**renamed, "Transformer/posembed_input/": ""}.items():
            arrays = {name.replace(old, new): array for name, array in arrays.items()}
    arrays = {prefix + name: array for name, array in arrays.items()}
    np.savez(tmp_path / "vit.npz", **arrays)
    module.load_pretrained(str(tmp_path / "vit.npz"))
    _assert_state(google.translate(arrays), module.state_dict())


def test_googles_vit_predicts_as_in_timm(tmp_path):
    arrays = _google_vit(
        np.random.default_rng(0), width=192, depth=12, heads=3, classes=10, patch=4, tokens=65
    )
    np.savez(tmp_path / "vit.npz", **arrays)
    module = _timm_tiny()
    module.load_pretrained(str(tmp_path / "vit.npz"))
    model = models.create("vit_tiny_patch4_32")
    _assert_same_logits(model, weights.load(tmp_path / "vit.npz", model), module)


def _google_bit(rng, *, stem, widths, layers, classes):
    """Random arrays as google-research/big_transfer names and shapes them."""

    def draw(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    conv = "standardized_conv2d/kernel"
    arrays = {f"resnet/root_block/{conv}": draw(7, 7, 3, stem)}
    before = stem
    for stage, (width, count) in enumerate(zip(widths, layers, strict=True), 1):
        inner = width // 4
        for unit in range(1, count + 1):
            at = f"resnet/block{stage}/unit{unit:02d}"
            for letter, size, shape in (
                ("a", before, (1, 1, before, inner)),
                ("b", inner, (3, 3, inner, inner)),
                ("c", inner, (1, 1, inner, width)),
            ):
                arrays[f"{at}/{letter}/group_norm/gamma"] = draw(size)
                arrays[f"{at}/{letter}/group_norm/beta"] = draw(size)
                arrays[f"{at}/{letter}/{conv}"] = draw(*shape)
            if unit == 1:
                arrays[f"{at}/a/proj/{conv}"] = draw(1, 1, before, width)
            before = width
    arrays["resnet/group_norm/gamma"] = draw(before)
    arrays["resnet/group_norm/beta"] = draw(before)
    arrays["resnet/head/conv2d/kernel"] = draw(1, 1, before, classes)
    arrays["resnet/head/conv2d/bias"] = draw(classes)
    return arrays


def test_googles_bit_as_timm_reads_it(tmp_path):
    timm = load_timm()
    widths, layers = (128, 256, 384, 512), (2, 1, 11, 1)
    module = timm.models.resnetv2.ResNetV2(
        layers, channels=widths, stem_chs=32, num_classes=7, global_pool="avg",
        conv_layer=timm.layers.StdConv2d, norm_layer=timm.models.resnetv2.GroupNormAct,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    google_arrays = _google_bit(rng, stem=32, widths=widths, layers=layers, classes=7)
    np.savez(tmp_path / "bit.npz", **google_arrays)
    module.load_pretrained(str(tmp_path / "bit.npz"))
    arrays = google.translate(google_arrays)
    assert "stages.2.blocks.10.conv3.weight" in arrays
    _assert_state(arrays, module.state_dict())


def test_round_trip_timm_ours_safetensors_timm(tmp_path):
    module, other = _timm_tiny(), _timm_tiny()
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    state = {
        n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in module.state_dict().items()
    }
    module.load_state_dict(state)
    save_file(state, tmp_path / "timm.safetensors")
    model = models.create("vit_tiny_patch4_32")
    params = weights.load(tmp_path / "timm.safetensors", model)
    _assert_same_logits(model, params, module)
    weights.save(tmp_path / "ours.safetensors", params)
    other.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    x = torch.randn((2, 3, 32, 32), generator=generator)
    with torch.no_grad():
        assert torch.equal(module(x), other(x))


def test_bfloat16(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    from safetensors.torch import save_file

    model, params = _random("vit_digits")
    state = {n: torch.from_numpy(a).bfloat16() for n, a in _arrays(tmp_path, params).items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    raw = {n: t.view(torch.int16).numpy().view("V2") for n, t in state.items()}
    np.savez(tmp_path / "w.npz", **raw)
    expected = np.float32(state["head.weight"].float().numpy()).T
    assert not np.array_equal(expected, params["params"]["head"]["kernel"])
    for suffix in ("safetensors", "pth", "npz"):
        head = weights.load(tmp_path / f"w.{suffix}", model)["params"]["head"]["kernel"]
        assert head.dtype == np.float32
        np.testing.assert_array_equal(head, expected)


def _state(tmp_path, params, prefix=""):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    state = {prefix + n: torch.from_numpy(a) for n, a in _arrays(tmp_path, params).items()}
    return torch, {**state, f"{prefix}bn1.num_batches_tracked": torch.ones((), dtype=torch.int64)}


@pytest.mark.parametrize(
    ("suffix", "under", "prefix", "is_zip"),
    [
        (".pth", None, "", True),
        (".pt", "model", "_orig_mod.", True),
        (".th", "state_dict", "module.", False),
        (".pth.tar", "model_state_dict", "module.", True),
        (".bin", "net", "", True),
    ],
)
def test_torchs_files(tmp_path, suffix, under, prefix, is_zip):
    model, params = _random("cifar_resnet20")
    torch, state = _state(tmp_path, params, prefix)
    rest = {"epoch": 3, "acc": 0.9, "optimizer": {"param_groups": [{"lr": 0.1}]}}
    content = state if under is None else {**rest, under: state}
    path = tmp_path / f"w{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    _assert_same(params, weights.load(path, model))


class _Touches:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_run(tmp_path):
    model, params = _random("cifar_resnet20")
    torch, state = _state(tmp_path, params)
    trap = tmp_path / "ran"
    torch.save({"state_dict": state, "args": _Touches(trap)}, tmp_path / "a.pth")
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "b.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")
    np.savez(tmp_path / "d.npz", x=np.array([_Touches(trap)], dtype=object))
    (tmp_path / "e.npz").write_bytes(pickle.dumps(_Touches(trap)))
    for name, what in (
        ("a.pth", r"got \S*\bopen too"),
        ("b.pth", r"got argparse\.Namespace too"),
        ("c.pth", r"got torch\.nn\.modules\.linear\.Linear too"),
        ("d.npz", "got pickled Python objects too"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected weights only, {what}.*convert"):
            weights.load(tmp_path / name, model)
    with pytest.raises(ValueError, match=r"e\.npz: expected a readable \.npz file"):
        weights.load(tmp_path / "e.npz", model)
    assert not trap.exists()
    pickle.loads((tmp_path / "e.npz").read_bytes()).close()
    assert trap.exists()  # the trap does work


def test_torch_files_without_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    model = models.create("cifar_resnet20")
    for content, what in (
        ({"epoch": 3, "best": 0.9}, r"got epoch \(int\), best \(float\); save"),
        ([torch.ones(1)], "got a list; save"),
        (
            {"net": {"conv1.weight": torch.ones(1), "lr": 0.1}},
            r"got net \(with conv1.weight, lr\); save",
        ),
        ({}, "got nothing; save"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=f"expected tensors by name.*{what}"):
            weights.load(tmp_path / "w.pth", model)


def test_missing_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"PyTorch, which is missing.*--index-url https\S+/cpu, or convert it once"
    ):
        weights.load(tmp_path / "w.pth", models.create("vit_digits"))


def test_orbax_folders_of_others(tmp_path):
    """Flat under PyTorch's names, a training state, saved from devices, in a manager's folder."""
    model, params = _random("cifar_resnet20")
    state = {"params": params, "opt_state": {"step": np.int32(3)}, "step": np.int32(3)}
    other = jax.tree.map(np.zeros_like, params)
    keys = {"average": params, "variables": other, "step": {"x": np.ones(())}}
    leaves = jax.tree_util.tree_flatten_with_path(keys)[0]
    run = {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flat", _arrays(tmp_path, params))
        checkpointer.save(tmp_path / "state", state)
        checkpointer.save(tmp_path / "7" / "default", jax.device_put(params, jax.devices()[1]))
        checkpointer.save(tmp_path / "run" / "30" / "state", run)
        checkpointer.save(tmp_path / "run" / "9" / "state", run)
    for name in ("flat", "state", "7", "run/30"):
        _assert_same(params, weights.load(tmp_path / name, model))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "odd", {"ema": {"x": np.ones(1)}})
    with pytest.raises(ValueError, match=r"odd: expected \{'params': .*got ema"):
        weights.load(tmp_path / "odd", model)
    with pytest.raises(ValueError, match=r"no Orbax .*give one of its steps, such as \S*run/30"):
        weights.load(tmp_path / "run", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected .*has no Orbax checkpoint in it"):
        weights.load(tmp_path / "empty", model)


# Files that do not fit


def test_weights_of_another_model_list_what_differs(tmp_path):
    path, _ = _saved(tmp_path)
    with pytest.raises(ValueError, match=r"missing: layer1\.3\.bn1\.bias.*Likely another model: "
                       r"expected a CIFAR ResNet \(15 blocks, 10 classes\), the file looks like a "
                       r"CIFAR ResNet \(9 blocks, 10 classes\)"):  # fmt: skip
        weights.load(path, models.create("cifar_resnet32"))
    with pytest.raises(ValueError, match=r"misshapen: linear.bias \(10,\) instead of \(7,\), "
                       r"linear.weight .*Likely another number of classes: num_classes=10 takes "
                       r"the file's head, new_head=True starts a fresh one"):  # fmt: skip
        weights.load(path, models.create("cifar_resnet20", num_classes=7))
    path, model = _saved(tmp_path, surplus=np.ones(1), zzz=np.ones(1))
    with pytest.raises(ValueError, match=r"unexpected: surplus, zzz\. Likely another variant"):
        weights.load(path, model)


def test_weights_of_another_family(tmp_path):
    path, _ = _saved(tmp_path)
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.attn.*unexpected: bn1\.bias.*"
                       r"expected a ViT \(4 blocks, width 48, 2x2 tokens, 10 classes\), the file "
                       r"looks like a CIFAR ResNet"):  # fmt: skip
        weights.load(path, models.create("vit_digits"))
    np.savez(path, x=np.ones(1))
    with pytest.raises(ValueError, match="looks like a family that is not known here"):
        weights.load(path, models.create("vit_digits"))


@pytest.mark.parametrize(
    ("arrays", "described"),
    [
        (
            _google_bit(
                np.random.default_rng(0), stem=4, widths=(8, 8, 8, 8), layers=(3, 4, 6, 3),
                classes=21,
            ),
            "a BiT ResNetV2 (16 blocks, 21 classes)",
        ),
        (
            {
                "stem.proj.weight": np.ones((6, 3, 16, 16)),
                "blocks.0.linear_tokens.weight": np.ones(1),
                "blocks.1.linear_tokens.weight": np.ones(1),
                "head.weight": np.ones((1000, 6)),
            },
            "a ResMLP (2 blocks, width 6, 16x16 tokens, 1000 classes)",
        ),
        (
            {"conv2.weight": np.ones(1), "layer4.0.conv1.weight": np.ones(1)},
            "a BagNet (1 blocks, no head)",
        ),
        (
            {"layer4.0.conv1.weight": np.ones(1), "fc.weight": np.ones((8, 2))},
            "a ResNet (1 blocks, 8 classes)",
        ),
    ],
)  # fmt: skip
def test_families_by_their_names(arrays, described):
    translated = google.translate(arrays)
    assert families.describe({n: a.shape for n, a in translated.items()}) == described


def test_googles_files_that_do_not_fit(tmp_path):
    sizes = {"width": 192, "depth": 12, "heads": 3, "patch": 4, "tokens": 65}
    arrays = _google_vit(np.random.default_rng(0), classes=21, **sizes)
    arrays |= {"pre_logits/kernel": np.ones((192, 192)), "pre_logits/bias": np.ones(192)}
    path = tmp_path / "vit.npz"
    np.savez(path, **arrays)
    model = models.create("vit_tiny_patch4_32")
    with pytest.raises(ValueError, match=r"unexpected: pre_logits\.fc\.bias.*Likely a hidden layer "
                       r"before the head, as ImageNet-21k files have; new_head=True"):  # fmt: skip
        weights.load(path, model)
    assert weights.load(path, model, new_head=True)["params"]["head"]["bias"].shape == (10,)
    del arrays["Transformer/encoderblock_3/MultiHeadDotProductAttention_1/key/kernel"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"missing: blocks\.3\.attn\.qkv\.weight.*unexpected: "
                       r"Transformer/encoderblock_3/MultiHeadDotProductAttention_1/query/kernel"
                       ):  # fmt: skip
        weights.load(path, model, new_head=True)


def test_weights_with_the_prefix_of_dataparallel(tmp_path):
    path, model = _saved(tmp_path)
    with np.load(path) as file:
        arrays = {f"module.{n}": file[n] for n in file.files}
    arrays["module.bn1.num_batches_tracked"] = np.ones((), np.int64)
    np.savez(path, **arrays)
    weights.load(path, model)


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".th"])
@pytest.mark.parametrize("keep", [0, 1, 100, -300])
def test_truncated_weights(tmp_path, suffix, keep):
    model, params = _random("vit_digits")
    path = tmp_path / f"w{suffix}"
    if suffix in (".pth", ".th"):
        torch, state = _state(tmp_path, params)
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    else:
        weights.save(path, params)
    _cut(path, keep)
    with pytest.raises(ValueError, match=rf"expected a readable \{suffix} file.*truncated"):
        weights.load(path, model)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".th"])
def test_text_is_no_weights(tmp_path, suffix):
    if suffix in (".pth", ".th"):
        pytest.importorskip("torch", reason="needs the extra: parity")
    path = tmp_path / f"w{suffix}"
    path.write_text("<!DOCTYPE html> 404 not found" * 9)
    with pytest.raises(ValueError, match=rf"expected a readable \{suffix} file"):
        weights.load(path, models.create("vit_digits"))


@pytest.mark.parametrize("what", ["_METADATA", "manifest.ocdbt", "d/*"])
@pytest.mark.parametrize("keep", [None, 10])
def test_damaged_orbax_folders(tmp_path, what, keep):
    model, params = _random("vit_digits")
    weights.save(tmp_path / "w", params)
    victims = list((tmp_path / "w").rglob(what))
    assert victims
    for victim in victims:
        if keep is None:
            victim.unlink()
        else:
            _cut(victim, keep)
    with pytest.raises(ValueError, match=r"w: expected .*(truncated or damaged|no Orbax)"):
        weights.load(tmp_path / "w", model)


def test_a_damaged_orbax_folder_is_one_line(tmp_path):
    _, params = _random("vit_digits")
    weights.save(tmp_path / "w", params)
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()  # the arrays
    command = [sys.executable, "-m", "experiments.convert_weights", "--model", "vit_digits"]
    ended = subprocess.run(
        [*command, str(tmp_path / "w"), str(tmp_path / "out.npz")], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "truncated or damaged" in ended.stderr


def test_bad_weights(tmp_path):
    model = models.create("vit_digits")
    with pytest.raises(FileNotFoundError, match="found none"):
        weights.load(tmp_path / "no.npz", model)
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors, an Orbax folder, or \.pth"):
        weights.load(tmp_path / "w.h5", model)
    path, model = _saved(tmp_path, **{"bn1.bias": np.full(16, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"finite weights. NaN or infinite: bn1.bias"):
        weights.load(path, model)
    path, model = _saved(tmp_path, **{"bn1.bias": np.array(["x"] * 16)})
    with pytest.raises(
        ValueError, match=r"of floating numbers .* got others. other kinds: bn1.bias \(<U1\)"
    ):
        weights.load(path, model)


# Another task


@pytest.mark.parametrize("name", ["t/vit", "hf/vit", "HF:t/vit", "timm:t/vit"])
def test_an_address_without_its_scheme_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="found none; what the Hugging Face Hub has is hf:"):
        kinds.check_there(Path(name).absolute())
    (tmp_path / "t").mkdir()
    with pytest.raises(FileNotFoundError, match=r"found none$"):
        kinds.check_there(Path("t/vit").absolute())


def test_a_head_on_a_mean_of_tokens_says_which_pooling(tmp_path):
    token, mean = (
        models.create("vit_small_patch8_32", pooling=pooling) for pooling in ("token", "mean")
    )
    for model, other, said in ((token, mean, "mean"), (mean, token, "token")):
        weights.save(tmp_path / "w.npz", other.init(jax.random.key(0)))
        with pytest.raises(weights.SettingError) as error:
            weights.load(tmp_path / "w.npz", model)
        text = error.value.said_with(lambda keyword, value: f"{keyword}={value}")
        assert text.endswith(f"Likely another pooling: pooling={said} is what the file's head sees")


def test_a_new_head_on_request_only(tmp_path):
    _, params = _random("vit_digits")
    weights.save(tmp_path / "w.npz", params)
    model = models.create("vit_digits", num_classes=3)
    load = lambda **how: weights.load(tmp_path / "w.npz", model, new_head=True, **how)  # noqa: E731
    first, again, other = load(), load(), load(seed=1)
    _assert_same(first, again)
    head = first["params"].pop("head")
    assert head["kernel"].shape == (48, 3)
    assert 0.05 < np.std(head["kernel"]) < 0.3  # 1/sqrt(48) = 0.14, as the model draws it
    assert not np.array_equal(head["kernel"], other["params"]["head"]["kernel"])
    del params["params"]["head"]
    _assert_same(first, params)


def test_a_file_without_a_head(tmp_path):
    path, model = _saved(tmp_path, **{"linear.weight": None, "linear.bias": None})
    with pytest.raises(ValueError, match=r"Likely no head in the file; new_head=True"):
        weights.load(path, model)
    assert weights.load(path, model, new_head=True)["params"]["linear"]["kernel"].shape == (64, 10)


def test_a_new_head_even_where_the_old_one_fits(tmp_path):
    path, model = _saved(tmp_path)
    old, new = weights.load(path, model), weights.load(path, model, new_head=True)
    assert not np.array_equal(*(p["params"]["linear"]["kernel"] for p in (old, new)))


@pytest.mark.parametrize("grid", [(7, 7), (3, 6), (2, 2), (12, 4)])
def test_positions_are_resized_as_in_timm(grid):
    load_timm()
    import torch
    from timm.layers import resample_abs_pos_embed

    table = np.random.default_rng(0).normal(size=(1, 17, 5)).astype(np.float32)
    expected = resample_abs_pos_embed(torch.from_numpy(table), list(grid)).numpy()
    resized = adaptation.resized_positions(table, grid=grid, prefix_tokens=1)
    assert resized.shape == (1, 1 + grid[0] * grid[1], 5)
    np.testing.assert_allclose(resized, expected, atol=2e-6)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])


def test_resizing_positions_by_hand():
    """Rows stay rows; a function of the row that is constant along columns stays so."""
    rows = np.repeat([0.0, 0.0, 8.0, 8.0], 4)[None, :, None].astype(np.float32)
    resized = adaptation.resized_positions(rows, grid=(2, 8), prefix_tokens=0)
    resized = resized.reshape(2, 8)
    np.testing.assert_allclose(resized, resized[:, :1].repeat(8, 1), atol=1e-6)
    np.testing.assert_allclose(resized[0] + resized[1], 8, atol=1e-5)  # by symmetry
    assert resized[0, 0] < 1
    with pytest.raises(ValueError, match=r"a square number, D\] to resize, got \[1, 15, 1\]"):
        adaptation.resized_positions(rows[:, 1:], grid=(2, 2), prefix_tokens=0)


def test_another_input_size_on_request_only(tmp_path):
    _, params = _random("vit_digits")
    weights.save(tmp_path / "w.npz", params)
    model = models.create("vit_digits", input_size=(12, 16))
    with pytest.raises(ValueError, match=r"pos_embed \(1, 17, 48\) instead of \(1, 49, 48\)\. "
                       r"Likely another input size \(17 positions instead of 49\): "
                       r"resize_positions=True resizes them$"):  # fmt: skip
        weights.load(tmp_path / "w.npz", model)
    resized = weights.load(tmp_path / "w.npz", model, resize_positions=True)
    expected = adaptation.resized_positions(
        params["params"].pop("pos_embed"), grid=(6, 8), prefix_tokens=1
    )
    np.testing.assert_array_equal(resized["params"].pop("pos_embed"), expected)
    _assert_same(resized, params)
    both = models.create("vit_digits", input_size=(12, 16), num_classes=3)
    with pytest.raises(ValueError, match=r"number of classes.*, and another input size"):
        weights.load(tmp_path / "w.npz", both)
    weights.load(tmp_path / "w.npz", both, resize_positions=True, new_head=True)
    path, resnet = _saved(tmp_path)
    with pytest.raises(ValueError, match="expected a model with position embeddings"):
        weights.load(path, resnet, resize_positions=True)


# Writing


def test_where_nothing_can_be_written(tmp_path):
    _, params = _random("vit_digits")
    (tmp_path / "file").write_text("x")
    for suffix in FORMATS:
        with pytest.raises(OSError, match=r"expected a place that can be written"):
            weights.save(tmp_path / "file" / f"w{suffix}", params)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileExistsError, match="another folder, which is left as it is"):
        weights.save(tmp_path / "folder", params)
    with pytest.raises(FileExistsError, match="an Orbax folder or nothing"):
        weights.save(tmp_path / "file", params)
    with pytest.raises(FileExistsError, match="a file or nothing"):
        weights.save(tmp_path / "folder.npz", params)
    with pytest.raises(ValueError, match=r"ends in \.npz or \.safetensors"):
        weights.save(tmp_path / "w.pth", params)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "file", "folder", "folder.npz", "precious",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    model, params = _random("vit_digits")
    path = tmp_path / f"w{suffix}"
    weights.save(path, params)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        patch.setattr(ocp.StandardCheckpointer, "save", full)
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            weights.save(path, jax.tree.map(np.zeros_like, params))
    _assert_same(params, weights.load(path, model))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# The program


def test_convert_weights(tmp_path, capsys):
    path, model = _saved(tmp_path, "vit_digits")
    out = tmp_path / "w.safetensors"
    assert convert_weights.main([str(path), str(out), "--model", "vit_digits"]) == 0
    params = weights.load(path, model)
    count = sum(int(leaf.size) for leaf in jax.tree.leaves(params))
    line = capsys.readouterr().out
    assert line == (
        f"{out}: vit_digits with 10 classes, {len(jax.tree.leaves(params))} entries, {count:,} "
        f"parameters, sha256 {weights.digest(params)}\n"
    )
    _assert_same(params, weights.load(out, model))
    folder = tmp_path / "orbax"
    options = ["--num-classes", "3", "--new-head", "--resize-positions", "--input-size", "12x16"]
    arguments = [str(out), str(folder), "--model", "vit_digits", *options]
    assert convert_weights.main(arguments) == 0
    other = models.create("vit_digits", num_classes=3, input_size=(12, 16))
    expected = weights.load(out, other, new_head=True, resize_positions=True)
    _assert_same(expected, weights.load(folder, other))
    assert convert_weights.main(arguments) == 2
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert convert_weights.main([str(path), str(path / "w.npz"), "--model", "vit_digits"]) == 2
    assert "error: " in (message := capsys.readouterr().err)
    assert "expected a place that can be written" in message
    assert convert_weights.main([*arguments, "--overwrite", "--seed", "1"]) == 0
    assert not np.array_equal(
        *(p["params"]["head"]["kernel"] for p in (expected, weights.load(folder, other)))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npz", "w.npz", "--model", "vit_digits"], "found none"),
        (["no.npz", "w.pth", "--model", "vit_digits"], "ends in .npz"),
        (["no.npz", "w.npz", "--model", "vit_digit"], "did you mean vit_digits"),
    ],
)
def test_bad_conversions(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert convert_weights.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_real_weights_under_every_name(shared, tmp_path):
    model = models.create("cifar_resnet20")
    params = weights.load(shared / "weights" / "cifar10_resnet20.npz", model)
    weights.save(tmp_path / "w", params)
    assert weights.digest(weights.load(tmp_path / "w", model)) == weights.digest(params)
