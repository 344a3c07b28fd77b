"""Views: a model that averages its logits over an image and fixed functions of it.

The classifier x -> mean over views of logits(view(x)) is one like any other: masks, tables, rules
and proofs know nothing of it (soundness, 11). A view is a function of one whole masked image, made
after masking and normalisation, so it sees nothing that a mask hides. It must be fixed: nothing in
it may be drawn at random, and what it fills in is a constant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.viewed_model import View, ViewedModel

NONE = "none"
"""The image alone: the model as it is."""

ABOUT = {
    NONE: "the image alone",
    "mirror": "the image and its horizontal mirror image",
    "shift": "the image, and moved by a pixel up, down, left and right",
    "diagonal": "the image, and moved by a pixel down and right",
}
"""The lists of views that have a name, and what is in them."""

Views = str | Sequence[View | tuple[str, Callable[[Array], Array]]]
"""A name of ``ABOUT``, several joined by ``+`` (every view of every view), or one's own."""


def with_views(apply_fn: ApplyFn, views: Views | None) -> ApplyFn:
    """The model that averages its logits over views of each image.

    A batch of B images is one batch of B times as many images as there are views for ``apply_fn``,
    so each masked image takes that many forward passes.

    Args:
      apply_fn: any model, ``(params, float32[B, h, w, c]) -> logits [B, K]``.
      views: ``"mirror"``, ``"shift"``, ``"diagonal"``; several joined by ``+``, such as
        ``"mirror+shift"``: every view of the first, seen by every view of the second; or a tuple of
        ``(name, function)``, each function fixed, of one normalised image ``[h, w, c]``, and of the
        same shape. None or ``"none"``: the model as it is.

    Raises:
      ValueError: for an unknown name, one view twice, or a model that has views already or is in
        two parts.
    """
    chosen = read(views)
    if len(chosen) == 1 and chosen[0] == _ITSELF:
        return apply_fn
    kind = kind_of(apply_fn)
    for is_it, why in (
        (kind.numpy_function is not None, "which can average over views itself"),
        (kind.parts is not None, "as a view of an image has its patch in other cells"),
        (kind.bounded is not None, "as bounds of a mean over views are not known"),
        (kind.dropping is not None, "as a view moves what a mask hides to other tokens"),
    ):
        if is_it:
            raise ValueError(
                f"views: expected none for {kind.name}, {why}, got "
                f"{', '.join(name for name, _ in chosen)}"
            )
    if kind.views:
        raise ValueError(
            f"views: expected a model without views, got one with {', '.join(names_of(apply_fn))}; "
            "give them once, joined by +"
        )
    return ViewedModel(apply_fn, chosen)


def read(views: Views | None) -> tuple[View, ...]:
    """The list of views that is meant; the image alone for None.

    Raises:
      ValueError: as ``with_views``.
    """
    if views is None:
        return (_ITSELF,)
    if isinstance(views, str):
        return _named(views)
    chosen = tuple(_as_view(one) for one in views)
    _check_names(chosen)
    return chosen


def views_of(apply_fn: ApplyFn) -> tuple[View, ...]:
    """The views of a model; none for one that looks at each image once, as it is."""
    return kind_of(apply_fn).views


def names_of(apply_fn: ApplyFn) -> list[str]:
    """The names of a model's views, as facts of a run hold them (``views``)."""
    return [view.name for view in views_of(apply_fn)]


def passes_each(facts: Mapping[str, Any]) -> int:
    """Forward passes that one masked image takes, by the facts of an engine or of a run."""
    return len(facts.get("views") or ()) or 1


def check_views(apply_fn: ApplyFn, image_shape: tuple[int, int, int]) -> None:
    """``ValueError`` for a view that does not keep the shape ``(h, w, c)`` of what a model sees."""
    image = jax.ShapeDtypeStruct(image_shape, np.float32)
    for view in views_of(apply_fn):
        try:
            seen: Any = jax.eval_shape(view.function, image)
        except Exception as error:  # the function's own, of any kind
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"views: expected {view.name!r} to take one image float32{list(image_shape)}, but "
                f"it raised {type(error).__name__}: {why}"
            ) from error
        shape = getattr(seen, "shape", None)
        if shape != image_shape:
            got = type(seen).__name__ if shape is None else list(shape)
            raise ValueError(
                f"views: expected {view.name!r} to keep the shape {list(image_shape)} of an image, "
                f"got {got}"
            )


def _itself(image: Array) -> Array:
    return image


def _mirror(image: Array) -> Array:
    return image[:, ::-1]


def _moved(image: Array, *, down: int, right: int) -> Array:
    """What moves in from outside is 0: the model's mean colour, whatever masks are filled with."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((abs(down), abs(down)), (abs(right), abs(right)), (0, 0)))
    top, left = abs(down) - down, abs(right) - right
    return padded[top : top + height, left : left + width]


def _move(name: str, *, down: int = 0, right: int = 0) -> View:
    return View(name, functools.partial(_moved, down=down, right=right))


_ITSELF = View("itself", _itself)
_LISTS = {
    NONE: (_ITSELF,),
    "mirror": (_ITSELF, View("mirror", _mirror)),
    "shift": (
        _ITSELF,
        _move("up", down=-1),
        _move("down", down=1),
        _move("left", right=-1),
        _move("right", right=1),
    ),
    "diagonal": (_ITSELF, _move("down-right", down=1, right=1)),
}


@functools.lru_cache(maxsize=64)  # equal ones are the same functions, so that JAX compiles once
def _named(text: str) -> tuple[View, ...]:
    views: tuple[View, ...] = (_ITSELF,)
    for name in text.split("+"):
        if name not in _LISTS:
            known = list(_LISTS)
            raise ValueError(
                f"views: expected {', '.join(known[:-1])} or {known[-1]}, or several joined by + "
                f"(mirror+shift), got {text!r}"
            )
        views = tuple(_then(first, second) for first in views for second in _LISTS[name])
    _check_names(views)
    return views


def _then(first: View, second: View) -> View:
    """The second view of what the first one sees."""
    if second is _ITSELF:
        return first
    if first is _ITSELF:
        return second
    return View(f"{first.name}+{second.name}", lambda image: second.function(first.function(image)))


def _as_view(one: Any) -> View:
    view = View(*one) if isinstance(one, tuple) and len(one) == 2 else None
    if view is None or not isinstance(view.name, str) or not view.name or not callable(view[1]):
        raise ValueError(
            f"views: expected a name, or a tuple of (name, function of an image), got {one!r} in it"
        )
    return view


def _check_names(views: tuple[View, ...]) -> None:
    names = [view.name for view in views]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        got = "none" if twice is None else f"{twice!r} twice"
        raise ValueError(f"views: expected at least 1 view, and each name once, got {got}")
