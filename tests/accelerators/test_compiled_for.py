"""Programs that the real compilers make for accelerators that are not here.

XLA's compilers are large, so that each of these tests is skipped where its own is not installed
(CONTRIBUTING.md says how). Nothing is run: what is held is what was compiled.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from certmask_jax import models
from certmask_jax._own_settings import usual_promotion
from certmask_jax.defenses import double_masking
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.mask_sets import budgeted_grid
from certmask_jax.models.resnetv2 import ResNetV2
from certmask_jax.models.vit import VisionTransformer
from certmask_jax.programs.measurements import absent_devices, compiled_for, subjects

# Of few blocks of each kind, since blocks are alike and a TPU's compiler takes its time; and the
# most temporary kilobytes an item on each: what there was and half as much.
CASES = {
    "vit": (VisionTransformer(10, 16, 192, 2, 3), 224, {"h100": 1400, "tpu-v5e": 1400}),
    "bit": (ResNetV2(10, (1, 1, 1, 1)), 224, {"h100": 6000, "tpu-v5e": 6000}),
    "resnet": (models.create("cifar_resnet20").module, 32, {"h100": 150, "tpu-v5e": 150}),
    "lite": (models.create("efficientnet_lite0").module, 224, {"h100": 4000, "tpu-v5e": 4000}),
}
CHUNK = 32  # on each device


@pytest.fixture(scope="module", params=list(absent_devices.TARGETS))
def target(request):
    """Whose compiler is here, or why not."""
    wanted = absent_devices.TARGETS[request.param]
    if jax.config.values["jax_platforms"] != "cpu":
        pytest.skip("needs JAX_PLATFORMS=cpu, so that no accelerator of this machine is looked for")
    try:
        absent_devices.begin()
        absent_devices.devices(wanted)
    except ValueError as error:
        pytest.skip(str(error))
    return wanted


def _subject(module, size, precision="bfloat16"):
    def apply_fn(params, images):
        with usual_promotion():
            return module.apply(params, images)

    shape = (size, size, 3)
    same = module.clone(attention="xla") if hasattr(module, "attention") else module
    with usual_promotion():
        params = jax.eval_shape(same.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    return subjects.Subject(
        "a small one", apply_fn, params, Preprocessing((0.5,) * 3, (0.5,) * 3, precision=precision),
        None, shape, module.num_classes, [double_masking(budgeted_grid(size, 8, masks_per_axis=3))],
    )  # fmt: skip


def _checked(measured):
    assert measured["masked_images_at_once_a_device"] == CHUNK
    assert measured["collectives"] == []
    assert measured["trips_of_loops"] == []
    assert measured["types_of_logits"] == ["f32"]
    assert measured["exponentials_in_16_bits"] == 0  # of softmax, too
    return measured


@pytest.mark.parametrize("name", CASES)
def test_the_masked_forward_pass(target, name):
    module, size, most = CASES[name]
    measured = _checked(compiled_for.measure(_subject(module, size), target, 4 * CHUNK))
    assert measured["float32_copies_of_all_masked_images"] == 0
    assert measured["temporary_kilobytes_an_item"] <= most[target.name]
    estimate = measured["estimate_of_the_compiler"]
    assert 0 < estimate["share_of_the_peak"] < 1


def test_float32_has_copies_of_its_own(target):
    """So that the count of them is one."""
    module, size, _ = CASES["vit"]
    measured = _checked(compiled_for.measure(_subject(module, size, "highest"), target, 4 * CHUNK))
    assert measured["float32_copies_of_all_masked_images"] >= 1


def test_attention_of_cudnn_spares_the_scores(target, monkeypatch):
    """With what only a device would answer: that it is a Hopper, and has a recent cuDNN."""
    if target.name != "h100":
        pytest.skip("cuDNN is NVIDIA's")
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda least: float(least) <= 9)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compiled_for, "flops", lambda *_: None)  # which this machine counts
    traffic = {}
    for attention in ("xla", "cudnn"):
        module = VisionTransformer(10, 16, 192, 3, 3, attention=attention)
        measured = _checked(compiled_for.measure(_subject(module, 224), target, 4 * CHUNK))
        traffic[attention] = measured["estimate_of_the_compiler"]["traffic_megabytes_each"]
    assert traffic["cudnn"] < 0.7 * traffic["xla"]


def test_forms_for_gpus_move_less(target):
    """Patches are no convolution of three channels, which writes and reads them once more."""
    if target.name != "h100":
        pytest.skip("forms for GPUs")
    traffic = {}
    for for_gpu in (False, True):
        module = VisionTransformer(10, 16, 192, 3, 3, for_gpu=for_gpu)
        measured = _checked(compiled_for.measure(_subject(module, 224), target, 4 * CHUNK))
        assert measured["float32_copies_of_all_masked_images"] == 0
        traffic[for_gpu] = measured["estimate_of_the_compiler"]["traffic_megabytes_each"]
    assert traffic[True] < traffic[False]


def test_a_tanh_gelu_is_part_of_its_product(target):
    """In a ViT with the forms for GPUs: hidden units are written once and read once.

    An exact one, which cuBLAS has not, is a kernel of its own, that reads and writes them again.
    """
    if target.name != "h100":
        pytest.skip("cuBLAS is NVIDIA's")
    traffic = {}
    for gelu in ("exact", "tanh"):
        module = VisionTransformer(10, 16, 192, 3, 3, for_gpu=True, gelu=gelu)
        measured = _checked(compiled_for.measure(_subject(module, 224), target, 4 * CHUNK))
        traffic[gelu] = measured["estimate_of_the_compiler"]["traffic_megabytes_each"]
    again = 2 * 2 * 197 * 4 * 192 * 2 / 1e6  # of two blocks: the last has one token
    assert traffic["exact"] - traffic["tanh"] == pytest.approx(again, rel=0.02)


def test_dropped_tokens_are_gathered_without_a_loop(target):
    """50 of 197 tokens, which the compiler takes to be less work (a gather of pixels was more)."""
    module, size, most = CASES["vit"]
    whole = _subject(module, size)

    def kept_logits(params, images, kept, *, padded=True):
        with usual_promotion():
            return module.apply(params, images, kept, padded=padded)

    model = SeenTokens(TokenDropping(kept_logits, module.patch), 50)
    some = dataclasses.replace(whole, apply_fn=model)
    of_all, of_some = (
        _checked(compiled_for.measure(one, target, 4 * CHUNK)) for one in (whole, some)
    )
    assert of_some["float32_copies_of_all_masked_images"] == 0
    assert of_some["temporary_kilobytes_an_item"] <= most[target.name] / 2
    speed = "masked_images_a_second_a_device"
    estimates = [one["estimate_of_the_compiler"] for one in (of_all, of_some)]
    assert estimates[1][speed] > 1.1 * estimates[0][speed]
    assert estimates[1]["operations_each"] < 0.5 * estimates[0]["operations_each"]


def test_fields_are_cut_without_a_loop_over_them(target):
    subject = dataclasses.replace(
        subjects.of_noise("bagnet17", "bfloat16", 1, only_shapes=True),
        defenses=[double_masking(budgeted_grid(224, 36, masks_per_axis=2))],
    )
    measured = compiled_for.measure(subject, target)
    assert measured["collectives"] == []
    # The means of eight masked images at a time, and nothing of as many trips as there are fields.
    assert measured["trips_of_loops"] == [-(-len(subject.defenses[0].masked_images) // 8)]
