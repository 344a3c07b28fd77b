"""Where a model without a defense is attacked: places, the most promising first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.first_order import Pairs
from certmask_jax.attacks.patch_places import best_apart, places_by_gradient, random_places
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.tried_losses import losses_tried
from certmask_jax.attacks.tried_places import places_to_try
from certmask_jax.attacks.wanted_labels import ANY
from certmask_jax.masks.threats import Threat

Where = Literal["weakest", "gradient", "random"]
"""Where patches are put: where a patch that is tried does most or a table says that it hurts, where
pixels gain most to first order, or anywhere that is allowed."""


def places_of_model(
    asked: Attacked,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    randoms: Sequence[np.random.Generator],
    *,
    threat: Threat,
    search: PatchSearch,
    locations: int,
    where: Where,
    given: NDArray[np.int64] | None,
    target: int | None,
    stop: Callable[[], bool] | None,
) -> list[NDArray[np.int64]]:
    """Where each of B images is attacked: ``int64[P, K, 4]``, P at most ``locations`` of the best.

    Args:
      asked: the model itself.
      images, labels: ``uint8[B, h, w, c]`` and ``int32[B]``.
      randoms: B generators.
      threat, search, locations, where, given, target, stop: as of ``promising_goals``.
    """
    if given is not None and len(given) <= locations:
        return [given for _ in images]
    if given is None and (where == "random" or (where == "gradient" and len(threat) > 1)):
        return [random_places(threat, locations, random) for random in randoms]
    aims = np.full(len(images), ANY if target is None else target, np.int32)
    wanted = labels if target is None else aims
    pairs = Pairs(asked, search, images, labels, aims, wanted[:, None], stop)
    ways = pairs.ways()
    if given is None and where == "gradient":
        return [places_by_gradient(of_image, threat, locations) for of_image in ways.gains]
    if given is None:
        tried = places_to_try(threat, randoms)
    else:
        tried = np.broadcast_to(given, (len(images), *given.shape))
    losses = losses_tried(pairs, ways.ends, tried, showing=asked.showing())
    if given is not None:
        return [given[np.argsort(own, kind="stable")[:locations]] for own in losses]
    return [some[best_apart(some, own, locations)] for some, own in zip(tried, losses, strict=True)]
