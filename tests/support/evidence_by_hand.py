"""A run on evidence of three images whose votes and cells are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import evidence_entries
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_store import EvidenceBlock, EvidenceStore, SavedEvidence
from certmask_jax.tables.run_images import Rows

NAMES = ["ant", "bee", "cow"]
VOTES = evidence_entries.build("smoothed_vit:band=1", Threat.of(4, 1), None)
LOCAL = LocalLogits(lambda params, images: None, 2, 2)
CELLS = evidence_entries.build("clipped_bagnet:clip=4", Threat.of((4, 4), 1), LOCAL)
ALERTS = evidence_entries.build("patchguard_pp:tau=0.5", Threat.of((4, 4), 1), LOCAL)
DEFENSES = [VOTES, CELLS, ALERTS]
LABELS = np.array([0, 1, 0], np.int32)
# Labels that the four columns vote for; a patch of one pixel meets one column, whatever its row.
COLUMNS = np.array([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 2, 2]])
# What each quarter says for ant and bee; a patch is within one quarter.
QUARTERS = np.array(
    [
        [[[4, 0], [4, 0]], [[4, 0], [4, 0]]],
        [[[0, 4], [0, 4]], [[2, 2], [2, 2]]],
        [[[0, 3], [0, 3]], [[0, 3], [0, 3]]],
    ],
    np.float32,
)


def votes() -> np.ndarray:
    """Logits of the columns: ``[3, 4, 3]``."""
    return np.where(COLUMNS[..., None] == np.arange(3), 5, 0).astype(np.float32)


def quarters() -> np.ndarray:
    """With a third class that nothing speaks for."""
    return np.concatenate([QUARTERS, np.zeros((3, 2, 2, 1), np.float32)], axis=3)


def saved(folder: Path) -> SavedEvidence:
    """What the run kept, by way of its files."""
    evidence = [votes(), quarters(), quarters()]
    results = [d.results(e, LABELS) for d, e in zip(DEFENSES, evidence, strict=True)]
    at = [d.at_places(e, LABELS) for d, e in zip(DEFENSES, evidence, strict=True)]
    verdicts = [
        column
        for result, defense in zip(results, DEFENSES, strict=True)
        for column in (result.worst_case, *(result.conditions[n] for n in defense.condition_names))
    ]
    facts = {
        "num_images": 3, "images_per_block": 3, "defenses": [d.facts for d in DEFENSES],
    }  # fmt: skip
    about = {
        "provenance": {"class_names": NAMES, "local_logits": {"field": 2, "stride": 2}},
        "verdicts": [1 + len(d.condition_names) for d in DEFENSES],
        "places": [list(d.kept_places) for d in DEFENSES],
    }
    evidence_store.begun(folder, facts, about)
    EvidenceStore(folder, 3, 3).write(
        0,
        EvidenceBlock(
            np.stack([result.answer for result in results], axis=1).astype(np.int32),
            np.stack(verdicts, axis=1),
            LABELS,
            np.array([0.5, 0.25, 1], np.float32),
            LABELS,
            np.packbits(np.concatenate([one.holds for one in at], axis=1), axis=1),
            np.concatenate([one.leads for one in at[:2]], axis=1).astype(np.float16),
            Rows(("all right", "in part", "wrong"), {}, ("a", "b", "c")),
        ),
    )
    return evidence_store.load_evidence(folder)
