"""Which kinds of model functions there are: the one place that tells one from another.

Any model function may be called with parameters and images. What else may be asked of one, its kind
says, and no caller looks at its type. Another kind is one more case of ``kind_of``, and an engine
in ``engine_choice``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from certmask_jax.inference.bounded_model import BoundedModel
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.inference.viewed_model import View, ViewedModel


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """What may be asked of a model function beside calling it; a plain one has none of it.

    The model function itself stands in what it is, so that what is compiled for it is found again.

    Attributes:
      name: what errors call such a model.
      parts: a model in two parts, whose masks are those of its map of features.
      numpy_function: a function that JAX cannot trace.
      seen_tokens: a ViT that is given its masks, and looks at the tokens that these leave.
      bounded: a model whose masked images are boxes of all that may be hidden.
      views: what it averages its logits over; none for one that sees each image once, as it is.
    """

    name: str = "a function of JAX"
    parts: TwoParts | None = None
    numpy_function: NumpyFunction | None = None
    seen_tokens: SeenTokens | None = None
    bounded: BoundedModel | None = None
    views: tuple[View, ...] = ()

    @property
    def is_traced(self) -> bool:
        """Whether JAX traces it: it has gradients, and can be part of a compiled program."""
        return self.numpy_function is None

    @property
    def hides_pixels(self) -> bool:
        """Whether its masks hide pixels of images, and not cells of a map."""
        return self.parts is None

    @property
    def dropping(self) -> TokenDropping | None:
        """How it drops the tokens that a mask hides; None where hidden pixels are filled."""
        return None if self.seen_tokens is None else self.seen_tokens.dropping

    def image_size(self, masked_size: tuple[int, int]) -> tuple[int, int]:
        """``(height, width)`` of its images, by that of its masks, which may be those of a map."""
        return masked_size if self.parts is None else self.parts.image_size

    def masked_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(height, width)`` of its masks, by that of its images: pixels, or cells of a map."""
        return image_size if self.parts is None else self.parts.grid

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able: how it is cut, for the fingerprint of what is done with it."""
        bounded = {} if self.bounded is None else {"hidden_pixels": "bounded"}
        return bounded if self.parts is None else {"two_parts": self.parts.facts}


_PLAIN = ModelKind()


def kind_of(apply_fn: Any) -> ModelKind:
    """The kind of a model function, by its type. It takes no time, so nobody needs to keep it.

    Raises:
      ValueError: for what is no function, such as a ``Model``, which has one.
    """
    match apply_fn:
        case TwoParts():
            return ModelKind("a model in two parts", parts=apply_fn)
        case NumpyFunction():
            return ModelKind("a NumPy function", numpy_function=apply_fn)
        case SeenTokens():
            return ModelKind("a model that drops hidden tokens", seen_tokens=apply_fn)
        case BoundedModel():
            return ModelKind("a model of bounds", bounded=apply_fn)
        case ViewedModel():
            return ModelKind("a model with views", views=apply_fn.views)
        case _ if callable(apply_fn):
            return _PLAIN
        case _:
            has_one = callable(getattr(apply_fn, "apply_fn", None))
            raise ValueError(
                f"apply_fn: expected a function, got a {type(apply_fn).__name__}"
                f"{'; give its apply_fn' if has_one else ''}"
            )
