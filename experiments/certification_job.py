"""From a config to all that a certification needs, opened and checked."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from certmask_jax import certified_size, data, fingerprint, models, weights
from certmask_jax.defenses import Defense
from certmask_jax.geometry import as_size
from certmask_jax.local_fields import LocalLogits
from certmask_jax.models import Model
from certmask_jax.preprocessing import Preprocessing
from certmask_jax.report import Report
from certmask_jax.run_images import TestSet
from certmask_jax.threats import Threat
from experiments import defense_specs, mask_set_specs
from experiments.certification_options import Config, read_fill
from experiments.patched_images import PatchedImages
from experiments.threat_options import threats

DEFAULT_DEFENSES = (
    "double_masking",
    "challenger_masking",
    "minority_reports",
    "certmask:tiling=exact,coverage=2x2",
    "certmask_detection:tiling=exact,coverage=2x2,tolerance=3",
)

_PATCH_LIVES = {
    "input": "in the image that the model sees, after any resize",
    "native": "in the data set's own pixels; masked images are resized",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A data set, a model and defenses, and the facts that tell this run from others."""

    dataset: TestSet
    model: Model
    params: Any
    preprocessing: Preprocessing
    local: LocalLogits | None  # where masked images are evaluated by their distinct fields
    defenses: Sequence[Defense]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    name: str  # the same for the same command on the same machine


def opened(config: Config, command: str) -> Job:
    """Opens everything; ``ValueError`` or ``OSError`` for what is not there or does not fit."""
    dataset, model = _dataset_and_model(config)
    input_size = model.data_config.input_size
    attacks = threats(config.threat, dataset.image_size)
    specs = tuple(config.defenses or DEFAULT_DEFENSES)
    if config.threat.sizes:
        specs = specs_over_sizes(specs, attacks)
    defenses = build_defenses(specs, attacks)
    path = config.model.weights or models.default_weights(config.model.model)
    if path is None:
        raise ValueError(
            f"--weights: expected a file for model {model.name!r}; only {models.DEFAULT} ships "
            "with weights"
        )
    params = config.model.load(path, model)
    resized = None if dataset.image_size == input_size else input_size
    uses_fields = model.local is not None and not config.whole_images and resized is None
    test_set: TestSet = dataset
    patched: dict[str, Any] = {}
    if config.patched is not None:
        if len(attacks) != 1 or len(attacks[0].shapes) != 1:
            raise ValueError(
                "--patched: expected one --patch of one size, which the patches on the images "
                f"have, got {'; '.join(map(str, attacks))}"
            )
        test_set = PatchedImages(dataset, attacks[0].shapes[0], config.patched)
        patched = {"patched_with_noise_of_seed": config.patched}
    identity = {
        "dataset": config.dataset,
        "split": dataset.split,
        "model": model.name,
        "model_options": config.model.about(),
        "weights_sha256": weights.digest(params),
        "data_config": dataclasses.asdict(model.data_config),
        "precision": config.precision,
        "fill": config.fill,
        **config.threat.about(),
        "patch_lives": _PATCH_LIVES[config.patch_lives],
        "defense": list(specs),
        "decide": config.decide,
        "distinct_fields": uses_fields,
        **patched,
    }
    return Job(
        dataset=test_set,
        model=model,
        params=params,
        preprocessing=Preprocessing(
            mean=model.data_config.mean,
            std=model.data_config.std,
            fill=read_fill(config.fill),
            precision=config.precision,  # type: ignore[arg-type]  # checked there
            resize_to=resized,
        ),
        local=model.local if uses_fields else None,
        defenses=defenses,
        identity=identity,
        provenance={
            **identity,
            "threats": list(map(str, attacks)),
            "command": command,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "data_dir": None if config.data_dir is None else str(config.data_dir),
            "weights": path.name,
        },
        name=_name(config, test_set, identity),
    )


def build_defenses(specs: Sequence[str], attacks: Sequence[Threat]) -> list[Defense]:
    """Every defense for every threat; an error names the threat that one cannot be built for."""

    def built(threat: Threat) -> list[Defense]:
        try:
            return [defense_specs.build(spec, threat.image_size, threat) for spec in specs]
        except ValueError as error:
            at = f" ({threat}, one of {len(attacks)} threats)" if len(attacks) > 1 else ""
            raise ValueError(f"{error}{at}") from error

    # The last first: over sizes it is what masks of all the others are built for.
    found = [built(threat) for threat in reversed(attacks)]
    return [defense for each in reversed(found) for defense in each]


def specs_over_sizes(specs: Sequence[str], attacks: Sequence[Threat]) -> tuple[str, ...]:
    """Adds to each defense its one classifier for all sizes, with masks built for the largest.

    Raises:
      ValueError: for sizes that do not fit into each other in turn.
    """
    patches = [threat.shapes[0] for threat in attacks]
    try:
        certified_size.check_sizes(patches)
    except ValueError as error:
        raise ValueError(f"--sizes: {error}") from error
    given = [defense_specs.split_built_for(spec) for spec in specs]
    asked = {base for base, built_for in given if built_for is not None}
    found = []
    for spec, (base, built_for) in zip(specs, given, strict=True):
        found.append(spec)
        if built_for is None and base not in asked:
            found.append(defense_specs.with_built_for(spec, patches[-1]))
    return tuple(dict.fromkeys(found))


def over_sizes(result: Report, specs: Sequence[str]) -> Report:
    """A report of :func:`build_defenses` with what it says over patch sizes."""
    families = []
    for number, spec in enumerate(specs):
        base, built_for = defense_specs.split_built_for(spec)
        largest = None if built_for is None else as_size(mask_set_specs.size(built_for))
        numbers = tuple(range(number, len(result.defenses), len(specs)))
        families.append(certified_size.Family(base, largest, numbers))
    return certified_size.with_curves(result, families)


def _name(config: Config, dataset: TestSet, identity: dict[str, Any]) -> str:
    facts = {
        **identity,
        **fingerprint.of_environment(),
        "num_images": len(dataset),
        "first_image_sha256": fingerprint.of_arrays(dataset.read(0, 1).images),
        "chunk": config.chunk,
    }
    return f"{config.dataset}-{identity['model']}-{fingerprint.of_facts(facts)[:8]}"


def _dataset_and_model(config: Config) -> tuple[data.Dataset, Model]:
    """The data set and the model; the model's data config prepares the images."""
    model = config.model.create()
    dataset = data.load(
        config.dataset,
        data_config=model.data_config,
        split=config.split,
        data_dir=config.data_dir,
        num_images=config.num_images,
        native=config.patch_lives == "native",
    )
    if dataset.num_classes != model.num_classes:
        model = config.model.create(num_classes=dataset.num_classes)
    if dataset.num_classes > model.num_classes:
        raise ValueError(
            f"--num-classes: expected at least {dataset.num_classes} for data set "
            f"{config.dataset!r}, whose labels lie in 0..{dataset.num_classes - 1}, got "
            f"{model.num_classes}"
        )
    return dataset, model
