"""From a config to all that a certification needs, opened and checked."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from certmask_jax import data, fingerprint, models, weights
from certmask_jax.defenses import Defense
from certmask_jax.evaluation import TestSet
from certmask_jax.models import Model
from certmask_jax.preprocessing import Preprocessing
from experiments import defense_specs
from experiments.certification_options import Config, read_fill, read_patch
from experiments.patched_images import PatchedImages

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
    defenses: Sequence[Defense]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    name: str  # the same for the same command on the same machine


def opened(config: Config, command: str) -> Job:
    """Opens everything; ``ValueError`` or ``OSError`` for what is not there or does not fit."""
    dataset, model = _dataset_and_model(config)
    input_size = model.data_config.input_size
    patches = config.patches or ("1%",)
    specs = config.defenses or DEFAULT_DEFENSES
    defenses = build_defenses(specs, patches, dataset.image_size)
    path = config.model.weights or models.default_weights(config.model.model)
    if path is None:
        raise ValueError(
            f"--weights: expected a file for model {model.name!r}; only {models.DEFAULT} ships "
            "with weights"
        )
    params = config.model.load(path, model)
    test_set: TestSet = dataset
    patched: dict[str, Any] = {}
    if config.patched is not None:
        size = read_patch(patches[0], dataset.image_size)
        test_set = PatchedImages(dataset, size, config.patched)
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
        "patch": list(patches),
        "patch_lives": _PATCH_LIVES[config.patch_lives],
        "defense": list(specs),
        "decide": config.decide,
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
            resize_to=None if dataset.image_size == input_size else input_size,
        ),
        defenses=defenses,
        identity=identity,
        provenance={
            **identity,
            "command": command,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "data_dir": None if config.data_dir is None else str(config.data_dir),
            "weights": path.name,
        },
        name=_name(config, test_set, identity),
    )


def build_defenses(
    specs: Sequence[str], patches: Sequence[str], image_size: tuple[int, int]
) -> list[Defense]:
    """Every defense for every patch."""
    sizes = [read_patch(text, image_size) for text in patches]
    return [defense_specs.build(spec, image_size, patch) for patch in sizes for spec in specs]


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
