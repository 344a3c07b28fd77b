"""A model on every masked image: the whole prediction table, in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.inference.claimed_fields import check_claims
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.views import Views
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import PredictionTable


def predict(
    apply_fn: ApplyFn,
    params: Any,
    images: NDArray[np.uint8],
    masks: MaskedImages,
    *,
    preprocessing: Preprocessing | None = None,
    local: LocalLogits | None = None,
    dropping: TokenDropping | None = None,
    views: Views | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> PredictionTable:
    """The whole prediction table of a model: every masked image of every image.

    Args:
      apply_fn, params: any model, see ``ApplyFn``.
      images: ``uint8[T, h, w, c]`` of the size that ``masks`` were built for.
      masks: V masked images, as ``defense.masked_images``.
      preprocessing: by default pixels scaled to [0, 1], masked ones black.
      local: the model's local logits, if it has any (``Model.local``): all masked images from
        their distinct fields, see ``local_forward``.
      dropping: the tokens that a mask hides are left out of the model's sequence, and not filled
        (``Model.dropping``, of a ViT): other logits, for less. See ``dropped_forward``.
      views: average the logits over views of each masked image, such as ``"mirror"``, which then
        takes as many passes: see ``with_views``.
      chunk, mesh: see ``masked_forward``.
      progress: called with the number of masked images finished since the last call.

    Raises:
      ValueError: for images of the wrong shape or dtype; for what is no masked images, such as a
        defense itself; for views that there are not; for two of views, ``local`` and
        ``dropping``; for ``local``, or a model in two parts, whose cells see more than they claim
        (``check_claims``).

    Warns:
      RuntimeWarning: naming images whose logits are NaN or infinite; they are never certified.
    """
    preprocessing = Preprocessing() if preprocessing is None else preprocessing
    if not hasattr(masks, "image_size"):
        raise ValueError(
            "masks: expected masked images, as defense.masked_images of one that masks images, got "
            f"{type(masks).__name__}"
        )
    images = np.asarray(images)
    check_images(images, kind_of(apply_fn).image_size(masks.image_size))
    engine = engine_for(
        apply_fn,
        params,
        images.shape[1:],
        masks,
        preprocessing=preprocessing,
        local=local,
        dropping=dropping,
        views=views,
        chunk=chunk,
        mesh=mesh,
    )
    check_claims(apply_fn, local, params, images.shape[3], preprocessing=preprocessing)
    told = None if progress is None else (lambda count, slots: progress(count))
    engine = engine.for_blocks(max(1, len(images)))
    step = engine.images_at_once()
    blocks = [
        engine.table(images[start : start + step], told) for start in range(0, len(images), step)
    ]
    outputs = Outputs(*(np.concatenate(column) for column in zip(*blocks, strict=True)))
    table = PredictionTable.of(outputs, masks, engine.num_classes)
    broken = table.non_finite_images()
    if len(broken):
        warnings.warn(
            f"the model gives NaN or infinite logits for {counted(len(broken), 'image')}: "
            f"{', '.join(map(str, broken[:10]))}{', ...' if len(broken) > 10 else ''}; they are "
            "never certified",
            RuntimeWarning,
            stacklevel=2,
        )
    return table
