"""The options of ``certmask attack`` that say how it attacks, and what they come down to."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from certmask_jax.attacks.goal_choice import Where
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.programs.number_options import number, seed, whole

IMAGES = {
    "all": "all that are answered rightly without a patch",
    "certified": "those that the worst case certifies",
    "published": "those that a paper's condition holds on and the worst case does not certify",
    "uncertified": "those that the worst case does not certify",
}
PLACES = {
    "weakest": "where pixels gain most and, for masks, one of every set that alone hides it, first "
    "where a table says that it hurts",
    "gradient": "where pixels gain most, by the gradient",
    "random": "anywhere that is allowed",
}
UNDEFENDED = "undefended"
"""How the model without a defense is called."""


@dataclasses.dataclass(frozen=True)
class AttackOptions:
    """One field for each option of ``add``, and the search."""

    images: str
    places: Where
    locations: int
    targets: int
    starts: int
    at_once: int
    seed: int
    undefended: bool
    search: PatchSearch

    def facts(self) -> dict[str, Any]:
        """What decides the numbers, JSON-able."""
        return dataclasses.asdict(self)


def add(group: argparse._ArgumentGroup) -> None:
    """Adds the options to a group of a command line."""
    how = PatchSearch()
    group.add_argument(
        "--images",
        choices=IMAGES,
        default="all",
        help="which are attacked: "
        + "; ".join(f"{name}, {about}" for name, about in IMAGES.items())
        + " (default: %(default)s)",
    )
    group.add_argument(
        "--places",
        choices=PLACES,
        default="weakest",
        help="where patches are put: "
        + "; ".join(f"{name}, {about}" for name, about in PLACES.items())
        + " (default: %(default)s)",
    )
    for option, default, about in (
        ("--locations", 3, "goals that an image is tried with, each a place and a wrong label"),
        ("--targets", 3, "wrong labels that are looked at, the likeliest first"),
        ("--starts", 1, "searches for each goal, the first from the image, others at random"),
        ("--steps", how.steps, "of one search"),
        ("--masks-a-step", how.masks_a_step, "masked images that a step looks at, at most"),
        ("--at-once", 16, "searches that run at once over all devices"),
    ):
        group.add_argument(
            option,
            type=whole(1),
            default=default,
            metavar="N",
            help=f"{about} (default: %(default)s)",
        )
    group.add_argument(
        "--step-size",
        type=number(above=0),
        default=how.step_size,
        metavar="X",
        help="how far a pixel moves in a step, of its range (default: %(default)s)",
    )
    group.add_argument(
        "--optimizer",
        choices=("sign", "adam"),
        default=how.optimizer,
        help="signs of the gradient, or Adam (default: %(default)s)",
    )
    group.add_argument(
        "--momentum",
        type=number(least=0, below=1),
        default=how.momentum,
        metavar="X",
        help="of the signs (default: %(default)s)",
    )
    group.add_argument(
        "--attack-seed",
        type=seed,
        default=0,
        metavar="SEED",
        help="of all randomness of the attack (default: %(default)s)",
    )
    group.add_argument(
        "--undefended",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="attack the model without a defense too (default: --undefended)",
    )


def read(arguments: argparse.Namespace) -> AttackOptions:
    """Arguments -> options; ``ValueError`` for what is not possible, naming the option."""
    if arguments.step_size > 1:
        raise ValueError(f"--step-size: expected at most 1, got {arguments.step_size:g}")
    if arguments.momentum and arguments.optimizer != "sign":
        raise ValueError("--momentum: has no use with --optimizer adam; leave it out")
    return AttackOptions(
        images=arguments.images,
        places=arguments.places,
        locations=arguments.locations,
        targets=arguments.targets,
        starts=arguments.starts,
        at_once=arguments.at_once,
        seed=arguments.attack_seed,
        undefended=arguments.undefended,
        search=PatchSearch(
            steps=arguments.steps,
            step_size=arguments.step_size,
            optimizer=arguments.optimizer,
            momentum=arguments.momentum,
            masks_a_step=arguments.masks_a_step,
        ),
    )
