"""Which engine runs a model: in two parts, by local logits, seen tokens, from NumPy, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from certmask_jax.inference.bounded_model import check_bounded
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.dropped_tokens import dropped_forward
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.field_tables import local_forward
from certmask_jax.inference.host_batches import host_forward
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import ModelKind, kind_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.stem_and_head import parts_forward
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.inference.views import Views, with_views
from certmask_jax.inference.whole_images import masked_forward
from certmask_jax.masks.distinct_unions import MaskedImages


def engine_for(
    apply_fn: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    masked_images: MaskedImages,
    *,
    preprocessing: Preprocessing,
    local: LocalLogits | None = None,
    dropping: TokenDropping | None = None,
    views: Views | None = None,
    chunk: int | Sequence[int] | None = None,
    mesh: Mesh | None = None,
    asked_bit_by_bit: int = 0,
) -> Engine:
    """The engine of a model on ``masked_images``.

    Args:
      apply_fn, params, image_shape, preprocessing, chunk, mesh: see ``masked_forward``; or a
        ``NumpyFunction``, whose ``params`` are ``()``, see ``host_forward``; or ``SeenTokens``,
        which is ``dropping``; or a ``TwoParts``, whose masks are those of its map, see
        ``parts_forward``.
      masked_images: V masked images, or maps.
      local: the model's local logits, if it has any and they are to be used: ``local_forward``.
      dropping: how the model drops tokens, if it is to be given those alone that are seen:
        ``dropped_forward``.
      views: what the model averages its logits over, see ``with_views``.
      asked_bit_by_bit: masked images of a whole run with early exit, see ``chunk_sizes.ladder``; of
        use for whole images alone.

    Raises:
      ValueError: see ``masked_forward``, ``host_forward``, ``local_forward``, ``dropped_forward``,
        ``parts_forward`` and ``with_views``; for two of local logits, dropped tokens, views and two
        parts together.
    """
    kind = kind_of(apply_fn)
    dropping = kind.dropping or dropping
    if dropping is None:
        apply_fn = with_views(apply_fn, views)
        kind = kind_of(apply_fn)
    _check_together(kind, local, dropping)
    if kind.bounded is not None:
        check_bounded(preprocessing)
    how: dict[str, Any] = {"preprocessing": preprocessing, "mesh": mesh}
    largest = chunk if chunk is None or isinstance(chunk, int) else chunk[-1]
    given = params, image_shape, masked_images
    if dropping is not None:
        with_views(SeenTokens(dropping), views)  # its error, where there are any
        return dropped_forward(dropping, *given, chunk=chunk, **how)
    if kind.parts is not None:
        return parts_forward(kind.parts, *given, chunk=chunk, **how)
    if kind.numpy_function is not None:
        return host_forward(kind.numpy_function, *given[1:], chunk=largest, **how)
    if local is not None:
        return local_forward(local, *given, chunk=largest, **how)
    return masked_forward(
        apply_fn,
        params,
        image_shape,
        masked_images=masked_images,
        chunk=chunk,
        asked_bit_by_bit=asked_bit_by_bit,
        **how,
    )


def _check_together(
    kind: ModelKind, local: LocalLogits | None, dropping: TokenDropping | None
) -> None:
    """``ValueError`` for two of local logits, dropped tokens, views, two parts and functions."""
    is_own = kind.parts is not None or kind.numpy_function is not None  # with an engine for it
    for option, is_given, beside, is_there, why in (
        ("dropping", dropping, "local logits", local, "; leave it out"),
        ("dropping", dropping, kind.name, is_own, "; leave it out"),
        (
            "dropping",
            dropping,
            "views",
            kind.views,
            ", as a view moves what a mask hides to other tokens; leave it out, and hidden pixels "
            "are filled",
        ),
        ("local", local, kind.name, is_own, ", which has no local logits; leave it out"),
        (
            "local",
            local,
            "views",
            kind.views,
            ", as a mean over views is no mean of local logits of one image; leave local out, and "
            "masked images are evaluated whole",
        ),
    ):
        if is_given and is_there:
            raise ValueError(f"{option}: expected none beside {beside}{why}")
