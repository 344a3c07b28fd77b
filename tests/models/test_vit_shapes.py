"""ViTs of DINOv2, MAE and DeiT III: names, positions, real weights, and the short last block."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_oracle
from bagnet_oracle import random_weights, uniform
from jax import export
from safetensors.numpy import load_file, save_file
from timm_oracle import load_timm

from certmask_jax import models, weights
from certmask_jax.models.vit import VisionTransformer
from certmask_jax.weights import adaptation

SMALL = partial(VisionTransformer, 5, patch=4, width=16, depth=1, num_heads=2)


def _torch_shapes(model):
    leaves = jax.tree_util.tree_flatten_with_path(model.param_shapes())[0]
    shapes = {}
    for key, leaf in leaves:
        shape = leaf.shape
        if key[-1].key == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shapes[weights.torch_name(key)] = tuple(shape)
    return shapes


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_224.mae",
     "deit3_small_patch16_224", "deit3_large_patch16_384", "vit_large_patch14_reg4_dinov2"],
)  # fmt: skip
def test_names_and_shapes_are_timms(name):
    timm = load_timm()
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=1000)
    expected = {n: tuple(value.shape) for n, value in theirs.state_dict().items()}
    model = models.create(name)
    assert _torch_shapes(model) == expected
    cfg = timm.get_pretrained_cfg(name)
    config = model.data_config
    assert config.input_size == cfg.input_size[1:]
    assert (config.mean, config.std) == (cfg.mean, cfg.std)
    assert config.resize == int(cfg.input_size[1] / cfg.crop_pct)
    eps = {m.eps for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps == {1e-6}


# --- Positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(16, 16), (4, 7), (40, 5)])
def test_positions_are_resized_as_dinov2_does(grid):
    """Against loops, and against PyTorch's interpolation with the published scale factors."""
    table = uniform("positions", (1, 1 + 37 * 37, 3))
    positions = adaptation.resized_positions(table, grid=grid, prefix_tokens=1, how="dinov2")
    np.testing.assert_array_equal(positions[:, 0], table[:, 0])
    squares = table[0, 1:].reshape(37, 37, 3)
    expected = vit_oracle.resized(squares, *grid, 0.1).reshape(-1, 3)
    np.testing.assert_allclose(positions[0, 1:], expected, atol=1e-5)
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(squares, 2, 0)[None]),
        scale_factor=tuple((n + 0.1) / 37 for n in grid),
        mode="bicubic",
    ).numpy()
    np.testing.assert_allclose(
        positions[0, 1:], np.moveaxis(theirs[0], 0, 2).reshape(-1, 3), atol=2e-5
    )
    other = adaptation.resized_positions(table, grid=grid, prefix_tokens=1)
    assert np.abs(other - positions).max() > 0.01  # it matters which


def test_positions_without_the_class_token_are_resized_on_request(tmp_path):
    """DeiT III's and DINOv2's with registers: all positions are the image's."""
    old = models.create("deit3_s16", input_size=(32, 32), num_classes=3)
    arrays = random_weights(_torch_shapes(old))
    save_file(arrays, tmp_path / "w.safetensors")
    new = models.create("deit3_s16", input_size=(48, 32), num_classes=3)
    with pytest.raises(ValueError, match=r"4 positions instead of 6\): resize_positions=True"):
        weights.load(tmp_path / "w.safetensors", new)
    params = weights.load(tmp_path / "w.safetensors", new, resize_positions=True)["params"]
    expected = adaptation.resized_positions(arrays["pos_embed"], grid=(3, 2), prefix_tokens=0)
    np.testing.assert_array_equal(params["pos_embed"], expected)


# --- The given weights --------------------------------------------------------------------------


def test_the_given_vit_is_what_its_transcription_computes(shared, tmp_path):
    """Real weights, in float16 and without a head, on 4x5 tokens in place of 37x37."""
    file = shared / "weights" / "vit_small_patch14_dinov2_like.safetensors"
    stored = load_file(file)
    assert {array.dtype.name for array in stored.values()} == {"float16"}
    model = models.create("vit_small_patch14_dinov2", input_size=(56, 70), num_classes=384)
    with pytest.raises(ValueError, match=r"no head in the file; new_head=True .*1370 positions"):
        weights.load(file, model)
    params = weights.load(file, model, new_head=True, resize_positions=True)
    params["params"]["head"] = {"kernel": np.eye(384, dtype=np.float32), "bias": np.zeros(384)}
    image = uniform("an image", (56, 70, 3))
    expected = vit_oracle.features(stored, image, heads=6)
    with jax.default_matmul_precision("highest"):
        features = np.asarray(jax.jit(model.apply_fn)(params, image[None]))[0]
    assert np.abs(features - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("registers", [0, 2])
def test_dinov2s_own_names(tmp_path, registers):
    """Meta's files: a mask token; beside registers a position of the class token, added to it."""
    module = SMALL(layer_scale=0.1, registers=registers, class_position=not registers)
    config = models.DataConfig((8, 12), (0.5,) * 3, (0.5,) * 3)
    model = models.Model("small", 5, module, module, config, module.apply)
    arrays = random_weights(_torch_shapes(model))
    theirs = {**arrays, "mask_token": np.zeros((1, 16), np.float32)}
    if registers:
        place = uniform("place", (1, 1, 16))
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["pos_embed"] = np.concatenate([place, theirs["pos_embed"]], axis=1)
        theirs["cls_token"] = theirs["cls_token"] - place
    np.savez(tmp_path / "theirs.npz", **theirs)
    np.savez(tmp_path / "timms.npz", **arrays)
    loaded, expected = (weights.load(tmp_path / n, model) for n in ("theirs.npz", "timms.npz"))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), loaded, expected)
    np.savez(tmp_path / "cut.npz", **{n: a for n, a in theirs.items() if n != "pos_embed"})
    with pytest.raises(ValueError, match="missing: pos_embed"):
        weights.load(tmp_path / "cut.npz", model)


# --- The last block -----------------------------------------------------------------------------


def _variables(module, images):
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: uniform(jax.tree_util.keystr(path), leaf.shape) / 4, shapes
    )


@pytest.mark.parametrize(
    "options", [{}, {"layer_scale": 0.1, "registers": 3, "class_position": False}]
)
def test_the_last_block_for_the_class_token_alone(options):
    """The same parameters and logits, from fewer operations; a mean of tokens needs them all."""
    images = uniform("images", (3, 24, 24, 3))
    whole, short = (SMALL(last_block=last, **options) for last in ("all", "token"))
    assert short == SMALL(**options)
    first = [jax.jit(m.init)(jax.random.key(1), images[:1]) for m in (whole, short)]
    jax.tree.map(np.testing.assert_array_equal, *first)
    variables = _variables(whole, images)
    compiled = [jax.jit(m.apply).lower(variables, images).compile() for m in (whole, short)]
    logits = [np.asarray(run(variables, images)) for run in compiled]
    np.testing.assert_allclose(*logits, atol=1e-5 * np.abs(logits[0]).max())
    assert np.ptp(logits[0], axis=0).min() > 0.001
    counted = [run.cost_analysis()["flops"] for run in compiled]
    tokens = 36 + 1 + options.get("registers", 0)
    # Query, projection and both layers of the MLP, each of which is D x D so many times.
    saved = 2 * 3 * (tokens - 1) * 16 * 16 * (1 + 1 + 8)
    assert counted[0] - counted[1] > saved
    if options:
        return
    means = [SMALL(pooling="mean", last_block=last) for last in ("all", "token")]
    variables = _variables(means[0], images)
    np.testing.assert_array_equal(*(jax.jit(m.apply)(variables, images) for m in means))


def test_who_computes_the_last_block_how():
    """What ships has stored results, and keeps their bits; the others say so in the fingerprint."""
    assert models.create("vit_digits").facts == {}
    assert models.create("vit_b16").facts == {"last_block": "class token alone"}
    assert models.create("vit_b16", pooling="mean").facts == {}
    assert models.create("vit_b16", last_block="all").facts == {}
    assert models.create("resmlp_s12").facts == {}
    with pytest.raises(ValueError, match="last_block: expected one of"):
        models.create("vit_b16", last_block="some")
    with pytest.raises(ValueError, match="last_block: expected only for ViTs"):
        models.create("bagnet17", last_block="all")
    with pytest.raises(ValueError, match="class_position: expected False with 4 registers"):
        SMALL(registers=4)


@pytest.mark.parametrize("last_block", ["all", "token"])
def test_the_batch_may_be_symbolic(last_block):
    module = SMALL(last_block=last_block, layer_scale=0.1, registers=1, class_position=False)
    images = uniform("symbolic", (3, 8, 8, 3))
    variables = _variables(module, images)
    shape = export.symbolic_shape("b, 8, 8, 3")
    exported = export.export(jax.jit(partial(module.apply, variables)))(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for count in (1, 3):
        expected = jax.jit(module.apply)(variables, images[:count])
        np.testing.assert_allclose(exported.call(images[:count]), expected, atol=1e-5)
