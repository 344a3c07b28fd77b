"""Other people's names for the models of ``models.published``.

Accepted as they are written there: timm's, with or without the tag of the weights
(``vit_base_patch16_224.augreg_in21k_ft_in1k``), old ones too (``resnetv2_50x1_bitm``), and those of
PatchCleanser's checkpoints (``vit_base_patch16_224_cutout2_128_imagenette``), whose last word is
the data set.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from certmask_jax._settings import SettingError
from certmask_jax._text import like, names_of
from certmask_jax.models.published import MODELS


class Spelling(NamedTuple):
    """What a name stands for."""

    model: str  # a key of MODELS
    num_classes: int | None = None  # what the name says; None where it says nothing
    resizes_whole: bool = False  # whole image straight to the input size, without a crop
    resize: int | None = None  # shorter side before the crop, where it is not the model's own


# PatchCleanser's data sets: classes, and whether it resizes their images whole (crop fraction 1).
_DATASETS = {
    "imagenet": (1000, False),
    "imagenette": (10, False),
    "flower102": (102, False),
    "cifar": (10, True),
    "cifar10": (10, True),
    "cifar100": (100, True),
    "svhn": (10, True),
}
# Tags of weights of one architecture and one preprocessing, and their classes.
_VIT_TAGS = {
    "augreg_in21k_ft_in1k": None,
    "augreg2_in21k_ft_in1k": None,
    "augreg_in1k": None,
    "orig_in21k_ft_in1k": None,
    "sam_in1k": None,
    "augreg_in21k": 21843,
}
_RESMLP_TAGS = ("fb_in1k", "fb_distilled_in1k", "fb_dino")


def resolve(name: str) -> Spelling:
    """The model that a name stands for.

    Args:
      name: short, timm's or a PatchCleanser checkpoint's (``.pth`` at the end is taken off).

    Raises:
      ValueError: for an unknown name, with those that are like it.
    """
    known = {**{short: Spelling(short) for short in MODELS}, **_timm_names()}
    plain = name.removesuffix(".pth")
    if plain in known:
        return known[plain]
    suffix = rf"(?:_cutout\d+_\d+|_masked)?(?:_({'|'.join(_DATASETS)}))?"
    match = re.fullmatch(rf"(.+?){suffix}", plain)
    if match is not None and match[1] in known:
        name_here = known[match[1]]
        if match[2] is None:
            return name_here
        classes, is_small = _DATASETS[match[2]]
        return Spelling(name_here.model, classes, is_small)
    raise SettingError(
        lambda say: (
            f"model: expected one of {names_of(MODELS, 'models', say('models.names()', None))}, or "
            f"timm's or PatchCleanser's name for one, got {name!r}{like(plain, known)}"
        )
    )


def _timm_names() -> dict[str, Spelling]:
    """timm's names, of today and of 2021."""
    names = {}
    for size, word in (("ti", "tiny"), ("s", "small"), ("b", "base"), ("l", "large")):
        for patch in (16, 32):
            for side, end in ((224, ""), (384, "_384")):
                theirs, ours = f"vit_{word}_patch{patch}_{side}", f"vit_{size}{patch}{end}"
                names[theirs] = Spelling(ours)
                for tag, classes in _VIT_TAGS.items():
                    names[f"{theirs}.{tag}"] = Spelling(ours, classes)
            names[f"vit_{word}_patch{patch}_224_in21k"] = Spelling(f"vit_{size}{patch}", 21843)
            if size in "bl" and patch == 16:
                names[f"vit_{word}_patch16_224.mae"] = Spelling(f"vit_{size}16_mae")
        if size == "ti":
            continue
        for side, end in ((224, ""), (384, "_384")):
            theirs, ours = f"deit3_{word}_patch16_{side}", f"deit3_{size}16{end}"
            names[theirs] = names[f"{theirs}.fb_in1k"] = Spelling(ours)
            names[f"{theirs}.fb_in22k_ft_in1k"] = Spelling(ours, resize=side)
            names[f"{theirs}_in21ft1k"] = Spelling(ours, resize=side)
        for reg, hub in (("", ""), ("reg4_", "_reg")):
            theirs, ours = f"vit_{word}_patch14_{reg}dinov2", f"vit_{size}14_{reg}dinov2"
            names[theirs] = names[f"{theirs}.lvd142m"] = Spelling(f"{ours}_518")
            names[f"dinov2_vit{size}14{hub}"] = Spelling(ours)  # torch.hub's
    # Without a tag timm means its default weights: the distilled ones at 224 for 50x1 alone.
    for end in ("_bit", "_bit_distilled", "_bit.goog_distilled_in1k"):
        names[f"resnetv2_50x1{end}"] = Spelling("resnetv2_50x1")
    for end in ("_bitm", "_bit.goog_in21k_ft_in1k"):
        names[f"resnetv2_50x1{end}"] = Spelling("resnetv2_50x1_448")
    for bit in ("resnetv2_101x1", "resnetv2_50x3"):
        for end in ("_bit", "_bitm", "_bit.goog_in21k_ft_in1k"):
            names[bit + end] = Spelling(f"{bit}_448")
        for end in ("_bitm_in21k", "_bit.goog_in21k"):
            names[bit + end] = Spelling(bit, 21843)
    for depth in (12, 24, 36):
        for theirs in (
            f"resmlp_{depth}_224",
            f"resmlp_{depth}_distilled_224",
            f"resmlp_{depth}_224_dino",
            *(f"resmlp_{depth}_224.{tag}" for tag in _RESMLP_TAGS),
        ):
            names[theirs] = Spelling(f"resmlp_s{depth}")
    for number in range(5):
        for theirs in (
            "tf_efficientnet_lite{}",
            "tf_efficientnet_lite{}.in1k",
            "efficientnet-lite{}",
        ):
            names[theirs.format(number)] = Spelling(f"efficientnet_lite{number}")
    return names
