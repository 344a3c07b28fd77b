"""What is measured: a model with its images and defenses, from a job or of random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from certmask_jax import data, mask_sets
from certmask_jax._text import counted
from certmask_jax.defenses import Defense, double_masking
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.whole_images import WholeImages, masked_forward
from certmask_jax.models import ApplyFn
from certmask_jax.programs import (
    certification_config,
    certification_options,
    chosen_model,
    page_options,
)
from certmask_jax.programs.certification_job import opened
from certmask_jax.programs.command_line import check_not_typed

_OTHERWISE = (
    *("list", "from_tables", "dry_run", "out", "max_minutes", "margin_guard", "shard", "chunk"),
    *("decide", "cpu_devices", "compilation_cache", "distributed", "format", "hidden_tokens"),
    *("page", "on_unreadable", "keep_evidence", *page_options.DESTINATIONS),
)
"""Options of certify that say nothing about what is measured."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """A test set of seeded random images, made when they are read: each by its number alone."""

    count: int
    shape: tuple[int, int, int]
    classes: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> data.Batch:
        numbers = range(start, stop)
        of_each = [np.random.default_rng(number) for number in numbers]
        images = [rng.integers(0, 256, self.shape, dtype=np.uint8) for rng in of_each]
        labels = [rng.integers(0, self.classes, dtype=np.int32) for rng in of_each]
        return data.Batch(np.stack(images), np.array(labels), tuple(map(str, numbers)))


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model, its images and its defenses.

    Attributes:
      name: what it is, to print.
      image_shape: ``(h, w, c)`` of the images.
    """

    name: str
    apply_fn: ApplyFn
    params: Any
    preprocessing: Preprocessing
    test_set: Any  # evaluation.TestSet
    image_shape: tuple[int, int, int]
    num_classes: int
    defenses: Sequence[Defense]
    local: LocalLogits | None = None

    def forward(self, **options: Any) -> WholeImages:
        """The masked forward pass, with boxes enough for all defenses."""
        boxes = max(d.masked_images.boxes.shape[1] for d in self.defenses)
        return masked_forward(
            self.apply_fn,
            self.params,
            self.image_shape,
            preprocessing=self.preprocessing,
            boxes_per_mask=boxes,
            **options,
        ).for_blocks(None)


def of_noise(
    name: str, precision: str, images: int, *, only_shapes: bool = False, **options: Any
) -> Subject:
    """A model by name with random weights on random images: speed depends on neither.

    With ``only_shapes`` its parameters are ``jax.ShapeDtypeStruct``, to be compiled with.
    ``options`` are keywords of ``models.create``.
    """
    model = chosen_model.named_model(name, **options)
    config = model.data_config
    size = config.input_size
    grid = mask_sets.budgeted_grid(size, max(1, round(0.16 * size[0])), masks_per_axis=6)
    shape = (*size, config.channels)
    return Subject(
        f"{name}, random weights and images",
        model.apply_fn,
        model.param_shapes() if only_shapes else model.init(jax.random.key(0)),
        Preprocessing(config.mean, config.std, precision=precision),  # type: ignore[arg-type]
        Noise(images, shape, model.num_classes),
        shape,
        model.num_classes,
        [double_masking(grid)],
        model.local,
    )


def check_job(options: Sequence[str]) -> certification_config.Config:
    """The config of a job; ``ValueError`` for what is none of a run with a model."""
    arguments = certification_options.parser().parse_args(options)
    check_not_typed(arguments, _OTHERWISE, "in a job that is measured")
    certification_config.check_modes(arguments)
    return certification_config.read_config(arguments)


def of_job(options: Sequence[str]) -> Subject:
    """What ``certify`` would certify with these options."""
    config = check_job(options)
    job = opened(config, "")
    return Subject(
        f"{job.model.name} on {counted(len(job.dataset), 'image')} of {config.data.dataset}",
        job.model.apply_fn,
        job.params,
        job.preprocessing,
        job.dataset,
        job.dataset.read(0, 1).images.shape[1:],
        job.model.num_classes,
        job.defenses,
        job.local,
    )
