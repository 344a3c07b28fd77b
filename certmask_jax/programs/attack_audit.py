"""Certificates that an attack contradicts: each is asked about once more, and said in a line."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.defenses import ALERT, Defense, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.whole_table import predict
from certmask_jax.programs.attack_folder import AttackFolder, Line
from certmask_jax.programs.attack_job import asked_of, defenses_of, model_of
from certmask_jax.programs.certification_job import Job


class Contradiction(NamedTuple):
    """An image whose worst case is certified, and that is answered wrongly with a patch.

    Attributes:
      line: of ``attacks.jsonl``.
      again: what the defense answers to the patched image when its whole table is evaluated on one
        device, in chunks of another size.
      stands: whether that is wrong too; if not, rounding decides between labels here.
    """

    line: Line
    again: int
    stands: bool

    @property
    def said(self) -> str:
        """In a line."""
        what = (
            f"{self.line['defense']}: {self.line['image']} is certified, and answered "
            f"{self.line['after']} with the patch in {self.line['file']}"
        )
        if self.stands:
            return f"{what}, on one device in other chunks too: a proof of this program is wrong"
        return (
            f"{what}, but {self.again} on one device in other chunks: rounding decides it, and "
            "certify --margin-guard leaves such images out"
        )


def contradictions(job: Job, folder: AttackFolder) -> list[Contradiction]:
    """All certificates that were contradicted, each asked about once more."""
    by_spec = defenses_of(job)
    found = []
    for line in folder.lines:
        if not (line["broken"] and line["certified"]):
            continue
        defense = by_spec[line["defense"]]
        pixels = np.asarray(Image.open(folder.folder / line["file"]), np.uint8)
        image = pixels.reshape(*pixels.shape[:2], -1)
        again = _answer_again(job, defense, image)
        alerts = defense.guarantee == Guarantee.DETECTION and again == ALERT
        found.append(Contradiction(line, again, again != line["label"] and not alerts))
    return found


def _answer_again(job: Job, defense: Defense | EvidenceDefense, image: NDArray[np.uint8]) -> int:
    if isinstance(defense, EvidenceDefense):
        return int(asked_of(job, defense, one_device=True).answers(image[None])[0])
    table = predict(
        model_of(job),
        job.params,
        image[None],
        defense.masked_images,
        preprocessing=job.preprocessing,
        chunk=7,  # of which nothing else is a multiple
        mesh=device_mesh(jax.local_devices()[:1]),
    )
    return int(defense.rule(table)[0])
