"""What tells a job from others, and what is kept beside: JSON-able facts of what was opened."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certmask_jax import data, models, weights
from certmask_jax._text import encodable
from certmask_jax.files import fingerprint
from certmask_jax.inference import views
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.programs import defense_specs, imported
from certmask_jax.programs.certification_config import Config
from certmask_jax.weights import WeightsFile

PATCH_LIVES = {
    "input": "in the image that the model sees, after any resize",
    "native": "in the data set's own pixels; masked images are resized",
}
"""What ``--patch-lives`` says, in words that runs keep."""


def identity_of(
    config: Config,
    dataset: data.Dataset,
    model: Model,
    params: Any,
    *,
    specs: Sequence[str],
    entry: str | None,
    windows: Sequence[Threat] | None,
    uses_fields: bool,
    dropping: TokenDropping | None,
) -> dict[str, Any]:
    """What decides the numbers of a run.

    Args:
      config: that it was opened by.
      dataset, model, params: as they were opened.
      specs: of its defenses.
      entry: of the file of weights, where it was chosen among several.
      windows: of cells that patches reach, for a model in two parts; None for others.
      uses_fields: whether masked images are evaluated by their distinct fields.
      dropping: how hidden tokens are dropped, if they are.
    """
    function = model.kind.numpy_function
    patched = {}
    if config.patched is not None:
        patched = {"patched_with_noise_of_seed": config.patched}
    identity = {
        "dataset": config.data.dataset,
        "split": dataset.split,
        **config.data.about(dataset),
        "model": model.name,
        "model_options": {**config.model.about(), **model.facts},
        "weights_sha256": weights.digest(params) if function is None else function.sha256,
        "data_config": dataclasses.asdict(model.data_config),
        "precision": config.precision,
        "fill": config.fill,
        **config.threat.about(),
        "patch_lives": PATCH_LIVES[config.patch_lives],
        "defense": list(specs),
        "decide": config.decide,
        "distinct_fields": uses_fields,
        **patched,
        **_registered(config, specs),
    }
    if entry is not None:
        identity["weights_entry"] = entry
    if model.encoding != "fill":
        identity["encoding"] = model.encoding
    if views.names_of(model.apply_fn):
        identity["views"] = views.names_of(model.apply_fn)
    if windows is not None:
        identity |= model.kind.facts
        identity["windows_of_cells"] = list(map(str, windows))
    if dropping is not None:
        identity["hidden_tokens"] = "dropped"
    if config.keep_evidence:
        identity["keep_evidence"] = True
    return identity


def provenance_of(
    config: Config,
    dataset: data.Dataset,
    identity: dict[str, Any],
    file: WeightsFile | None,
    *,
    threats: Sequence[Threat],
    command: str,
) -> dict[str, Any]:
    """What is kept beside the numbers: the identity, and what decides none of them.

    Args:
      config, dataset: of the run.
      identity: see ``identity_of``.
      file: of weights; None for a model that holds its own.
      threats: in pixels.
      command: that asked for it.
    """
    return {
        **identity,
        # As data; beside the identity, of which a run of before has only the sentence.
        "native_patches": config.patch_lives == "native",
        "threats": list(map(str, threats)),
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data_dir": _text(config.data.data_dir),
        "labels": _text(config.data.labels),
        "class_names": list(dataset.class_names),
        "class_mapping": dataset.class_mapping,
        **({"missing_images": list(dataset.missing)} if dataset.missing else {}),
        **({} if dataset.subset is None else {"subset": dataset.subset._asdict()}),
        # Beside the subset: without one, a run shows by it that it is of all images.
        "images_in_set": len(dataset) if dataset.subset is None else dataset.subset.of,
        "weights": None if file is None else encodable(file.path.name),
        **({"weights_source": dict(file.source)} if file is not None and file.source else {}),
    }


def name_of(config: Config, dataset: data.Dataset, identity: dict[str, Any]) -> str:
    """The name of its folder, which is the same for the same command on the same machine."""
    facts = {**identity, **fingerprint.of_environment(), "chunk": config.chunk}
    if dataset.listing is None:
        facts["num_images"] = len(dataset)
        facts["first_image_sha256"] = fingerprint.of_arrays(dataset.read(0, 1).images)
    else:  # whatever becomes of a file between two runs
        facts["num_images"] = config.data.num_images
        facts["data_dir"] = _text(config.data.data_dir)
    names = [config.data.dataset, identity["model"]]
    plain = [name.replace(":", ".") if imported.is_path(name) else name for name in names]
    return "-".join([*plain, fingerprint.of_facts(facts)[:8]])


def _registered(config: Config, specs: Sequence[str]) -> dict[str, Any]:
    """Import paths of what other packages have registered by name, for the identity of a run."""
    import_paths = defense_specs.registered_paths(specs)
    for name, group, own in (
        (config.data.dataset, imported.DATASETS, data.names()),
        (config.model.model, imported.MODELS, models.names()),
    ):
        if name not in own and name in (paths := imported.registered(group)):
            import_paths[name] = paths[name]
    return {"registered": import_paths} if import_paths else {}


def _text(path: Path | None) -> str | None:
    return None if path is None else encodable(str(path))
