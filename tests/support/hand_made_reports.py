"""Reports with numbers of one's choice, for tests of what is printed and written of them."""

from __future__ import annotations

import numpy as np

from certmask_jax.certification.report import DefenseResult, Report, wilson_interval
from certmask_jax.masks.threats import Threat

COUNT = 8
ON_8 = Threat.of(8, 1)


def verdicts(certified):
    """The first so many of the images hold."""
    return np.arange(COUNT) < certified


def result(
    name="double_masking",
    spec=None,
    *,
    threat=ON_8,
    mask_set=None,
    guarantee="recovery",
    clean=8,
    certified=6,
    conditions=None,
    alerts=None,
    exact=True,
    near=(0, 0, 0),
):
    """A result of which so many of eight images are right, certified, and so on."""
    fractions = {
        "clean_accuracy": clean / COUNT,
        "worst_case_accuracy": certified / COUNT,
        "certified_accuracy": certified / COUNT,
    }
    conditions = {"two_mask_correct": certified} if conditions is None else conditions
    fractions |= {key: number / COUNT for key, number in conditions.items()}
    if guarantee == "detection":
        fractions["false_alert_rate"] = (alerts or 0) / COUNT
    answer = np.where(verdicts(clean), 1, 0 if alerts is None else -2).astype(np.int32)
    return DefenseResult(
        name=name,
        spec=name if spec is None else spec,
        options={},
        guarantee=guarantee,
        threat=threat,
        mask_set=f"16 masks of 2x2 for {threat}" if mask_set is None else mask_set,
        masks=16,
        masked_images=136,
        clean_accuracy=clean / COUNT,
        worst_case_accuracy=certified / COUNT,
        worst_case_exact=exact,
        certified_accuracy=certified / COUNT,
        conditions={key: number / COUNT for key, number in conditions.items()},
        false_alert_rate=fractions.get("false_alert_rate"),
        near_ties=dict(zip(("0.001", "0.01", "0.1"), near, strict=True)),
        intervals={key: wilson_interval(value, COUNT) for key, value in fractions.items()},
        per_image={
            "answer": answer,
            "worst_case": verdicts(certified),
            "certificate": verdicts(certified),
            **{key: verdicts(number) for key, number in conditions.items()},
            "smallest_margin": np.full(COUNT, 0.25, np.float32),
        },
    )


def report(*results, ids=None, **facts):
    """A report of eight images with these results."""
    made = {
        "num_images": COUNT,
        "forward_passes": {"made": 8 * 40, "full_table": 8 * 137},
        "undefended_accuracy": 1.0,
        "intervals": {"undefended_accuracy": wilson_interval(1.0, COUNT)},
        "defenses": results,
        "non_finite_images": (),
        "provenance": {},
        "ids": [f"test:{number}" for number in range(COUNT)] if ids is None else ids,
        "per_image": {
            "label": np.ones(COUNT, np.int32),
            "undefended": np.array([1] * 7 + [-1], np.int32),
            "smallest_margin": np.full(COUNT, 0.125, np.float32),
        },
    }
    return Report(**{**made, **facts})


CERTMASK = "certmask:tiling=exact,coverage=2x2"
DETECTION = "certmask_detection:tiling=exact,coverage=2x2,tolerance=3"


def usual():
    """Two defenses that recover, one of which is not what its paper says, and one that detects."""
    return report(
        result(near=(0, 1, 2)),
        result("certmask", CERTMASK, certified=0, clean=7, conditions={"k_fold_correct": 5}),
        result(
            "certmask_detection",
            DETECTION,
            guarantee="detection",
            clean=6,
            certified=5,
            alerts=2,
            conditions={"k_fold_correct": 5},
        ),
    )
