"""Patches without gradients: random search, by what a model says of masked images and no more.

For models of which only labels and margins are known, such as functions of other frameworks. A
proposal changes the patch that an image has so far, and stays if the masked images that show the
patch are held less by the true label then. *Square* proposals are those of Andriushchenko et al.
(ECCV 2020), as Croce et al. (AAAI 2022) take them for patches: squares of one colour, each channel
all or nothing, that get smaller. *Random* ones draw every pixel anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_images import AttackedImages, WhenSettled
from certmask_jax.attacks.patched_pixels import Placement, cells_of_parts, check_places, shows
from certmask_jax.attacks.table_goals import ANY
from certmask_jax.inference.engine import Indices
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs

Proposals = Literal["square", "random"]

QUERIES_BETWEEN = 10
"""After so many proposals the rule is asked, and ``progress`` is told."""

_FIRST_SHARE = 0.8
_HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries
_MOST_MARGIN = 20.0  # what one masked image counts at most, or a few would outweigh all others


class AskedLabels(Protocol):
    """What is asked: an ``Engine``, or else what says labels of masked images and by how much."""

    @property
    def masked_images(self) -> MaskedImages: ...
    def images_at_once(self) -> int: ...
    def evaluate(self, images: Any, image_of: Indices, columns: Indices) -> Outputs: ...


@dataclasses.dataclass(frozen=True)
class BlackBoxSearch:
    """How a patch is searched for without gradients.

    Attributes:
      proposals: ``"square"`` or ``"random"``.
      queries: proposals at each place.
      masks_a_query: how many masked images a proposal is judged by, at most; the same for all
        proposals of an image at a place.
    """

    proposals: Proposals = "square"
    queries: int = 500
    masks_a_query: int = 16

    def __post_init__(self) -> None:
        if self.proposals not in ("square", "random"):
            raise ValueError(f"proposals: expected square or random, got {self.proposals!r}")
        for name in ("queries", "masks_a_query"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def search_without_gradients(
    engine: AskedLabels,
    answers: Callable[[NDArray[np.uint8]], NDArray[np.int32]],
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    places: Sequence[NDArray[np.int64]],
    *,
    search: BlackBoxSearch,
    allowed: Sequence[int] = (),
    parts: TwoParts | None = None,
    at_once: int | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    when_settled: WhenSettled | None = None,
) -> AttackedImages:
    """Patches that are to make a rule answer wrongly, found by asking the model alone.

    Args:
      engine: the model on the masked images of the rule; one masked image of no mask stands for the
        model alone, or for scores of a rule without any (``asked_scores``).
      answers: the rule: ``uint8[b, h, w, c]`` to ``int32[b]``.
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int32[B]``, true classes.
      places: of each image, ``int64[P, K, 4]``, tried in their order until it is broken.
      search: how.
      allowed: answers that are no error beside the true label, such as ``ALERT``.
      parts: the model, if the masked images of ``engine`` are masked maps of one in two parts.
      at_once: images that are searched at once: one that is settled makes room for the next. As
        many as the engine holds by default, which are the most.
      seed: of all randomness; with the number of an image it decides all that the image gets.
      numbers: of the images; 0 and on by default.
      progress: called with the images that are settled and those that are broken.
      stop: asked after every few proposals; if so, the images that are not settled are left.
      when_settled: called with what came of all so far and the images that have settled since, but
        for those without a place, whose answers are asked for at the end.

    Returns:
      As of ``attack_images``; ``steps`` are proposals and ``targets`` any.

    Raises:
      ValueError: for places that are not those of the images, or not wholly inside them, or no
        image at once.
    """
    if len(places) != len(images):
        raise ValueError(f"places: expected those of {len(images)} images, got {len(places)}")
    check_places((place for some in places for place in some), images.shape[1:3])
    known = list(range(len(images)) if numbers is None else numbers)
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once: expected at least 1, got {at_once}")
    most = engine.images_at_once() if at_once is None else min(at_once, engine.images_at_once())
    states = [
        _State(engine.masked_images.boxes, image, some, search, parts, [seed, number])
        for image, some, number in zip(images, places, known, strict=True)
    ]
    asked = 0
    while active := [n for n, state in enumerate(states) if not state.is_settled][:most]:
        proposed = np.stack([states[n].proposal() for n in active])
        counts = [len(states[n].columns) for n in active]
        said = engine.evaluate(
            proposed,
            np.repeat(np.arange(len(active)), counts),
            np.concatenate([states[n].columns for n in active]),
        )
        held = np.nan_to_num(np.asarray(said.margins, np.float64)).clip(0, _MOST_MARGIN)
        signed = np.where(said.predictions == np.repeat(labels[active], counts), held, -held)
        ends = np.cumsum(counts)
        for n, image, own in zip(active, proposed, np.split(signed, ends[:-1]), strict=True):
            states[n].take(image, float(own.mean()) if len(own) else 0.0)
        asked += 1
        # By its own count: what an image gets is not to depend on when there was room for it.
        due = [n for n in active if states[n].is_due or states[n].steps % QUERIES_BETWEEN == 0]
        if due:
            answered = answers(np.stack([states[n].patched for n in due]))
            for n, answer in zip(due, answered.tolist(), strict=True):
                states[n].judge(answer, answer != labels[n] and answer not in allowed)
            now = [n for n in due if states[n].is_settled]
            if when_settled is not None and now:
                when_settled(_made(states), now)
        if progress is not None and asked % QUERIES_BETWEEN == 0:
            settled = sum(state.is_settled for state in states)
            progress(settled, sum(state.is_broken for state in states))
        if stop is not None and asked % QUERIES_BETWEEN == 0 and stop():
            break
    untried = [n for n, state in enumerate(states) if not state.was_asked]
    if untried:
        for n, answer in zip(untried, answers(images[untried]).tolist(), strict=True):
            states[n].answer = answer
    return _made(states)


def _made(states: Sequence[_State]) -> AttackedImages:
    return AttackedImages(
        np.stack([state.patched for state in states]),
        np.array([state.is_broken for state in states], np.bool_),
        np.array([state.answer for state in states], np.int32),
        np.stack([state.place for state in states]),
        np.full(len(states), ANY, np.int32),
        np.array([state.steps for state in states], np.int64),
        np.array([state.is_settled for state in states], np.bool_),
        np.full(len(states), "leave the true label"),
    )


class _State:
    """The search on one image: the best patch so far at one place after another."""

    def __init__(
        self,
        boxes: NDArray[np.int32],
        image: NDArray[np.uint8],
        places: NDArray[np.int64],
        search: BlackBoxSearch,
        parts: TwoParts | None,
        seeds: list[int],
    ) -> None:
        self._boxes, self._image, self._places, self._search = boxes, image, places, search
        self._parts = parts
        self._random = np.random.default_rng(seeds)
        self._turn, self.steps, self.answer = -1, 0, 0
        self.patched, self.is_settled = image, False
        self.is_broken = self.is_due = self.was_asked = False
        patches = places.shape[1] if len(places) else 1
        self.place: Placement = np.zeros((patches, 4), np.int64)
        self._next_place()

    def _next_place(self) -> None:
        self._turn += 1
        if self._turn >= len(self._places):
            self.is_settled = True
            return
        self.place = np.asarray(self._places[self._turn], np.int64)
        reached = self.place if self._parts is None else cells_of_parts(self.place, self._parts)
        seen = np.flatnonzero(shows(self._boxes, reached))
        count = min(len(seen), self._search.masks_a_query)
        self.columns: NDArray[np.intp] = np.sort(self._random.permutation(seen)[:count])
        self._done, self._best, self.patched = 0, np.inf, self._image

    def proposal(self) -> NDArray[np.uint8]:
        """The next patch that is tried, in the image."""
        made = self.patched.copy()
        for height, width, row, column in self.place.tolist():
            inside = made[row : row + height, column : column + width]
            if self._search.proposals == "random":
                inside[...] = self._random.integers(0, 256, inside.shape)
            elif self._done == 0:  # stripes, which are half of the way already
                inside[...] = 255 * self._random.integers(0, 2, (1, width, inside.shape[2]))
            else:
                side = self._side(height, width)
                top = self._random.integers(height - min(side, height) + 1)
                left = self._random.integers(width - min(side, width) + 1)
                colour = 255 * self._random.integers(0, 2, inside.shape[2])
                inside[top : top + side, left : left + side] = colour
        return made

    def _side(self, height: int, width: int) -> int:
        progress = self._done / self._search.queries
        share = _FIRST_SHARE / 2 ** sum(progress >= at for at in _HALVED_AT)
        return max(1, round((share * height * width) ** 0.5))

    def take(self, patched: NDArray[np.uint8], score: float) -> None:
        """Keeps a proposal that is no worse than the best one."""
        self._done += 1
        self.steps += 1
        if score <= self._best:
            self._best, self.patched = score, patched
        self.is_due = self._done >= self._search.queries

    def judge(self, answer: int, is_wrong: bool) -> None:
        """Takes what the rule answers to the best patch so far."""
        self.answer, self.was_asked = answer, True
        if is_wrong:
            self.is_broken = self.is_settled = True
        elif self.is_due:
            last = self.patched
            self._next_place()
            if self.is_settled:
                self.patched = last
            self.is_due = False
