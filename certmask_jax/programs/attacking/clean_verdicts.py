"""What is known of images before they are attacked, and whether it is what a run says of them.

An attack asks about every image without a patch first: what is answered, and what is certified. Of
the images of a run this has to be what the run recorded. Otherwise the pixels, the weights or the
versions are others, or the run was edited, and a patch says nothing about a proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax._text import counted, some
from certmask_jax.attacks.attacked_evidence import OnBands, OnLocalLogits
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.defenses import Defense, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.whole_table import predict
from certmask_jax.programs import program
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_summary import is_wrong
from certmask_jax.programs.attacking.attacked_job import AnyDefense, model_of
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_job import Job


class Before(NamedTuple):
    """What is known of B images without a patch."""

    answers: NDArray[np.integer]
    certified: NDArray[np.bool_]
    conditions: Mapping[str, NDArray[np.bool_]]


def joined(parts: Sequence[Before]) -> Before:
    """What is known of some images after the other."""
    return Before(
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.certified for part in parts]),
        {
            name: np.concatenate([part.conditions[name] for part in parts])
            for name in parts[0].conditions
        },
    )


def before_attack(
    job: Job,
    defense: AnyDefense | None,
    asked: Attacked,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Before:
    """What a defense of a job, or its model for None, says of images ``uint8[B, H, W, C]``.

    Args:
      job: what is attacked.
      defense: of it.
      asked: it, as a search sees it.
      images: without a patch.
      labels: ``int32[B]``, the true ones.
      chunk, mesh: of a table, as ``predict``; None: its own. On evidence so many images at once.
    """
    nothing = np.zeros(len(labels), np.bool_)
    if defense is None:
        return Before(asked.answers(images), nothing, {})
    if isinstance(asked, OnBands | OnLocalLogits):
        assert isinstance(defense, EvidenceDefense)
        results = asked.results(images, labels, at_once=chunk)
        worst_case, *holds = np.asarray(results.verdicts).T
        return Before(
            np.asarray(results.answers[:, 0]),
            worst_case,
            dict(zip(defense.condition_names, holds, strict=True)),
        )
    assert isinstance(defense, Defense)
    table = predict(
        model_of(job),
        job.params,
        images,
        defense.masked_images,
        preprocessing=job.preprocessing,
        chunk=chunk,
        mesh=mesh,
    )
    verdicts = defense.verdicts(table, labels)
    conditions = {name: verdicts[name] for name in defense.row_conditions}
    return Before(defense.rule(table), verdicts["worst_case"], conditions)


def is_wrong_without_a_patch(line: Line, defense: AnyDefense | None) -> bool:
    """Whether the image of a line is certified and yet answered wrongly as it is."""
    if defense is None or not line.get("certified") or "before" not in line:
        return False
    return is_wrong(line, defense.guarantee == Guarantee.DETECTION)


class Otherwise(NamedTuple):
    """Images that do not give now what the run recorded of them, by their ids.

    Attributes:
      others: not those of the run.
      ties: those that rounding may decide.
    """

    others: tuple[str, ...]
    ties: tuple[str, ...]

    def tell(self) -> None:
        """Says which, in a line each."""
        for images, why in (
            (self.others, "other pixels, weights or versions, or an edited run"),
            (self.ties, "margins so small that rounding may decide"),
        ):
            if images:
                do = "does" if len(images) == 1 else "do"
                program.say(
                    f"{'error: ' if images is self.others else ''}{counted(len(images), 'image')} "
                    f"{do} not give what the run recorded, such as {some(images)}: {why}; "
                    "neither attacked nor held against a proof"
                )


def otherwise(claims: Claims, lines: Sequence[Line]) -> Otherwise:
    """Which images of some lines do not give what the run recorded of them."""
    differ = [line for line in lines if not claims.agree(line)]
    others = _ids(line for line in differ if not claims.is_tie(line))
    ties = _ids(line for line in differ if line["image"] not in set(others))
    return Otherwise(others, ties)


def _ids(lines: Iterable[Line]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line["image"] for line in lines))
