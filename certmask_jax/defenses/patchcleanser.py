"""PatchCleanser (Xiang, Mahloujifar, Mittal; USENIX Security 2022).

T[i, j] is the label of the image with masks i and j; it is symmetric, and its diagonal holds the
one-mask labels v. *Double masking* (Algorithm 1) trusts a mask that disagrees with the majority
only if all its two-mask labels stand by it. *Challenger masking* (Appendix C) lets masks of
different labels challenge each other, at one two-mask image a round.

*Two-mask correctness* (Algorithm 2, Theorem 1), all T[i, j] = y, makes both robust, whatever the
order and the ties. *Good rows*, masks with T[i, j] = y for all j, do so if every location is
hidden by one of them; on the paper's own sets that is the same thing, on redundant covers more.

The second round may have other masks than the first (``double_masking``). Both sets must
cover, and two-mask correctness is then about all unions of a first and a second mask *and* the
first masks alone, which the paper's table has on its diagonal.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import double_masking_worst_case
from certmask_jax.defenses.defense import (
    Defense,
    Guarantee,
    Row,
    Ties,
    check_ties,
    count_votes,
    groups_of,
    majority,
)
from certmask_jax.defenses.double_masking_worst_case import Layout, good_row_certificate
from certmask_jax.defenses.second_round import (
    challenger_masking_open,
    double_masking_open,
    second_round,
)
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat


def double_masking(
    masks: MaskSet,
    second: MaskSet | None = None,
    *,
    ties: Ties = "largest",
    against: Threat | None = None,
) -> Defense:
    """PatchCleanser's double masking over all pairs of ``masks``, or of two mask sets.

    Args:
      masks: N1 masks of the first round, which cover every location at least once.
      second: N2 masks of the second round, which cover too; those of the first by default.
      ties: which label wins when several have most one-mask votes. The published program takes
        the largest.
      against: what is proved against, if not all that the masks were built for: patches that are
        smaller, or inside a region. Good rows need cover only these.

    Raises:
      ValueError: for two sets that were built for different threats.
    """
    check_ties(ties)
    layout, defense_parts = _two_rounds(masks, against, second)

    def rule(row: Row, num_classes: int) -> Array:
        one_mask, table = row.predictions[layout.single], row.predictions[layout.pair]
        return double_masking_rule(one_mask, table, num_classes=num_classes, ties=ties)

    def worst_case(row: Row, label: Array, num_classes: int) -> Array:
        return double_masking_worst_case.worst_case(
            row, label, layout, num_classes=num_classes, ties=ties
        )

    return Defense(
        name="double_masking",
        guarantee=Guarantee.RECOVERY,
        mask_set=masks,
        second_set=second,
        row_rule=rule,
        row_certificate=good_row_certificate(layout),
        row_worst_case=worst_case,
        options={"ties": ties} | ({} if second is None else {"second": str(second)}),
        open_columns=functools.partial(
            double_masking_open,
            second_round(layout.pair, _losing(layout, second), layout.single),
            ties == "largest",
        ),
        row_cost=layout.pair.size * 8,
        **defense_parts,
    )


def challenger_masking(masks: MaskSet, *, against: Threat | None = None) -> Defense:
    """PatchCleanser's challenger masking (Appendix C) over all pairs of ``masks``.

    ``worst_case`` is the good-row condition. It is exact where every location that matters is
    hidden by one mask alone, as on PatchCleanser's own sets (``exact`` says so): if that mask i
    has a two-mask label T[i, j] = z other than y, giving every other mask the label z leaves i
    alone against them, and j retires it. On redundant covers it is a proved lower bound.

    Args:
      masks: N masks that cover every location at least once.
      against: what is proved against, as in ``double_masking``.
    """
    layout, defense_parts = _two_rounds(masks, against)

    def rule(row: Row, num_classes: int) -> Array:
        del num_classes
        return challenger_masking_rule(row.predictions[layout.pair])

    certificate = good_row_certificate(layout)
    return Defense(
        name="challenger_masking",
        guarantee=Guarantee.RECOVERY,
        mask_set=masks,
        row_rule=rule,
        row_certificate=certificate,
        row_worst_case=certificate,
        exact=bool((layout.hiding.sum(axis=1) == 1).all()),
        open_columns=functools.partial(
            challenger_masking_open, second_round(layout.pair, layout.hiding)
        ),
        row_cost=len(masks) * len(masks),
        **defense_parts,
    )


def double_masking_rule(
    one_mask: Array, table: Array, *, num_classes: int, ties: Ties = "largest"
) -> Array:
    """Algorithm 1 for one image: ``int32[N1]`` and ``int32[N1, N2]`` labels -> label.

    Unanimous one-mask labels are the answer. Otherwise the first mask, in mask order, that
    disagrees with the majority and whose two-mask labels all equal its own; else the majority.
    """
    most = majority(count_votes(one_mask, jnp.ones_like(one_mask), num_classes), ties)
    stands = (one_mask != most) & (table == one_mask[:, None]).all(axis=1)
    return jnp.where(stands.any(), one_mask[stands.argmax()], most)


def challenger_masking_rule(table: Array) -> Array:
    """Appendix C for one image: ``int32[N, N]`` two-mask labels -> label.

    The candidate is mask 0; its challenger the first mask in play with another label. The
    challenger takes over if the two-mask label is its own, and retires otherwise (also when the
    label is neither's: the game has to retire someone to end). Who is left last wins.
    """
    one_mask = jnp.diagonal(table)

    def play(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        candidate, retired = state
        rivals = ~retired & (one_mask != one_mask[candidate])
        challenger = rivals.argmax()
        wins = table[candidate, challenger] == one_mask[challenger]
        loser = jnp.where(wins, candidate, challenger)
        going_on = rivals.any()
        candidate = jnp.where(going_on & wins, challenger, candidate)
        return candidate, retired.at[loser].set(retired[loser] | going_on)

    start = (jnp.zeros((), dtype=one_mask.argmax().dtype), jnp.zeros(one_mask.shape, dtype=bool))
    candidate, _ = jax.lax.fori_loop(0, one_mask.shape[0] - 1, play, start)
    return one_mask[candidate]


def _two_rounds(
    masks: MaskSet, against: Threat | None, second: MaskSet | None = None
) -> tuple[Layout, dict[str, Any]]:
    if second is None:
        images, pair = distinct_unions.unions(masks, 2)
        single = pair.diagonal()
    else:
        if masks.threat != second.threat:
            raise ValueError(
                f"double_masking: expected a second mask set for {masks.threat}, as the first one, "
                f"got one for {second.threat}; build both for the same threat"
            )
        if against is not None:
            second.check(against)
        singles, of_mask = distinct_unions.unions(masks, 1)
        pairs, of_pair = distinct_unions.unions_of([masks, second])
        images, (of_single, of_union) = distinct_unions.merge([singles, pairs])
        single, pair = of_single[of_mask], of_union[of_pair]
    groups = groups_of(images, masks, against)

    def two_mask_correct(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return (row.predictions == label).all()

    layout = double_masking_worst_case.layout(single, pair, groups, symmetric=second is None)
    return layout, {
        "masked_images": images,
        "groups": groups,
        "row_conditions": {"two_mask_correct": two_mask_correct},
        "against": against,
    }


def _losing(layout: Layout, second: MaskSet | None) -> NDArray[np.bool_]:
    """Groups ``bool[G, N1]`` that are lost when no mask that hides them has a row of true labels.

    Where these masks are fewer than the others, whose one-mask labels the attacker chooses, any
    label can be the majority. So it is with a single mask and one other, in one set for both
    rounds: their pair is in both rows, and the attacker makes the other mask stand by its label.
    """
    hiding = layout.hiding.sum(axis=1)
    lost = 2 * hiding < layout.hiding.shape[1]
    return layout.hiding[lost | (hiding == 1) if second is None else lost]
