"""From a config to what attacks: a job that can be attacked, the folder, and who searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.followed_slopes import Followed, check_slopes, spread
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.programs.attacking.attack_folder import AttackFolder
from certmask_jax.programs.attacking.attack_job import Attacker
from certmask_jax.programs.attacking.attack_options import UNDEFENDED, AttackOptions
from certmask_jax.programs.attacking.attacked_job import defenses_of, model_of, threat_of
from certmask_jax.programs.attacking.black_box_job import BlackBoxAttacker
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.tables.image_sets import readable


def opened_job(config: Config, command: str, *, needs_gradients: bool = True) -> Job:
    """A job that can be attacked.

    Raises:
      ValueError: for what has no gradients where they are needed, or no defense that is attacked;
        as ``opened``.
    """
    job = opened(config, command, evidence=True)
    if needs_gradients and not job.model.kind.is_traced:
        raise ValueError(
            f"--model: expected a model of JAX, whose gradients an attack follows, got "
            f"{job.model.name}, a function that has none; for patches of single images "
            "--search square does without"
        )
    threat_of(job)
    return job


def check_gradients(job: Job, options: AttackOptions | None) -> None:
    """Refuses a model without gradients to a search that follows them, before anything is written.

    Args:
      job: what is attacked.
      options: which defenses, and whether by gradients at all; None: the model itself is.

    Raises:
      ValueError: for a model without, see ``check_slopes``; as ``AttackOptions.chosen``.
    """
    if options is not None and options.black_box is not None:
        return

    def some() -> Iterator[NDArray[np.uint8]]:
        images = readable(job.dataset, job.unreadable)
        for number in spread(len(images)).tolist():
            yield from images.read(number, number + 1).images

    by_spec = defenses_of(job)
    specs = [UNDEFENDED] if options is None else options.chosen(list(by_spec))
    on_local = [isinstance(by_spec.get(spec), LocalDefense) for spec in specs]
    evidence = None if job.evidence is None else job.evidence.local
    for local in dict.fromkeys(evidence if is_local else None for is_local in on_local):
        followed = Followed(model_of(job), job.preprocessing, local)
        check_slopes(followed, job.params, some(), name=job.model.name)


def folder_of(job: Job, out: Path, attack: Mapping[str, Any]) -> AttackFolder:
    """The folder of an attack on a job, new or to go on with.

    Args:
      job: what is attacked.
      out: where.
      attack: how, JSON-able.

    Raises:
      FileExistsError, OSError, ValueError: as ``AttackFolder``.
    """
    left_out = ("decide", "distinct_fields")
    settings = {name: value for name, value in job.identity.items() if name not in left_out}
    about = {"class_names": job.provenance["class_names"], "command": job.provenance["command"]}
    return AttackFolder(out, {**settings, "attack": attack}, about)


def attacker_of(
    job: Job,
    options: AttackOptions,
    folder: AttackFolder,
    claims: Claims | None = None,
) -> Attacker:
    """What searches patches as the options say; see ``Attacker``."""
    kind = Attacker if options.black_box is None else BlackBoxAttacker
    return kind(job, options, folder, claims)
