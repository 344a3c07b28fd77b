"""Which defenses on evidence are one classifier against every patch: their answers say so."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np
import pytest

from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_defense import is_one_rule
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.evidence_entries import EVIDENCE

SIZES = (1, 2, 3)
BUILT = [
    functools.partial(PatchGuard, field=2, stride=1),
    functools.partial(PatchGuardDetection, field=2, stride=1, tau=0.4),
    functools.partial(ClippedBagNet, field=2, stride=1, clip=2),
    functools.partial(BagCert, field=2, stride=1, threshold=0.5),
    functools.partial(DerandomizedSmoothing, band=2, threshold=0.4),
    functools.partial(SmoothedViT, band=2),
    functools.partial(MaskDS, band=2),
]


@functools.cache
def _evidence(is_local):
    shape = (7, 7) if is_local else (8,)
    random = np.random.default_rng(11)
    evidence = random.normal([0.8, 0, 0], 1, size=(60, *shape, 3)).astype(np.float32)
    evidence[:20, ..., 3, 0] -= 12  # cells, or a band, that a window takes away
    return evidence


@pytest.mark.parametrize("built", BUILT, ids=lambda one: one.func.name)
def test_who_says_that_it_is_one_rule_is_one(built):
    """The answers are the same at each size, and what holds at one holds at all smaller ones."""
    evidence = _evidence(built.func.name in {n for n, one in EVIDENCE.items() if one.is_local})
    defenses = [built(Threat.of(8, size)) for size in SIZES]
    outcomes = [jax.jit(one.results)(evidence, np.zeros(60, np.int32)) for one in defenses]
    answers = np.stack([outcome.answer for outcome in outcomes])
    proved = np.stack([outcome.worst_case for outcome in outcomes])
    assert is_one_rule(built.func) == (answers == answers[0]).all()
    assert 0 < proved.sum() < proved.size
    if is_one_rule(built.func):
        assert not (proved[1:] & ~proved[:-1]).any()
        assert proved[0].sum() > proved[-1].sum()


class Inherits(SmoothedViT):
    """May look at the threat."""


@dataclasses.dataclass(frozen=True, repr=False)
class Says(SmoothedViT):
    """Says that it does not."""

    one_rule: ClassVar[bool] = True


def test_each_class_says_it_for_itself():
    assert is_one_rule(SmoothedViT)
    assert not is_one_rule(Inherits)
    assert is_one_rule(Says)
    own = "tests.defenses.test_one_rule:"
    specs = ["smoothed_vit:band=2", "mask_ds", f"{own}Inherits", f"{own}Says:band=2", "certmask"]
    said = [evidence_entries.is_one_rule(spec) for spec in specs]
    assert said == [True, False, False, True, False]


def test_with_windows_of_its_own_a_larger_size_implies_no_smaller_one():
    """By hand: the true class has 1 in each of 3x3 cells, another has 8 in the middle one.

    Windows of one cell: an attack elsewhere leaves 8 of the other and 9 - 2 of the true one. Each
    window of 2x2 has the middle, so it leaves nothing of the other, and two of them spare 2 cells.
    """
    evidence = np.zeros((1, 3, 3, 2), np.float32)
    evidence[..., 0], evidence[0, 1, 1, 1] = 1, 8
    small, large = (PatchGuard(Threat.of(3, size), field=1, stride=1) for size in (1, 2))
    outcomes = [jax.jit(one.results)(evidence, np.zeros(1, np.int32)) for one in (small, large)]
    assert [int(outcome.answer[0]) for outcome in outcomes] == [0, 0]
    assert [bool(outcome.worst_case[0]) for outcome in outcomes] == [False, True]
