"""From a config to all that a certification needs, opened and checked."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certmask_jax import data, models, weights
from certmask_jax._text import encodable, some
from certmask_jax.defenses import Defense
from certmask_jax.files import fingerprint
from certmask_jax.inference import views
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.models.output_choice import restricted, viewed
from certmask_jax.programs import (
    defense_specs,
    evidence_entries,
    imported,
    parts_options,
)
from certmask_jax.programs.certification_config import Config, read_fill
from certmask_jax.programs.command_line import as_options
from certmask_jax.programs.evidence_job import EvidenceJob, opened_evidence
from certmask_jax.programs.patched_images import PatchedImages
from certmask_jax.programs.run_defenses import (
    build_defenses,
    specs_over_sizes,
    without_a_view,
)
from certmask_jax.programs.threat_options import threats
from certmask_jax.tables.image_sets import TestSet

DEFAULT_DEFENSES = (
    "double_masking",
    "challenger_masking",
    "minority_reports",
    "certmask:tiling=exact,coverage=2x2",
    "certmask_detection:tiling=exact,coverage=2x2,tolerance=3",
)

PARTS_DEFENSES = ("patchcure",)
"""Of a model in two parts."""

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
    unreadable: Mapping[str, str]  # images that cannot be read, by id, and why
    dropping: TokenDropping | None  # where a ViT is given the tokens alone that are seen
    notes: tuple[str, ...]  # what was decided on the way, in lines to show
    evidence: EvidenceJob | None = None  # the defenses that are not on masked images
    attacks: Sequence[Threat] = ()  # what is certified against, in pixels
    without_effect: Mapping[str, str] = dataclasses.field(default_factory=dict)  # options, and why


class BrokenImagesError(ValueError):
    """Images that cannot be decoded, and what helps.

    Attributes:
      named: which, without what helps.
    """

    def __init__(self, named: str) -> None:
        super().__init__(f"{named}; mend them, or leave them out with --on-unreadable skip")
        self.named = named


def opened(config: Config, command: str, *, with_data: bool = True, evidence: bool = False) -> Job:
    """Opens everything; ``ValueError`` or ``OSError`` for what is not there or does not fit.

    ``with_data=False`` opens no data set, for what is about the classifier alone: the job's is one
    blank image, and what it says of data and class names means nothing. Without ``evidence``
    defenses on evidence are refused.
    """
    config = dataclasses.replace(config, model=config.model.with_card())
    where = config.model.weights or models.default_weights(config.model.model)
    is_function = _is_function(config)
    if where is None and not is_function:
        name = config.model.create().name
        raise ValueError(
            f"--weights: expected a file for model {name!r}; only {models.DEFAULT} ships with "
            "weights"
        )
    file = None if where is None else config.model.read(where)
    opens = _dataset_and_model if with_data else _model_alone
    dataset, model = opens(config, None if file is None else weights.num_classes(file))
    input_size = model.data_config.input_size
    attacks = threats(config.threat, dataset.image_size)
    specs = tuple(config.defenses or DEFAULT_DEFENSES)
    in_pixels = attacks
    if config.two_parts is not None:
        model = parts_options.cut(model, config.two_parts)
    parts = model.kind.parts
    if parts is not None:
        specs = tuple(config.defenses or PARTS_DEFENSES)
        parts_options.check(config, specs)
        if dataset.image_size != input_size:
            parts = parts.for_images(dataset.image_size)
            model = dataclasses.replace(model, apply_fn=parts)
        attacks = parts_options.on_cells(parts, attacks)
    else:
        parts_options.check_whole(specs)
    if config.threat.sizes:
        specs = specs_over_sizes(specs, attacks)
    on_evidence = opened_evidence(config, model, dataset, specs, attacks)
    if on_evidence is not None and not evidence:
        raise ValueError(
            "--defense: expected defenses that mask images; those on evidence are for certify and "
            "attack"
        )
    if config.keep_evidence and on_evidence is None:
        raise ValueError(
            "--keep-evidence: expected a --defense on evidence, of local logits or of bands "
            "(--list), got none; leave it out"
        )
    masking = [spec for spec in specs if not evidence_entries.is_on_evidence(spec)]
    try:
        defenses = build_defenses(masking, attacks)
    except ValueError as error:
        if config.defenses:
            raise
        raise ValueError(
            f"{str(error).replace('--defense', 'the default defense', 1)} (see --defense)"
        ) from error
    entry: str | None = None
    weights_notes: tuple[str, ...] = ()
    params: Any = ()  # a function holds its own
    if file is not None:
        entry, weights_notes = config.model.taken(file, model)
        params = config.model.load(file, model)
    without_effect: dict[str, str] = {}
    if dataset.outputs is not None:
        if len(dataset.outputs) == model.num_classes:
            without_effect["--only-classes"] = (
                f"as all {model.num_classes} outputs of the model are classes of the data set"
            )
        model = restricted(model, dataset.outputs)
    if config.whole_images and model.local is None:
        raise ValueError(
            "--whole-images: expected a model with local logits (BagNet), which can do otherwise, "
            f"got {model.name}; leave it out"
        )
    views_notes: tuple[str, ...] = ()
    if config.views != views.NONE and model.local is not None and not config.whole_images:
        views_notes = (
            f"--views {config.views}: masked images are evaluated whole, more work than by "
            f"the fields of {model.name}: a mean over views is no mean over fields of one image",
        )
    if on_evidence is not None and on_evidence.local is not None:
        on_evidence = dataclasses.replace(on_evidence, local=model.local)
    dropping = dropping_of(config, model)
    model = viewed(model, config.views)
    if on_evidence is not None:
        on_evidence = dataclasses.replace(on_evidence, apply_fn=model.apply_fn, dropping=dropping)
    unreadable = _unreadable(config, dataset)
    resized = None if dataset.image_size == input_size else input_size
    uses_fields = model.local is not None and not config.whole_images and resized is None
    test_set: TestSet = dataset
    patched: dict[str, Any] = {}
    if config.patched is not None:
        if len(in_pixels) != 1 or len(in_pixels[0].shapes) != 1:
            raise ValueError(
                "--patched: expected one --patch of one size, which the patches on the images "
                f"have, got {'; '.join(map(str, in_pixels))}"
            )
        test_set = PatchedImages(dataset, in_pixels[0].shapes[0], config.patched)
        patched = {"patched_with_noise_of_seed": config.patched}
    function = model.kind.numpy_function
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
        "patch_lives": _PATCH_LIVES[config.patch_lives],
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
    if parts is not None:
        identity |= model.kind.facts
        identity["windows_of_cells"] = list(map(str, attacks))
    if dropping is not None:
        identity["hidden_tokens"] = "dropped"
    if config.keep_evidence:
        identity["keep_evidence"] = True
    with as_options("fill"):
        preprocessing = Preprocessing.of_encoding(
            model.encoding,
            mean=model.data_config.mean,
            std=model.data_config.std,
            fill=read_fill(config.fill),
            precision=config.precision,
            resize_to=resized,
        )
        preprocessing.check_channels(model.data_config.channels)
    return Job(
        dataset=test_set,
        model=model,
        params=params,
        preprocessing=preprocessing,
        local=model.local if uses_fields else None,
        defenses=defenses,
        identity=identity,
        provenance={
            **identity,
            # As data; beside the identity, of which a run of before has only the sentence.
            "native_patches": config.patch_lives == "native",
            "threats": list(map(str, in_pixels)),
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
        },
        name=_name(config, dataset, identity),
        unreadable=unreadable,
        dropping=dropping,
        notes=(*dataset.notes, *weights_notes, *views_notes, *without_a_view(defenses)),
        evidence=on_evidence,
        attacks=tuple(in_pixels),
        without_effect=without_effect,
    )


def dropping_of(config: Config, model: Model) -> TokenDropping | None:
    """How the model drops hidden tokens, if it is to; ``ValueError`` where it cannot."""
    if config.hidden_tokens == "fill":
        return None
    asked = f"--hidden-tokens {config.hidden_tokens}"
    if model.dropping is None:
        raise ValueError(
            f"{asked}: expected a ViT, which sees an image as tokens, got {model.name}; leave it "
            "out, and hidden pixels are filled"
        )
    if config.views != views.NONE:
        raise ValueError(
            f"{asked}: expected no --views beside it, which moves what a mask hides to other tokens"
        )
    return model.dropping


def _is_function(config: Config) -> bool:
    """Whether the model is a NumPy function; ``ValueError`` for options that this cannot have."""
    if ":" not in config.model.model and config.model.model in models.names():
        return False
    if imported.path_of(config.model.model, imported.MODELS) is None:
        return False
    if config.model.create().kind.is_traced:
        return False
    for option, given, why in (
        ("two-parts", config.two_parts is not None, "it has no parts"),
        ("weights", config.model.weights is not None, "it holds its own"),
        ("weights-entry", config.model.weights_entry is not None, "it holds its own"),
        ("precision", config.precision != "highest", "it computes in its own"),
        ("views", config.views != views.NONE, "it can average over views itself"),
        ("hidden-tokens", config.hidden_tokens != "fill", "it is given masked images"),
    ):
        if given:
            raise ValueError(
                f"--{option}: expected only for models of JAX, and {config.model.model} is a NumPy "
                f"function: {why}; leave it out"
            )
    return True


def _name(config: Config, dataset: data.Dataset, identity: dict[str, Any]) -> str:
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


def _dataset_and_model(config: Config, head: int | None) -> tuple[data.Dataset, Model]:
    """The data set and the model; the model's data config prepares the images.

    The model has the outputs that are asked for, else those of the head in the file of weights.
    """
    model = config.model.create()
    given = config.model.num_classes
    outputs = given or head
    if outputs is None and (
        config.data.dataset == "image_list" or config.model.has_fixed_outputs()
    ):
        outputs = model.num_classes
    try:
        dataset = config.data.load(
            model.data_config, num_outputs=outputs, native=config.patch_lives == "native"
        )
    except ValueError as error:
        if given is not None and "outputs" in str(error):
            raise ValueError(f"--num-classes: {error}") from error
        raise
    outputs = outputs or dataset.num_classes
    if outputs != model.num_classes:
        model = config.model.create(num_classes=outputs)
    return dataset, model


def _model_alone(config: Config, head: int | None) -> tuple[data.Dataset, Model]:
    """As ``_dataset_and_model``, where no data set says anything: one blank image."""
    model = config.model.create()
    outputs = config.model.num_classes or head or model.num_classes
    if outputs != model.num_classes:
        model = config.model.create(num_classes=outputs)
    wants = model.data_config
    blank = np.zeros((1, *wants.input_size, wants.channels), np.uint8)
    return data.from_arrays(blank, [0], data_config=wants, num_outputs=outputs), model


def _unreadable(config: Config, dataset: data.Dataset) -> dict[str, str]:
    """Images that are known not to be readable; an error unless they are skipped."""
    broken = dataset.find_unreadable()
    if broken and config.data.on_unreadable == "stop":
        named = some([f"{image_id} ({why})" for image_id, why in broken.items()])
        raise BrokenImagesError(
            f"--data-dir {config.data.data_dir}: expected images that can be decoded, but "
            f"{len(broken)} of {len(dataset) + len(dataset.missing)} cannot: {named}"
        )
    return broken


def _text(path: Path | None) -> str | None:
    return None if path is None else encodable(str(path))
