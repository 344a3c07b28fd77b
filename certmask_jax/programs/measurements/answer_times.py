"""How long answers take, one image at a time, of several classifiers in turn: A B A B ...

Milliseconds are those of one machine and its load; a ratio of two, image by image in one run, is
what can be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import Defense
from certmask_jax.inference.defended_model import defended
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.views import passes_each
from certmask_jax.masks.distinct_unions import unmasked

Answer = Callable[[NDArray[np.uint8]], int]
"""One image ``uint8[1, h, w, c]`` -> the forward passes that its answer took."""

Key = TypeVar("Key", bound=Hashable)


def measured(
    answers: Mapping[Key, Answer],
    images: NDArray[np.uint8],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, dict[str, float]]:
    """Times each on every image, in turn, after one image that is not counted.

    Args:
      answers: what is timed; the first is what the others are compared with.
      images: ``uint8[T, h, w, c]``, T at least 1.
      clock: in seconds.

    Returns:
      Of each: ``milliseconds`` (the median), ``mean``, ``least`` and ``most``; mean ``passes`` of
      an image; and ``over_first``, the median over images of its time over that of the first.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in answers}
    passes: dict[Key, list[int]] = {key: [] for key in answers}
    for number in range(-1, len(images)):
        image = images[max(0, number) : max(0, number) + 1]
        for key, answer in answers.items():
            started = clock()
            taken = answer(image)
            spent = clock() - started
            if number >= 0:
                seconds[key].append(spent)
                passes[key].append(taken)
    first = next(iter(seconds.values()))
    return {
        key: {
            "milliseconds": 1e3 * statistics.median(of),
            "mean": 1e3 * statistics.mean(of),
            "least": 1e3 * min(of),
            "most": 1e3 * max(of),
            "passes": statistics.mean(passes[key]),
            "over_first": statistics.median(a / b for a, b in zip(of, first, strict=True)),
        }
        for key, of in seconds.items()
    }


def guard(apply_fn: Any, params: Any, defense: Defense, channels: int, **how: Any) -> Answer:
    """The guarded classifier, compiled; ``how`` as ``defended`` has it."""
    guarded = defended(apply_fn, params, defense, channels=channels, **how)
    guarded.engine.warm_up()
    return lambda image: int(guarded(image).masked_images.sum()) * guarded.passes_each


def plain(apply_fn: Any, params: Any, image_shape: tuple[int, int, int], **how: Any) -> Answer:
    """The model without a defense on the image as it is, compiled; ``how`` as ``engine_for``."""
    height, width, _ = image_shape
    engine = engine_for(apply_fn, params, image_shape, unmasked((height, width)), **how)
    engine = engine.for_blocks(None).for_few(1)
    engine.warm_up()
    passes = passes_each(engine.facts())

    def answer(image: NDArray[np.uint8]) -> int:
        np.asarray(engine.table(image).predictions)
        return passes

    return answer
