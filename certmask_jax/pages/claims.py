"""What papers print about certified accuracy, with sources: claims that nobody here re-derived.

On their own weights and images, so no entry of a leaderboard; they stand beside entries. Figures
are percent as printed.
"""

from __future__ import annotations

from typing import NamedTuple

from certmask_jax.masks.threats import Threat


class Claim(NamedTuple):
    """A published figure.

    Attributes:
      data: ``imagenet``, ``imagenette`` or ``cifar10``.
      threat: one patch of what size on what image.
      defense: with the model, as its source names it.
      guarantee: recovery or detection.
      clean, certified: in percent.
      source: where it is printed.
      known: what is known of its certificate; empty where nothing speaks against it.
    """

    data: str
    threat: Threat
    defense: str
    guarantee: str
    clean: float
    certified: float
    source: str
    known: str = ""


_BOARD = "README of github.com/inspire-group/patch-defense-leaderboard"
_PATCHGUARD = "PatchGuard, arXiv 2005.10884, version 1, Table V"
_BAGCERT = "BagCert, arXiv 2102.04154, abstract"
_UNSOUND = (
    "the algorithm as printed in that version is not sound, or the program of the time was used"
)
_RUNNER_UP = "compared with the runner-up class only, so an upper bound"
_GAP = (
    "its formula counts one affected band too few where the stride does not divide the width, so "
    "the printed gap is no certificate"
)
_ON_224 = Threat.of(224, 32)  # 2% of the pixels
_CIFAR = Threat.of(32, 5)  # 2.4%

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim("imagenet", _ON_224, defense, "recovery", clean, certified, _BOARD, known)
        for defense, clean, certified, known in (
            ("PatchCleanser, ViT-B", 83.9, 62.1, ""),
            ("ViP, ViT-L (MAE), stride 5", 74.1, 45.4, _GAP),
            ("ECViT, ViT-B, band 37", 78.58, 41.7, ""),
            ("ViP, ViT-B (MAE), stride 1", 70.8, 41.4, ""),
            ("smoothed ViT-B, band 19, stride 1", 69.3, 38.3, ""),
            ("smoothed ViT-B, band 37, stride 1", 73.2, 38.2, ""),
            ("smoothed ViT-B, band 19, stride 10", 68.3, 36.9, _GAP),
            ("PatchGuard, BagNet-17", 54.6, 26.0, ""),
            ("BagCert, BagNet-17", 45.3, 22.7, ""),
            ("de-randomized smoothing, ResNet-50, band 25", 44.4, 14.0, ""),
            ("Clipped BagNet-17", 53.7, 14.4, _RUNNER_UP),
        )
    ),
    *(
        Claim("imagenet", _ON_224, defense, "detection", clean, certified, _BOARD)
        for defense, clean, certified in (
            ("ViP, ViT-B", 74.6, 74.6),
            ("Minority Reports with PatchCleanser's masks, ViT-B", 74.3, 74.3),
            ("ScaleCert", 58.5, 55.4),
        )
    ),
    Claim("cifar10", _CIFAR, "BagCert", "recovery", 86.0, 60.0, _BAGCERT),
    *(
        Claim(data, threat, defense, "recovery", clean, certified, _PATCHGUARD, known)
        for data, threat, defense, clean, certified, known in (
            ("imagenette", _ON_224, "PatchGuard, BagNet-17", 92.4, 85.2, _UNSOUND),
            ("imagenette", _ON_224, "Clipped BagNet-17", 94.9, 60.9, _RUNNER_UP),
            ("cifar10", _CIFAR, "PatchGuard on smoothing (Mask-DS)", 80.0, 62.2, _UNSOUND),
            ("cifar10", _CIFAR, "de-randomized smoothing", 83.9, 56.2, ""),
            ("cifar10", _CIFAR, "PatchGuard, BagNet-17", 76.2, 37.2, _UNSOUND),
            ("cifar10", _CIFAR, "interval bound propagation", 47.8, 30.8, ""),
            ("cifar10", _CIFAR, "Clipped BagNet-17", 84.2, 9.3, _RUNNER_UP),
        )
    ),
)
"""Those that could be looked up; PatchGuard's figures on 224 are of 32 pixels."""
