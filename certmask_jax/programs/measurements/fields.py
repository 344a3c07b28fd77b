"""What distinct fields save of a model with local logits, against whole masked images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from certmask_jax.inference.field_tables import local_forward
from certmask_jax.programs.measurements import timing
from certmask_jax.programs.measurements.subjects import Subject, of_noise

_MODEL = "bagnet17"
_WHOLE_A_DEVICE = 16  # masked images of one round


def measure(subject: Subject, repeat: int) -> dict[str, Any]:
    """All masked images of an image a device by their fields, in turn with some of them whole.

    Of BagNet-17 with random weights if the subject's model has no local logits.
    """
    if subject.local is None:
        subject = of_noise(_MODEL, subject.preprocessing.precision, 16)
    assert subject.local is not None
    masks = subject.defenses[0].masked_images
    whole = subject.forward(masked_images=masks)
    by_fields = local_forward(
        subject.local,
        subject.params,
        subject.image_shape,
        masks,
        preprocessing=subject.preprocessing,
        mesh=whole.mesh,
    )
    devices = whole.mesh.size
    whole = dataclasses.replace(whole, chunk_sizes=(_WHOLE_A_DEVICE * devices,))
    images = subject.test_set.read(0, devices).images
    rng = np.random.default_rng(0)
    image_of = np.arange(whole.chunk) % len(images)
    mask_of = rng.integers(0, len(masks), whole.chunk)

    def by_field() -> None:
        by_fields.table(images)

    def by_image() -> None:
        whole.evaluate(images, image_of, mask_of)

    seconds = timing.in_turn({"fields": by_field, "whole": by_image}, repeat)
    ours = [np.asarray(a)[image_of, mask_of] for a in by_fields.table(images)]
    theirs = [np.asarray(a) for a in whole.evaluate(images, image_of, mask_of)]
    fields = [len(images) * len(masks) / s for s in seconds["fields"]]
    others = [whole.chunk / s for s in seconds["whole"]]
    return {
        "subject": subject.name,
        "masked_images": len(masks),
        "fields": len(by_fields.fields),
        "as_many_as_in_whole_images": by_fields.fields.whole_images,
        "by_fields_per_second": timing.spread(fields),
        "whole_per_second": timing.spread(others),
        "by_fields_over_whole": timing.ratio(fields, others),
        "compared": whole.chunk,
        "label_flips": int((ours[0] != theirs[0]).sum()),
        "largest_margin_difference": float(np.abs(ours[1] - theirs[1]).max()),
    }
