"""Defenses on evidence as a search sees them: on local logits, and on bands of an image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_model import AskedModel, Attacked, Seen
from certmask_jax.attacks.followed_slopes import Followed
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement, cells_reached
from certmask_jax.attacks.remembered_tables import RememberedTables
from certmask_jax.attacks.rule_scores import strongest_evidence
from certmask_jax.attacks.search_objectives import LabelsWanted, LocalEvidenceWanted, Objective
from certmask_jax.defenses.band_defense import BandDefense, DerandomizedSmoothing
from certmask_jax.defenses.defense import Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import EvidenceOutputs, in_batches, results_program
from certmask_jax.inference.evidence_sources import BandSource, LocalSource, Source
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.distinct_unions import MaskedImages

_BANDS_AT_ONCE = 64
_SURPLUS_OF_SOFTMAX = 3.0  # in logits: what a softmax of 0.95 takes
_LOUD = 30.0  # logits by which a label of a band stands above the others, if it is to be said


class _OnEvidence(Attacked):
    """A defense on evidence: the rule is asked where the evidence is made."""

    def __init__(self, defense: EvidenceDefense, source: Source, model: AskedModel) -> None:
        super().__init__(model)
        self.may_alert = defense.guarantee == Guarantee.DETECTION
        self._at_once = model.mesh.size * (1 if isinstance(source, BandSource) else 8)
        self._program = results_program((source,), model.preprocessing, (defense,), model.mesh)

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """What the defense answers, by the program that a run has."""
        return np.asarray(self.results(images, np.zeros(len(images), np.int32)).answers[:, 0])

    @reproducible()
    def results(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        *,
        at_once: int | None = None,
    ) -> EvidenceOutputs:
        """Answers, verdicts, and what the model says of the images, as NumPy arrays.

        Args:
          images, labels: ``uint8[B, h, w, c]`` and ``int32[B]``.
          at_once: images of a program, a multiple of the devices; its own number by default.
        """
        if not len(images):
            images, labels = np.zeros((1, *images.shape[1:]), np.uint8), np.zeros(1, np.int32)
            none: EvidenceOutputs = jax.tree.map(lambda a: a[:0], self.results(images, labels))
            return none
        size = self._at_once if at_once is None else at_once
        return in_batches(self._program, self.params, images, labels, size)


class OnLocalLogits(_OnEvidence):
    """A defense on the local logits of a model.

    Attributes:
      rule: that defense.
    """

    def __init__(self, defense: LocalDefense, local: LocalLogits, model: AskedModel) -> None:
        super().__init__(defense, LocalSource(local), model)
        self.defense, self.rule, self._local = defense, defense, local
        self.boxes = np.zeros((1, 1, 4), np.int32)

    @property
    def followed(self) -> Followed:
        """The local logits."""
        return Followed(self._apply_fn, self._preprocessing, self._local)

    def objective(self, search: PatchSearch) -> Objective:
        """The scores of the rule."""
        del search
        return LocalEvidenceWanted(self._local, self._preprocessing, self.rule)

    def reached(self, place: Placement) -> Placement:
        """The cells that a patch at that place reaches, as a box of them."""
        field, stride = (self._local.field,) * 2, (self._local.stride,) * 2
        size = self.rule.threat.image_size
        return cells_reached(
            place, image_size=size, field=field, stride=stride, seen_size=self.rule.seen_size
        )

    def program_of(self, build: Callable[[LocalLogits, Preprocessing, LocalDefense], Any]) -> Any:
        """What ``build`` makes of the local logits, the preprocessing and the rule."""
        return build(self._local, self._preprocessing, self.rule)

    def answers_at_worst(
        self, images: NDArray[np.uint8], places: NDArray[np.int64], targets: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """What is answered if all cells that a patch reaches say a label, as loud as can be.

        Args:
          images: ``uint8[R, h, w, c]``.
          places: ``int64[R, 1, 4]``, in pixels.
          targets: ``int[R]``, that label.

        Returns:
          ``int32[R]``.
        """
        cells = np.stack([self.reached(place)[0] for place in places]).astype(np.int32)
        program = self.program_of(_worst_program)
        rows: list[NDArray[Any]] = [images, cells, np.asarray(targets, np.int32)]
        return in_rows(lambda *some: program(self.params, *some), rows, 8)


class OnBands(_OnEvidence):
    """A defense on what a model says of each band of an image."""

    def __init__(self, defense: BandDefense, model: AskedModel) -> None:
        bands = MaskedImages(defense.masks.boxes, defense.masks.image_size)
        apply_fn = model.apply_fn
        source = BandSource(
            apply_fn,
            bands,
            True,
            _BANDS_AT_ONCE,
            kind_of(apply_fn).dropping,
            model.preprocessing.resize_to,
        )
        super().__init__(defense, source, model)
        self.defense, self._of_bands, self.boxes = defense, defense, bands.boxes
        self._tables = self._tables_of(self.boxes)
        self._remembered = RememberedTables(lambda images: self._tables(images)[0])

    def objective(self, search: PatchSearch) -> Objective:
        """The margins of bands, by more than a label where the rule looks at a softmax."""
        surplus = search.surplus
        if isinstance(self._of_bands, MaskDS | DerandomizedSmoothing):
            surplus = max(surplus, _SURPLUS_OF_SOFTMAX)
        return LabelsWanted(self._apply_fn, self._preprocessing, search.masks_a_step, surplus)

    def seen(self, images: NDArray[np.uint8]) -> Seen:
        """The rule on the logits of all bands."""
        logits, _ = self._tables(images)
        return Seen(self._of(logits), logits)

    def tables(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Those of all bands; of the same images once."""
        return self._remembered(images)

    def answers_if(
        self,
        logits: NDArray[np.float32],
        of: NDArray[np.intp],
        chosen: NDArray[np.bool_],
        targets: NDArray[np.intp],
    ) -> NDArray[np.int32]:
        """See ``Attacked``; what is to be said is said loudly."""
        step = max(1, (1 << 24) // max(1, int(np.prod(logits.shape[1:]))))
        parts = []
        for at in range(0, len(of), step):
            rows = slice(at, at + step)
            own = np.arange(logits.shape[-1]) == targets[rows, None]
            loud = np.where(own, np.float32(_LOUD), np.float32(0))[:, None]
            said = np.where(chosen[rows][..., None], loud, logits[of[rows]])
            parts.append(self._of(said.astype(np.float32)))
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def _of(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """What the rule answers to logits of bands ``float32[R, V, K]``."""
        return in_rows(_answer_program(self._of_bands), [logits], 1024)


@reproducible()
def in_rows(program: Any, arrays: Sequence[NDArray[Any]], most: int) -> NDArray[np.int32]:
    """A program from rows to ``int32[R]`` on any number of rows, in few shapes."""
    count = len(arrays[0])
    size = min(most, 1 << max(0, count - 1).bit_length())
    parts = []
    for at in range(0, count, size):
        some = [array[at : at + size] for array in arrays]
        filled = [np.pad(a, ((0, size - len(a)), *((0, 0),) * (a.ndim - 1))) for a in some]
        parts.append(np.asarray(program(*map(jnp.asarray, filled)))[: len(some[0])])
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


@functools.lru_cache(maxsize=16)
def _answer_program(defense: EvidenceDefense) -> Any:
    def answers(evidence: Array) -> Array:
        return defense.results(evidence, jnp.zeros(len(evidence), jnp.int32)).answer

    return jax.jit(answers)


@functools.lru_cache(maxsize=16)
def _worst_program(local: LocalLogits, preprocessing: Preprocessing, defense: LocalDefense) -> Any:
    def answers(params: Any, images: Array, cells: Array, targets: Array) -> Array:
        evidence = LocalSource(local).evidence(params, images, preprocessing).parts
        said = jax.vmap(strongest_evidence)(evidence.astype(jnp.float32), cells, targets)
        return defense.results(said, jnp.zeros(len(said), jnp.int32)).answer

    return jax.jit(answers)
