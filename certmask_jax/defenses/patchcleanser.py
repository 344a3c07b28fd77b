"""PatchCleanser (Xiang, Mahloujifar, Mittal; USENIX Security 2022).

T[i, j] is the label of the image with masks i and j; it is symmetric, and its diagonal holds the
one-mask labels v. *Double masking* (Algorithm 1) trusts a mask that disagrees with the majority
only if all its two-mask labels stand by it. *Challenger masking* (Appendix C) lets masks of
different labels challenge each other, at one two-mask image a round.

*Two-mask correctness* (Algorithm 2, Theorem 1), all T[i, j] = y, makes both robust, whatever the
order and the ties. *Good rows*, masks with T[i, j] = y for all j, do so if every location is
hidden by one of them; on the paper's own sets that is the same thing, on redundant covers more.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax import masked_images
from certmask_jax.defenses.defense import (
    Defense,
    Guarantee,
    Row,
    RowProof,
    check_ties,
    count_votes,
    groups_of,
    majority,
    preference,
)
from certmask_jax.defenses.second_round import (
    challenger_masking_open,
    double_masking_open,
    second_round,
)
from certmask_jax.mask_sets import MaskSet
from certmask_jax.threats import Threat

Ties = Literal["largest", "smallest"]


def double_masking(
    masks: MaskSet, *, ties: Ties = "largest", against: Threat | None = None
) -> Defense:
    """PatchCleanser's double masking over all pairs of ``masks``.

    Args:
      masks: N masks that cover every location at least once.
      ties: which label wins when several have most one-mask votes. The published program takes
        the largest.
      against: what is proved against, if not all that the masks were built for: patches that are
        smaller, or inside a region. Good rows need cover only these.
    """
    check_ties(ties)
    layout, defense_parts = _two_rounds(masks, against)

    def rule(row: Row, num_classes: int) -> Array:
        return double_masking_rule(row.predictions[layout.pair], num_classes=num_classes, ties=ties)

    def worst_case(row: Row, label: Array, num_classes: int) -> Array:
        return _double_masking_worst_case(
            row.predictions[layout.pair], label, layout, num_classes=num_classes, ties=ties
        )

    return Defense(
        name="double_masking",
        guarantee=Guarantee.RECOVERY,
        mask_set=masks,
        row_rule=rule,
        row_certificate=_good_row_certificate(layout),
        row_worst_case=worst_case,
        options={"ties": ties},
        # Where one mask alone hides a location, one wrong label of its row loses it: the attacker
        # makes the others one-mask labels what they like.
        open_columns=functools.partial(
            double_masking_open,
            second_round(layout.pair, layout.hiding[layout.hiding.sum(axis=1) == 1]),
            ties == "largest",
        ),
        row_cost=len(masks) * len(masks) * 8,
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
      against: what is proved against, as in :func:`double_masking`.
    """
    layout, defense_parts = _two_rounds(masks, against)

    def rule(row: Row, num_classes: int) -> Array:
        del num_classes
        return challenger_masking_rule(row.predictions[layout.pair])

    certificate = _good_row_certificate(layout)
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


def double_masking_rule(table: Array, *, num_classes: int, ties: Ties = "largest") -> Array:
    """Algorithm 1 for one image: ``int32[N, N]`` two-mask labels -> label.

    Unanimous one-mask labels are the answer. Otherwise the first mask, in mask order, that
    disagrees with the majority and whose two-mask labels all equal its own; else the majority.
    """
    one_mask = jnp.diagonal(table)
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


class _Layout(NamedTuple):
    """Where masks and pairs are found in a row, and what the attacker cannot touch."""

    pair: NDArray[np.int32]  # [N, N] -> masked image
    groups: NDArray[np.bool_]  # [G, V] the masked image hides the patches
    hiding: NDArray[np.bool_]  # [G, N] mask i hides them alone


def _two_rounds(masks: MaskSet, against: Threat | None) -> tuple[_Layout, dict[str, Any]]:
    images, pair = masked_images.unions(masks, 2)
    groups = groups_of(images, masks, against)
    layout = _Layout(pair, groups, groups[:, pair.diagonal()])

    def two_mask_correct(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return (row.predictions == label).all()

    return layout, {
        "masked_images": images,
        "groups": groups,
        "row_conditions": {"two_mask_correct": two_mask_correct},
        "against": against,
    }


def _good_row_certificate(layout: _Layout) -> RowProof:
    hiding = jnp.asarray(layout.hiding)

    def certificate(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        good = (row.predictions[layout.pair] == label).all(axis=1)
        return (hiding & good).any(axis=1).all()

    return certificate


def _double_masking_worst_case(
    table: Array, label: Array, layout: _Layout, *, num_classes: int, ties: Ties
) -> Array:
    """Exact: can the table adversary make double masking answer anything but ``label``?

    C is the set of masks that hide the location. Rows of C are out of the attacker's reach; a row
    outside C keeps the entries whose two masks hide the patch together, those with C among them.
    f one-mask labels are free. The answer is the label of the first disagreer that stands (its row
    agrees with it), else the majority m. So the attacker wins in one of three ways, and only so:

    1. no mask of C stands by y, and some m != y can be the majority;
    2. a mask r of C stands by a label w != y, and some m != w can be the majority; if m != y then
       r must come before every mask of C that stands by y, as these are then disagreers too;
    3. a row r outside C has kept only entries of one label w != y: give it w throughout. As r has
       kept its entries with C, no mask of C stands by y. If y is not the majority then, the first
       way is open; if it is, r disagrees and stands.

    Where most one-mask labels are free (2 |C| < N) some m != y can always be the majority, so the
    first way is open unless C has a good row; and a good row closes all three, as it shares an
    entry with every row. Only the other groups need the long form; sets for several patches have
    hardly any.
    """
    at_will = 2 * layout.hiding.sum(axis=1) < layout.hiding.shape[1]
    good = (table == label).all(axis=1)
    easy = (jnp.asarray(layout.hiding[at_will]) & good).any(axis=1).all()
    if at_will.all():
        return easy
    one_mask = jnp.diagonal(table)
    num_masks = one_mask.shape[0]
    stands = (table == one_mask[:, None]).all(axis=1)
    rank = preference(num_classes, ties)
    classes = jnp.arange(num_classes)
    position = jnp.arange(num_masks)
    is_wrong = classes != label

    def attacked(group: tuple[Array, Array]) -> Array:
        hiding, fixed = group[0], group[1][layout.pair]  # [N], [N, N]
        votes = count_votes(jnp.where(hiding, one_mask, -1), jnp.ones_like(one_mask), num_classes)
        free = num_masks - hiding.sum()
        key = votes * num_classes + rank  # orders classes by votes, then by preference
        can_lead = key + free * num_classes >= key.max()
        true_stands = hiding & stands & (one_mask == label)
        first_true = jnp.where(true_stands.any(), true_stands.argmax(), num_masks)

        way_1 = ~true_stands.any() & (can_lead & is_wrong).any()

        other_leads = (can_lead & is_wrong & (classes[None, :] != one_mask[:, None])).any(axis=1)
        wrong_stands = hiding & stands & (one_mask != label)
        way_2 = wrong_stands & (can_lead[label] | (other_leads & (position < first_true)))

        least = jnp.where(fixed, table, num_classes).min(axis=1)
        most = jnp.where(fixed, table, -1).max(axis=1)
        way_3 = ~hiding & (least == most) & (most != label)
        return way_1 | (way_2 | way_3).any()

    groups = (jnp.asarray(layout.hiding[~at_will]), jnp.asarray(layout.groups[~at_will]))
    return easy & ~jax.lax.map(attacked, groups).any()
