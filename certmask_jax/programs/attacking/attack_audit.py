"""Certificates that an attack contradicts: asked about once more, said in a line, and kept."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.defenses import ALERT, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.whole_table import predict
from certmask_jax.programs import program
from certmask_jax.programs.attacking.attack_folder import AttackFolder, Line
from certmask_jax.programs.attacking.attacked_job import AnyDefense, asked_of, defenses_of, model_of
from certmask_jax.programs.certification_job import Job

CONTRADICTIONS = "contradictions.json"


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
        """What it says, in a line."""
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


def contradictions(
    job: Job, folder: AttackFolder, claimed: Collection[tuple[str, int]] = ()
) -> list[Contradiction]:
    """All certificates that were contradicted, each asked about once more.

    Args:
      job: what was attacked.
      folder: with the lines of the attack.
      claimed: spec and number of images that a run certified, whatever the attack's own table says.
    """
    by_spec = defenses_of(job)
    found = []
    for line in folder.lines:
        is_certified = line.get("certified") or (line["defense"], line["number"]) in claimed
        if not (line["broken"] and is_certified):
            continue
        defense = by_spec[line["defense"]]
        pixels = np.asarray(Image.open(folder.folder / line["file"]), np.uint8)
        image = pixels.reshape(*pixels.shape[:2], -1)
        again = _answer_again(job, defense, image)
        alerts = defense.guarantee == Guarantee.DETECTION and again == ALERT
        found.append(Contradiction(line, again, again != line["label"] and not alerts))
    return found


def _answer_again(job: Job, defense: AnyDefense, image: NDArray[np.uint8]) -> int:
    """What is answered on one device, where it can be so in chunks of another size."""
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


def tell(found: Sequence[Contradiction], folder: AttackFolder, about: Mapping[str, Any]) -> None:
    """Says each in a line, and keeps in ``contradictions.json`` what is needed to see it again."""
    path = folder.folder / CONTRADICTIONS
    if not found:
        path.unlink(missing_ok=True)
        return
    for one in found:
        program.say(f"error: {one.said}")
    each = [{"line": one.line, "again": one.again, "stands": one.stands} for one in found]
    text = json.dumps(fingerprint.plain({"contradictions": each, "provenance": about}), indent=1)
    whole_files.write_text(path, text + "\n")
    program.say(
        f"please report this to whoever maintains the program, with {path} and the images that it "
        "names; they are all that is needed to see it again"
    )
