"""Votes of one round of masks: any monotone score of who says what, with its exact certificate.

A label z scores phi of the set of masks that say z, and the highest score is the answer. If phi is
*monotone* (another mask that says z never lowers the score of z) the strongest attacker is plain:
at location l, where the masks C(l) hide the patch, every other mask says one wrong z. Hence
(soundness, section 6) an image is robust if and only if, for all l and z != y,

    phi(Y_l) > phi(Z_l),  Y_l = {i in C(l): v_i = y},
                          Z_l = {i in C(l): v_i = z} and all masks outside C(l).

Equal scores go to the largest (or smallest) label: ``worst_case`` knows the order and is exact,
``certificate`` asks for more than equality and holds in any order. Three scores, where n_z(l) of
the c(l) masks that hide the patch at l say z, counted as often as they are listed:

* ``Plurality``: how many masks say z. As in (De)randomized smoothing (Levine and Feizi, 2020),
  whose certificate counts the votes that a patch reaches; this one knows which they are. It needs
  c(l) > N / 2 everywhere, which no set of single rectangles has that are smaller than the image:
  one that hides the patch in two opposite corners is the image.
* ``MinimumExplanation``: max over l of n_z(l) - c(l). If z is true and the patch is at l, the
  masks of C(l) that do not say z are errors of the model, as the patch cannot have made them; the
  score is the least number of errors (negated) that explain all votes. It is nearest-codeword
  decoding; 0 means that a patch alone explains all dissent. We know of no paper that has it.
* ``RobustMasking``: min over l of n_z(l), the votes that are left once the largest window of
  support is taken away: all votes that a patch at one location reaches. PatchGuard's robust masking
  (Xiang et al., USENIX Security 2021, Algorithm 1) on votes, for each class as it has to be
  (soundness, section 5), and for its threshold T = 0: with T > 0 the score is not monotone.

The last two settle equal scores by the number of votes, which is monotone again. If all votes are
true, ``certificate`` holds for them if and only if every two locations have a mask in common (a
pair cover; soundness, section 2.5).
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.monotone_scores import Score, check_monotone
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.rounds import one_round
from certmask_jax.defenses.voting import Ties, check_ties, count_votes, preference
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat

_CLASSES = 1000  # for which a block of rows is small enough


@dataclasses.dataclass(frozen=True, repr=False)
class Scored(Defense):
    """The label of the highest ``score`` is the answer; a subclass says what the score is.

    Attributes:
      masks: N masks that cover every location at least once. A mask that is listed twice is one
        entry of the score's argument; give it two votes there if it should have them.
      ties: which label wins when several have the highest score.
      against: what is proved against, if not all that the masks were built for; the rule and its
        score stay what they are.
    """

    _: dataclasses.KW_ONLY
    ties: Ties = "largest"

    def __post_init__(self) -> None:
        check_ties(self.ties)
        one_round(self.masks, self.against)

    @abc.abstractmethod
    def score(self, says: Array) -> Array:
        """``bool[V]``, which of the distinct masks say a label -> its score, a number.

        Monotone: another mask that says the label never lowers it. Traceable by JAX.
        """

    @property
    def masked_images(self) -> MaskedImages:
        return one_round(self.masks, None).images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return one_round(self.masks, self.against).groups

    @property
    def weights(self) -> NDArray[np.int32]:
        """``int32[V]``: how many of the masks each distinct one is."""
        return one_round(self.masks, None).weights

    @property
    def row_cost(self) -> int:
        return _CLASSES * (len(self.masked_images) + len(self.groups))

    def row_rule(self, row: Row, num_classes: int) -> Array:
        scores = jax.vmap(self.score)(
            row.predictions[None, :] == jnp.arange(num_classes, dtype=jnp.int32)[:, None]
        )
        best = jnp.where(scores == scores.max(), preference(num_classes, self.ties), -1)
        return jnp.where((row.predictions >= 0).any(), best.argmax().astype(jnp.int32), -1)

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return self._proof(row, label, num_classes, jnp.zeros(num_classes, dtype=jnp.bool_))

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        rank = preference(num_classes, self.ties)
        return self._proof(row, label, num_classes, rank[label] > rank)

    def _proof(self, row: Row, label: Array, num_classes: int, wins_tie: Array) -> Array:
        classes = jnp.arange(num_classes, dtype=jnp.int32)
        says = row.predictions[None, :] == classes[:, None]  # [K, V]

        def holds(hidden: Array) -> Array:
            kept = says & hidden[None, :]
            least = self.score(kept[label])
            most = jax.vmap(self.score)(kept | ~hidden[None, :])
            before = (least > most) | ((least == most) & wins_tie)
            return (before | (classes == label)).all()

        return jax.lax.map(holds, jnp.asarray(self.groups)).all()

    def _votes(self, says: Array) -> Array:
        return jnp.where(says, jnp.asarray(self.weights), 0).sum()

    def _votes_hiding(self, says: Array) -> Array:
        """n_z(l): ``int32[G]``, how many masks that hide the patch say z.

        At the placements that the masks were built for. The groups that were dropped (supersets of
        another) would not change the minimum of the votes or of the errors: the group inside one
        has no more of either.
        """
        groups = one_round(self.masks, None).groups
        product = jnp.dot(
            jnp.asarray((groups * self.weights).astype(np.float32)),
            says.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,  # counts, exact below 2**24
        )
        return product.astype(jnp.int32)

    def _settled_by_votes(self, score: Array, says: Array) -> Array:
        """Orders by ``score``, then by the number of votes; monotone as both are."""
        return score * (int(self.weights.sum()) + 1) + self._votes(says)


@dataclasses.dataclass(frozen=True, repr=False)
class Plurality(Scored):
    """The label of most masks; robust iff n_y(C(l)) - n_z(C(l)) > N - c(l) everywhere.

    The condition ``vote_gap`` is that of (De)randomized smoothing: n_y exceeds every n_z by more
    than 2 D, or by 2 D where ties favour y, D the most votes that a patch reaches, max N - c(l).
    """

    name: ClassVar[str] = "plurality"

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"vote_gap": self._vote_gap}

    @property
    def most_reached(self) -> int:
        """D: the most votes that a patch reaches, wherever it is."""
        kept = self.groups.astype(np.int64) @ self.weights
        return int((self.weights.sum() - kept).max())

    def _vote_gap(self, row: Row, label: Array, num_classes: int) -> Array:
        gap = self._leads(row, label, num_classes) - 2 * self.most_reached
        rank = preference(num_classes, self.ties)
        wins = (gap > 0) | ((gap == 0) & (rank[label] > rank))
        return (wins | (jnp.arange(num_classes) == label)).all()

    def _leads(self, row: Row, label: Array, num_classes: int) -> Array:
        """``int32[K]``: by how many votes the label leads each class."""
        votes = count_votes(row.predictions, jnp.asarray(self.weights), num_classes)
        return votes[label] - votes

    def score(self, says: Array) -> Array:
        return self._votes(says)


@dataclasses.dataclass(frozen=True, repr=False)
class MinimumExplanation(Scored):
    """The label under which the votes need the fewest errors of the model; see the module."""

    name: ClassVar[str] = "minimum_explanation"

    def score(self, says: Array) -> Array:
        covered = jnp.asarray((one_round(self.masks, None).groups @ self.weights).astype(np.int32))
        errors = covered - self._votes_hiding(says)
        return self._settled_by_votes(-errors.min(), says)


@dataclasses.dataclass(frozen=True, repr=False)
class RobustMasking(Scored):
    """The label with most votes out of reach of one patch, wherever it is; see the module."""

    name: ClassVar[str] = "robust_masking"

    def score(self, says: Array) -> Array:
        return self._settled_by_votes(self._votes_hiding(says).min(), says)


@dataclasses.dataclass(frozen=True, repr=False)
class Votes(Scored):
    """A defense from a score of your own, with its exact worst case; ``votes`` builds it.

    Attributes:
      own_score: the score, see ``Score``; give the same function object each time.
      called: its name in reports.
      about: keys and values for reports.
    """

    own_score: Score = dataclasses.field(kw_only=True)
    called: str = dataclasses.field(default="votes", kw_only=True)
    about: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), kw_only=True, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_monotone(self.own_score, len(self.masked_images))

    @property
    def name(self) -> str:  # type: ignore[override]  # of a class, where it is one for all
        return self.called

    def score(self, says: Array) -> Array:
        return self.own_score(says)

    def _own_options(self) -> dict[str, Any]:
        return {"ties": self.ties} | dict(self.about)


def votes(
    masks: MaskSet,
    score: Score,
    *,
    name: str = "votes",
    ties: Ties = "largest",
    against: Threat | None = None,
    options: Mapping[str, Any] | None = None,
) -> Votes:
    """A defense from a score of your own, with its exact worst case.

    Args:
      masks, ties, against: as of ``Scored``.
      score: traceable by JAX, and monotone: ``score(A) <= score(B)`` for A inside B.
      name, options: for reports.

    Raises:
      ValueError: for a score that is found not to be monotone: of up to 10 masks all sets are
        tried, of more, random chains from no mask to all, so there it is yours to prove.
    """
    about = tuple((options or {}).items())
    return Votes(masks, own_score=score, called=name, ties=ties, against=against, about=about)
