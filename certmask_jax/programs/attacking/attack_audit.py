"""Certificates that an attack contradicts: asked about once more, said in a line, and kept."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.attacks.attacked_evidence import OnBands, OnLocalLogits
from certmask_jax.defenses import ALERT, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.whole_table import predict
from certmask_jax.programs import program
from certmask_jax.programs.attacking.attack_folder import AttackFolder, Line
from certmask_jax.programs.attacking.attacked_job import AnyDefense, asked_of, defenses_of, model_of
from certmask_jax.programs.attacking.clean_verdicts import (
    Before,
    before_attack,
    is_wrong_without_a_patch,
)
from certmask_jax.programs.certification_job import Job
from certmask_jax.tables.image_sets import readable

CONTRADICTED = 4
"""Exit status of an attack that contradicts a certificate."""

CONTRADICTIONS = "contradictions.json"
_OTHER_CHUNK = 7  # of which nothing else is a multiple


class Contradiction(NamedTuple):
    """An image whose worst case is certified, and that is answered wrongly, mostly with a patch.

    Attributes:
      line: of ``attacks.jsonl``.
      again: what the defense answers to the patched image when its whole table is evaluated on one
        device, in chunks of another size. Of an image that is answered wrongly as it is: to it.
      stands: whether that is wrong too; if not, rounding decides between labels here.
      is_confirmed: whether the image without a patch is certified when it is asked about again.
    """

    line: Line
    again: int
    stands: bool
    is_confirmed: bool = True

    @property
    def is_of_others(self) -> bool:
        """Whether only the run says that it is certified, and nothing that was computed now."""
        return not self.is_confirmed and "before" not in self.line

    def said(self, folder: Path) -> str:
        """What it says, in a line; ``folder`` is that of the attack."""
        if "file" in self.line:  # else nothing was changed
            path = shlex.quote(str(folder / self.line["file"]))
            how = f"{self.line['after']} with the patch in {path}"
        else:
            how = f"{self.line['before']} without any patch"
        what = f"{self.line['defense']}: {self.line['image']} is certified, and answered {how}"
        if self.is_of_others:
            return (
                f"{what}, but its certificate is of the run alone, and not what is computed now: "
                "other pixels, weights or versions, or an edited run"
            )
        if not self.is_confirmed:
            return (
                f"{what}, but it is not certified on one device in other chunks: rounding decides "
                "it, and certify --margin-guard leaves such images out"
            )
        if self.stands:
            return f"{what}, on one device in other chunks too: a proof of this program is wrong"
        return (
            f"{what}, but {self.again} on one device in other chunks: rounding decides it, and "
            "certify --margin-guard leaves such images out"
        )


def contradictions(job: Job, folder: AttackFolder) -> list[Contradiction]:
    """All certificates that were contradicted, each asked about once more.

    Only what is certified now, of the pixels that are there now, is a certificate here: what a
    run alone says may be of other pixels.

    Args:
      job: what was attacked.
      folder: with the lines of the attack.
    """
    by_spec = defenses_of(job)
    contradicted = []
    for line in folder.lines:
        defense = by_spec.get(line["defense"])
        is_broken = line["broken"] and line.get("certified")
        if defense is None or not (is_broken or is_wrong_without_a_patch(line, defense)):
            continue
        clean = _before_again(job, defense, line)
        is_confirmed = clean is not None and bool(clean.certified[0])
        if is_broken:
            pixels = np.asarray(Image.open(folder.folder / line["file"]), np.uint8)
            again = _answer_again(job, defense, pixels.reshape(*pixels.shape[:2], -1))
        else:
            again = int(line["before"] if clean is None else clean.answers[0])
        alerts = defense.guarantee == Guarantee.DETECTION and again == ALERT
        stands = is_confirmed and again != line["label"] and not alerts
        contradicted.append(Contradiction(line, again, stands, is_confirmed))
    return contradicted


def _before_again(job: Job, defense: AnyDefense, line: Line) -> Before | None:
    """What is said of the image of a line without a patch; None where another is in its place."""
    part = readable(job.dataset, job.unreadable).read(line["number"], line["number"] + 1)
    if tuple(part.ids) != (line["image"],):
        return None
    return before_attack(
        job,
        defense,
        asked_of(job, defense, one_device=True),
        part.images,
        np.asarray(part.labels, np.int32),
        chunk=_OTHER_CHUNK,
        mesh=device_mesh(jax.local_devices()[:1]),
    )


def _answer_again(job: Job, defense: AnyDefense, image: NDArray[np.uint8]) -> int:
    """What is answered on one device in chunks of another size."""
    if isinstance(defense, EvidenceDefense):
        asked = asked_of(job, defense, one_device=True)
        assert isinstance(asked, OnBands | OnLocalLogits)
        no_label = np.zeros(1, np.int32)
        return int(asked.results(image[None], no_label, at_once=_OTHER_CHUNK).answers[0, 0])
    table = predict(
        model_of(job),
        job.params,
        image[None],
        defense.masked_images,
        preprocessing=job.preprocessing,
        chunk=_OTHER_CHUNK,
        mesh=device_mesh(jax.local_devices()[:1]),
    )
    return int(defense.rule(table)[0])


def status_of(contradicted: Sequence[Contradiction]) -> int:
    """The exit status: 0 for none, and bad input where only the run says that it was certified."""
    if any(not one.is_of_others for one in contradicted):
        return CONTRADICTED
    return program.BAD_INPUT if contradicted else 0


def tell(
    contradicted: Sequence[Contradiction], folder: AttackFolder, about: Mapping[str, Any]
) -> None:
    """Says each in a line, and keeps in ``contradictions.json`` what is needed to see it again."""
    path = folder.folder / CONTRADICTIONS
    if not contradicted:
        path.unlink(missing_ok=True)
        return
    for one in contradicted:
        program.say(f"error: {one.said(folder.folder)}")
    contradicted = [one for one in contradicted if not one.is_of_others]
    if not contradicted:
        path.unlink(missing_ok=True)
        return
    each = [{"line": one.line, "again": one.again, "stands": one.stands} for one in contradicted]
    text = json.dumps(fingerprint.plain({"contradictions": each, "provenance": about}), indent=1)
    whole_files.write_text(path, text + "\n")
    program.say(
        f"please report this to whoever maintains the program, with {path} and the images that it "
        "names; they are all that is needed to see it again"
    )
