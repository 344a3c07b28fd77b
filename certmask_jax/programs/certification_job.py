"""From a config to all that a certification needs, opened and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax import models, weights
from certmask_jax._text import some
from certmask_jax.defenses import Defense
from certmask_jax.inference import views
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.models.output_choice import restricted, viewed
from certmask_jax.programs import (
    bounds_options,
    evidence_entries,
    parts_options,
)
from certmask_jax.programs.certification_config import Config, read_fill
from certmask_jax.programs.command_line import as_options
from certmask_jax.programs.evidence_job import EvidenceJob, opened_evidence
from certmask_jax.programs.job_facts import identity_of, name_of, provenance_of
from certmask_jax.programs.job_inputs import (
    dataset_and_model,
    dropping_of,
    is_function,
    model_alone,
    unreadable_images,
)
from certmask_jax.programs.patched_images import PatchedImages
from certmask_jax.programs.program import LISTED
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


def opened(config: Config, command: str, *, with_data: bool = True, evidence: bool = False) -> Job:
    """Opens everything; ``ValueError`` or ``OSError`` for what is not there or does not fit.

    ``with_data=False`` opens no data set, for what is about the classifier alone: the job's is one
    blank image, and what it says of data and class names means nothing. Without ``evidence``
    defenses on evidence are refused.
    """
    config = dataclasses.replace(config, model=config.model.with_card())
    where = config.model.weights or models.default_weights(config.model.model)
    holds_its_own = is_function(config)
    if where is None and not holds_its_own:
        name = config.model.create().name
        raise ValueError(
            f"--weights: expected a file for model {name!r}; only {models.DEFAULT} ships with "
            "weights"
        )
    file = None if where is None else config.model.read(where)
    opens = dataset_and_model if with_data else model_alone
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
        given = some([spec for spec in specs if evidence_entries.is_on_evidence(spec)])
        raise ValueError(
            f"--defense: expected defenses that mask images, got {given} on evidence, which "
            f"certify and attack alone take; choose others ({LISTED} names them)"
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
    model = bounds_options.bounded(config, model, params, defenses, others=on_evidence is not None)
    if on_evidence is not None:
        on_evidence = dataclasses.replace(on_evidence, apply_fn=model.apply_fn, dropping=dropping)
    unreadable = unreadable_images(config, dataset)
    resized = None if dataset.image_size == input_size else input_size
    uses_fields = model.local is not None and not config.whole_images and resized is None
    test_set: TestSet = dataset
    if config.patched is not None:
        if len(in_pixels) != 1 or len(in_pixels[0].shapes) != 1:
            raise ValueError(
                "--patched: expected one --patch of one size, which the patches on the images "
                f"have, got {'; '.join(map(str, in_pixels))}"
            )
        test_set = PatchedImages(dataset, in_pixels[0].shapes[0], config.patched)
    identity = identity_of(
        config,
        dataset,
        model,
        params,
        specs=specs,
        entry=entry,
        windows=None if parts is None else attacks,
        uses_fields=uses_fields,
        dropping=dropping,
    )
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
    bounds_options.check_images(model, preprocessing)
    return Job(
        dataset=test_set,
        model=model,
        params=params,
        preprocessing=preprocessing,
        local=model.local if uses_fields else None,
        defenses=defenses,
        identity=identity,
        provenance=provenance_of(
            config, dataset, identity, file, threats=in_pixels, command=command
        ),
        name=name_of(config, dataset, identity),
        unreadable=unreadable,
        dropping=dropping,
        notes=(*dataset.notes, *weights_notes, *views_notes, *without_a_view(defenses)),
        evidence=on_evidence,
        attacks=tuple(in_pixels),
        without_effect=without_effect,
    )
