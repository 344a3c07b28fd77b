"""Places at which a patch is tried before a search: one pass each, and those stay that do most.

The pixels of the patch are those that the gradient asks for (``first_order``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_model import Showing
from certmask_jax.attacks.first_order import Pairs
from certmask_jax.attacks.patch_places import best_apart, places_everywhere, random_places
from certmask_jax.attacks.patched_pixels import Placement
from certmask_jax.attacks.tried_losses import losses_tried
from certmask_jax.masks.threats import Threat

MOST_CHOSEN = 16
"""Places that are looked at, of an image with a target, beside those of a table."""

_MOST_WEAK = 32  # places of a table that are looked at, of an image
_TRIED = 64  # places at which a patch is tried, of an image or of a target
_MOST_ON_GRID = 7  # shapes: of more not even three by three places of each would be tried


def places_to_try(threat: Threat, randoms: Sequence[np.random.Generator]) -> NDArray[np.int64]:
    """Places all over the image for each of R generators: ``int64[R, P, K, 4]``.

    A grid, the same for all; of several patches, or of more shapes than a grid has room for, random
    places.
    """
    if len(threat) > 1 or len(threat.shapes) > _MOST_ON_GRID:
        return np.stack([random_places(threat, _TRIED, random) for random in randoms])
    grid = places_everywhere(threat, most=_TRIED)
    return np.broadcast_to(grid, (len(randoms), *grid.shape))


def best_tried(
    pairs: Pairs,
    threat: Threat,
    weak: NDArray[np.int64],
    randoms: Sequence[np.random.Generator],
    *,
    showing: Showing,
) -> list[tuple[list[Placement], list[float]]]:
    """Places of each pair that are worth a look, and the objective with a patch tried there.

    Args:
      pairs: R images with a goal each.
      threat: where patches may be.
      weak: ``int64[N, K, 4]``, where the table says that a patch hurts; some of these stay,
        whatever a patch does there.
      randoms: R generators, one for each pair.
      showing: which masked images show a placement.

    Returns:
      R lists of as many places as losses: the best of those everywhere, none near another, and then
      some of ``weak``.
    """
    ends = pairs.ways().ends
    everywhere = places_to_try(threat, randoms)
    few = [weak[random.permutation(len(weak))[:_MOST_WEAK]] for random in randoms]
    places = np.concatenate([everywhere, np.stack(few)], axis=1)
    losses = losses_tried(pairs, ends, places, showing=showing)
    count = everywhere.shape[1]
    made = []
    for there, lost in zip(places, losses, strict=True):
        order = best_apart(there[:count], lost[:count], MOST_CHOSEN)
        chosen = [*order, *range(count, len(there))]
        made.append(([there[n] for n in chosen], [float(lost[n]) for n in chosen]))
    return made
