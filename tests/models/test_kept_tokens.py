"""A ViT that is given some tokens of an image, against a NumPy transcription on those alone."""

import jax
import numpy as np
import pytest
from bagnet_oracle import random_weights, uniform
from scipy.special import erf
from timm_oracle import load_timm

import certmask_jax as cm
from certmask_jax import models, weights
from certmask_jax.models.output_choice import restricted, viewed
from certmask_jax.models.vit import VisionTransformer

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 12, 3)).astype(np.float32)  # 2 x 3 tokens of 4 x 4
KEPT = np.array([[0, 2, 5, 6], [0, 1, 4, -1], [0, 3, -1, -1]], np.int32)
SHAPES = {
    "token": {},
    "mean": {"pooling": "mean"},
    "registers": {"registers": 2, "class_position": False, "layer_scale": 0.5},
}


def vit(**options):
    return VisionTransformer(
        num_classes=5, patch=4, width=16, depth=2, num_heads=2, **{"gelu": "exact", **options}
    )


def variables(module):
    """Random ones, biases and positions too."""
    drawn = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES))
    return jax.tree.map(lambda s: drawn.normal(size=s.shape).astype(np.float32) * 0.3, shapes)


def one_by_numpy(module, params, image, tokens):
    """The logits of one image from the tokens that are listed, without any padding."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]

    def norm(x, name, of=p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * of[name]["scale"] + of[name]["bias"]

    def dense(x, of):
        return x @ of["kernel"] + of["bias"]

    side, columns = module.patch, image.shape[1] // module.patch
    rows = []
    for token in tokens[1:]:
        row, column = divmod(token - 1, columns)
        pixels = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        embedded = np.einsum("ijc,ijcd->d", pixels, p["patch_embed_proj"]["kernel"])
        place = token if module.class_position else token - 1
        rows.append(embedded + p["patch_embed_proj"]["bias"] + p["pos_embed"][0, place])
    first = p["cls_token"][0] + (p["pos_embed"][0, :1] if module.class_position else 0)
    registers = [p["reg_token"][0]] if module.registers else []
    x = np.concatenate([first, *registers, np.stack(rows)])
    for block in range(module.depth):
        of = p[f"blocks_{block}"]
        scale = {name: of[name]["gamma"] if module.layer_scale else 1.0 for name in ("ls1", "ls2")}
        y = dense(norm(x, "norm1", of), of["attn"]["qkv"])
        mixed = []
        for head in np.split(np.arange(16), 2):
            q, k, v = y[:, head], y[:, 16 + head], y[:, 32 + head]
            scores = np.exp(q @ k.T / np.sqrt(8))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
        x = x + scale["ls1"] * dense(np.concatenate(mixed, -1), of["attn"]["proj"])
        y = dense(norm(x, "norm2", of), of["mlp_fc1"])
        y = y * (1 + erf(y / np.sqrt(2))) / 2
        x = x + scale["ls2"] * dense(y, of["mlp_fc2"])
    if module.pooling == "token":
        seen = norm(x[0], "norm")
    else:
        seen = norm(x[1 + module.registers :].mean(0), "fc_norm")
    return dense(seen, p["head"])


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_kept_tokens_alone(shape):
    module = vit(**SHAPES[shape])
    params = variables(module)
    apply = jax.jit(module.apply)
    outputs = np.asarray(apply(params, IMAGES, KEPT))
    for image, tokens, logits in zip(IMAGES, KEPT, outputs, strict=True):
        expected = one_by_numpy(module, params, image, tokens[tokens >= 0])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

    every = np.tile(np.arange(7, dtype=np.int32), (3, 1))
    whole = np.asarray(apply(params, IMAGES))
    np.testing.assert_allclose(
        jax.jit(lambda p, x, k: module.apply(p, x, k, padded=False))(params, IMAGES, every),
        whole,
        rtol=1e-5,
        atol=1e-5,
    )


def test_more_padding_changes_last_bits_alone():
    module = vit(pooling="mean")
    params = variables(module)
    apply = jax.jit(module.apply)
    logits = np.asarray(apply(params, IMAGES, KEPT))
    more = np.pad(KEPT, ((0, 0), (0, 3)), constant_values=-1)
    np.testing.assert_allclose(apply(params, IMAGES, more), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"layer_scale": 0.1, "registers": 4, "class_position": False},
            {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
        ),
    ],
)
def test_logits_are_those_of_timms_blocks_on_the_tokens_that_are_left(tmp_path, ours, theirs):
    timm = load_timm()
    import torch

    other = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10, **theirs
    ).eval()
    arrays = random_weights({n: tuple(value.shape) for n, value in other.state_dict().items()})
    other.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=True)
    module = VisionTransformer(10, patch=8, width=48, depth=2, num_heads=3, **ours)
    config = models.DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3)
    np.savez(tmp_path / "w.npz", **arrays)
    small = models.Model("small", 10, module, module, config, module.apply)
    params = weights.load(tmp_path / "w.npz", small)
    images = uniform("kept tokens", (2, 32, 32, 3))
    kept = np.array([[0, 2, 3, 9, 16], [0, 1, 5, -1, -1]], np.int32)
    first = 1 + module.registers
    with torch.no_grad():
        tokens = other.patch_embed(torch.from_numpy(images).permute(0, 3, 1, 2))
        tokens = other._pos_embed(tokens)
        for row, (one, own) in enumerate(zip(tokens, kept, strict=True)):
            left = [*range(first), *(first - 1 + own[own > 0])]
            expected = other.forward_head(other.norm(other.blocks(one[None, left]))).numpy()
            logits = jax.jit(module.apply)(params, images[row : row + 1], kept[row : row + 1])
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_what_is_dropped_changes_no_bit(pooling):
    module = vit(pooling=pooling)
    params = variables(module)
    apply = jax.jit(module.apply)
    logits = np.asarray(apply(params, IMAGES, KEPT))
    for wild in (1e30, np.inf, np.nan):
        changed = IMAGES.copy()
        for image, tokens in zip(changed, KEPT, strict=True):
            for token in set(range(1, 7)) - set(tokens.tolist()):
                row, column = divmod(token - 1, 3)
                image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = wild
        assert np.isnan(changed).any() == np.isnan(wild)
        np.testing.assert_array_equal(apply(params, changed, KEPT), logits)


def test_slopes_are_zero_where_tokens_are_dropped():
    module = vit(pooling="mean")
    params = variables(module)
    slope = jax.jit(jax.grad(lambda images: module.apply(params, images, KEPT).sum()))(IMAGES)
    seen = np.abs(slope).reshape(3, 2, 4, 3, 4, 3).max(axis=(2, 4, 5)).reshape(3, 6) > 0
    assert [(np.flatnonzero(row) + 1).tolist() for row in seen] == [[2, 5, 6], [1, 4], [3]]


def test_an_image_may_keep_no_token_at_all():
    for options in ({}, {"pooling": "mean"}):
        module = vit(**options)
        params = variables(module)
        nothing = np.zeros((3, 1), np.int32)
        logits = np.asarray(jax.jit(module.apply)(params, IMAGES, nothing))
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(logits[0], logits[1])  # of any image the same


def test_models_say_whether_and_how_they_drop_tokens():
    model = models.create("vit_digits")
    assert model.dropping is not None
    assert model.dropping.token == model.module.patch
    assert models.create("vit_digits").dropping == model.dropping  # and so compiles once
    assert models.create("cifar_resnet20").dropping is None
    loaded = cm.load_model("vit_digits")
    assert loaded.dropping is model.dropping
    chosen = restricted(model, (3, 1)).dropping
    assert chosen.token == model.dropping.token
    images = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    kept = np.array([[0, 1, 3], [0, 2, -1]], np.int32)
    whole, some = (
        np.asarray(jax.jit(dropping.apply_fn)(loaded.params, images, kept))
        for dropping in (model.dropping, chosen)
    )
    np.testing.assert_array_equal(some, whole[:, [3, 1]])
    assert viewed(model, "mirror").dropping is None


@pytest.mark.parametrize(
    "kept", [KEPT[:2], KEPT[0], KEPT.astype(np.float32)], ids=["images", "rank", "dtype"]
)
def test_a_list_of_tokens_that_does_not_fit_is_refused(kept):
    module = vit()
    with pytest.raises(ValueError, match=r"kept: expected tokens int32\[3, M\]"):
        module.apply(variables(module), IMAGES, kept)
