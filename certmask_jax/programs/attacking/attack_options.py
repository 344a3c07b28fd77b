"""The options of ``certmask attack`` that say how it attacks, and what they come down to."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import some
from certmask_jax.attacks.black_box import BlackBoxSearch
from certmask_jax.attacks.model_places import Where
from certmask_jax.attacks.patch_places import places_on_grid
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.attacking.given_places import At, places_at, read_place
from certmask_jax.programs.command_line import check_not_typed, hint
from certmask_jax.programs.number_options import number, seed, whole

IMAGES = {
    "all": "all that are answered rightly without a patch",
    "certified": "those that the worst case certifies",
    "published": "those that a paper's condition holds on and the worst case does not certify",
    "uncertified": "those that the worst case does not certify",
}
PLACES = {
    "weakest": "where a patch of the pixels that the gradient asks for does most, as it is tried, "
    "and, for masks, one of every set that alone hides it, first where a table says that it hurts",
    "gradient": "where pixels gain most, by the gradient",
    "random": "anywhere that is allowed",
}
SEARCHES = {
    "gradient": "along the model's gradient",
    "square": "without gradients, for any model: squares of one colour that get smaller, and stay "
    "where the true label is held less",
    "random": "without gradients: all pixels anew",
}
_OF_GRADIENTS = (
    "targets", "target", "starts", "steps", "step_size", "schedule", "optimizer", "momentum",
)  # fmt: skip
_MANY = 1 << 20
"""More locations than there are on any grid."""
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
    only: tuple[str, ...]
    place: At | None
    search: PatchSearch
    black_box: BlackBoxSearch | None
    stride: int | None = None
    target: int | None = None

    def facts(self) -> dict[str, Any]:
        """What decides the numbers, JSON-able."""
        facts = dataclasses.asdict(self)
        return {
            name: value for name, value in facts.items() if name != "only" and value is not None
        }

    @property
    def most_steps(self) -> int:
        """How many steps, or queries, an image takes at most."""
        if self.black_box is not None:
            return self.locations * self.black_box.queries
        return self.locations * self.starts * self.search.steps

    def given_places(self, threat: Threat) -> NDArray[np.int64] | None:
        """The places ``int64[P, K, 4]`` that are looked at and no others, if they are given.

        Raises:
          ValueError: for a place or a stride at which the threat allows no patch, and a stride that
            gives more than a million.
        """
        if self.place is not None:
            return places_at(threat, self.place)
        if self.stride is None:
            return None
        try:
            return places_on_grid(threat, stride=self.stride)
        except ValueError as error:
            raise ValueError(f"--stride {self.stride}: {str(error).partition(': ')[2]}") from error

    def chosen(self, specs: Sequence[str]) -> list[str]:
        """Those of ``specs`` that are attacked, and ``UNDEFENDED`` before them if it is.

        Raises:
          ValueError: for one that is asked for and is not there.
        """
        known = [*([UNDEFENDED] if self.undefended or UNDEFENDED in self.only else []), *specs]
        for spec in self.only:
            if spec not in known:
                raise ValueError(
                    f"--only: expected what is attacked, {some(known)}, got {spec!r}"
                    f"{hint(spec, known)}"
                )
        return [spec for spec in known if not self.only or spec in self.only]


def add(group: argparse._ArgumentGroup, *, undefended: bool = True) -> None:
    """Adds the options to a group of a command line; ``undefended`` is the default of its own."""
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
    group.add_argument(
        "--search",
        choices=SEARCHES,
        default="gradient",
        help="how a patch is searched for: "
        + "; ".join(f"{name}, {about}" for name, about in SEARCHES.items())
        + " (default: %(default)s)",
    )
    for option, default, about in (
        ("--locations", 3, "goals that an image is tried with, each a place and a wrong label"),
        ("--targets", 3, "wrong labels that are looked at, the likeliest first"),
        ("--starts", 1, "searches for each goal, the first from the image, others at random"),
        ("--steps", how.steps, "of one search"),
        ("--masks-a-step", how.masks_a_step, "masked images that a step looks at, at most"),
        ("--queries", 500, "patches that a search without gradients tries at a place"),
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
        help="how far a pixel moves in the first step, of its range (default: %(default)s)",
    )
    group.add_argument(
        "--schedule",
        choices=("linear", "constant"),
        default=how.schedule,
        help="whether steps get smaller, to nothing at the end (default: %(default)s)",
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
        "--only",
        action="append",
        metavar="DEFENSE",
        help="attack this one alone, as --defense names it, or undefended; repeat for several "
        "(default: all)",
    )
    group.add_argument(
        "--undefended",
        action=argparse.BooleanOptionalAction,
        default=undefended,
        help="attack the model without a defense too (default: "
        f"--{'' if undefended else 'no-'}undefended)",
    )


def add_place(group: argparse._ArgumentGroup) -> None:
    """Adds ``--place`` and ``--stride``."""
    group.add_argument(
        "--place",
        type=_place,
        metavar="ROW,COLUMN",
        help="put the top left pixel of every patch there (default: as --places says; of "
        "--patch-images a random place for each image and patch, which --attack-seed decides)",
    )
    group.add_argument(
        "--stride",
        type=whole(1),
        metavar="N",
        help="put patches at every place whose row and column are multiples of N, and the last "
        "ones: at all of them unless --locations says how many (default: as --places says)",
    )


def _place(text: str) -> At:
    try:
        return read_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read(arguments: argparse.Namespace) -> AttackOptions:
    """Arguments -> options; ``ValueError`` for what is not possible, naming the option."""
    if arguments.step_size > 1:
        raise ValueError(f"--step-size: expected at most 1, got {arguments.step_size:g}")
    stride = getattr(arguments, "stride", None)
    for option, where in (("place", getattr(arguments, "place", None)), ("stride", stride)):
        if where is not None and "places" in arguments.typed:
            raise ValueError(
                f"--places: has no use with --{option}, which says where; leave it out"
            )
    if stride is not None and arguments.place is not None:
        raise ValueError("--stride: has no use with --place, which is one place; leave one out")
    target = getattr(arguments, "target", None)
    if target is not None and "targets" in arguments.typed:
        raise ValueError("--targets: has no use with --target, which is the one; leave one out")
    by_asking = arguments.search != "gradient"
    check_not_typed(
        arguments,
        _OF_GRADIENTS if by_asking else ("queries",),
        f"with --search {arguments.search}",
    )
    if by_asking and arguments.places == "gradient":
        raise ValueError(f"--places gradient: has no use with --search {arguments.search}")
    if arguments.momentum and arguments.optimizer != "sign":
        raise ValueError("--momentum: has no use with --optimizer adam; leave it out")
    return AttackOptions(
        images=arguments.images,
        places=arguments.places,
        locations=_MANY
        if stride is not None and "locations" not in arguments.typed
        else arguments.locations,
        targets=arguments.targets,
        starts=arguments.starts,
        at_once=arguments.at_once,
        seed=arguments.attack_seed,
        undefended=arguments.undefended,
        only=tuple(arguments.only or ()),
        place=getattr(arguments, "place", None),
        search=PatchSearch(
            steps=arguments.steps,
            step_size=arguments.step_size,
            schedule=arguments.schedule,
            optimizer=arguments.optimizer,
            momentum=arguments.momentum,
            masks_a_step=arguments.masks_a_step,
        ),
        black_box=BlackBoxSearch(
            proposals=arguments.search,
            queries=arguments.queries,
            masks_a_query=arguments.masks_a_step,
        )
        if by_asking
        else None,
        stride=stride,
        target=target,
    )
