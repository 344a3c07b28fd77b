"""What of a job is attacked: its defenses by name, its model, and what its attacker may do."""

from __future__ import annotations

import jax

from certmask_jax._text import some
from certmask_jax.attacks.attacked_defenses import attacked
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.defenses import Defense, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.token_dropping import SeenTokens
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.attacking.attack_options import UNDEFENDED
from certmask_jax.programs.certification_job import Job

AnyDefense = Defense | EvidenceDefense


def defenses_of(job: Job) -> dict[str, AnyDefense]:
    """All defenses of a job by what they are called, in its order."""
    if job.evidence is None:
        return {_spec(defense): defense for defense in job.defenses}
    masking, on_evidence = iter(job.defenses), iter(job.evidence.defenses)
    made: dict[str, AnyDefense] = {}
    for is_on_evidence in job.evidence.order:
        defense: AnyDefense = next(on_evidence) if is_on_evidence else next(masking)
        made[_spec(defense)] = defense
    return made


def detects(job: Job, spec: str) -> bool:
    """Whether what is attacked may raise an alert."""
    return spec != UNDEFENDED and defenses_of(job)[spec].guarantee == Guarantee.DETECTION


def asked_of(job: Job, defense: AnyDefense | None, *, one_device: bool = False) -> Attacked:
    """A defense of a job, or its model for None, as a search sees it."""
    devices = jax.local_devices()
    return attacked(
        defense,
        model_of(job),
        job.params,
        image_shape(job),
        local=None if job.evidence is None else job.evidence.local,
        preprocessing=job.preprocessing,
        mesh=device_mesh(devices[:1] if one_device else devices),
    )


def model_of(job: Job) -> ApplyFn:
    """The model function that is certified, as a function of masked images."""
    return job.model.apply_fn if job.dropping is None else SeenTokens(job.dropping)


def pixel_threat(job: Job, defense: AnyDefense | None) -> Threat:
    """What the attacker may do in pixels, which a defense may see in cells."""
    if defense is None or not job.model.kind.hides_pixels:
        return job.attacks[0]
    return defense.threat


def threat_of(job: Job) -> Threat:
    """What the attacker may do, which is one for all defenses.

    Raises:
      ValueError: for no defense, or several threats.
    """
    threats = list(dict.fromkeys(job.attacks))
    if len(threats) != 1:
        raise ValueError(
            f"expected defenses against one threat, got {len(threats)} "
            f"({some([str(threat) for threat in threats])}); certify with --patch and one of them, "
            "and attack that run"
        )
    return threats[0]


def check_target(job: Job, target: int | None) -> None:
    """Refuses a target that is no output of the model; ``ValueError``."""
    if target is not None and target >= job.model.num_classes:
        raise ValueError(
            f"--target: expected an output of the model, 0 to {job.model.num_classes - 1}, got "
            f"{target}"
        )


def image_shape(job: Job) -> tuple[int, int, int]:
    """Height, width and channels of its images."""
    height, width = job.attacks[0].image_size
    return height, width, job.model.data_config.channels


def _spec(defense: AnyDefense) -> str:
    return defense.spec or defense.name
