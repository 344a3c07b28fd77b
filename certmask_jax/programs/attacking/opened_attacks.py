"""From a config to what attacks: a job that can be attacked, the folder, and who searches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.programs.attacking.attack_folder import AttackFolder
from certmask_jax.programs.attacking.attack_job import Attacker
from certmask_jax.programs.attacking.attack_options import AttackOptions
from certmask_jax.programs.attacking.attacked_job import threat_of
from certmask_jax.programs.attacking.black_box_job import BlackBoxAttacker
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.certification_options import Config


def opened_job(config: Config, command: str, *, needs_gradients: bool = True) -> Job:
    """A job that can be attacked.

    Raises:
      ValueError: for what has no gradients where they are needed, or no defense that is attacked;
        as ``opened``.
    """
    job = opened(config, command, evidence=True)
    if needs_gradients and isinstance(job.model.apply_fn, NumpyFunction):
        raise ValueError(
            f"--model: expected a model of JAX, whose gradients an attack follows, got "
            f"{job.model.name}, a function that has none; --search square does without"
        )
    threat_of(job)
    return job


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
