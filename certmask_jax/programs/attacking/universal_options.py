"""The options of ``certmask attack --universal``: one patch for many images of a run."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from certmask_jax.attacks.stuck_patches import Transformations
from certmask_jax.programs.command_line import refuse
from certmask_jax.programs.number_options import number, whole

_OWN = ("held_out", "under", "brightness", "patch_scale", "images_a_step")
_OF_SEARCHES_OF_EACH = (
    *("search", "queries", "images", "places", "locations", "targets", "starts"),
    *("masks_a_step", "at_once", "patch_images", "scale_patch_images", "stride"),
)


@dataclasses.dataclass(frozen=True)
class UniversalOptions:
    """One field for each option of ``add``."""

    held_out: float
    under: str | None
    target: int | None
    transformations: Transformations
    images_a_step: int

    def facts(self) -> dict[str, Any]:
        """What decides the patch, JSON-able."""
        known = dataclasses.asdict(self)
        return {name: value for name, value in known.items() if value is not None}


def add(group: argparse._ArgumentGroup) -> None:
    """Adds the options to a group of a command line."""
    group.add_argument(
        "--universal",
        action="store_true",
        help="search one patch for many images of RUN_FOLDER, wherever it is put, and put it on "
        "all of them (default: a patch for each image)",
    )
    group.add_argument(
        "--held-out",
        type=number(least=0, below=1),
        default=0.5,
        metavar="X",
        help="share of the images that it is not made on, by --attack-seed (default: %(default)s)",
    )
    group.add_argument(
        "--under",
        metavar="DEFENSE",
        help="make it under the masks of this defense, as --defense names it: in each step one of "
        "its masked images is drawn for each image (default: on whole images)",
    )
    group.add_argument(
        "--target",
        type=whole(0),
        metavar="CLASS",
        help="the output of the model that is to be said, also by searches without --universal, "
        "which go on until it is (default: any that is not the true class)",
    )
    for option, what in (
        ("--brightness", "its levels are multiplied by a number between these"),
        ("--patch-scale", "it is made smaller by a factor between these, at most 1"),
    ):
        group.add_argument(
            option,
            type=_range,
            default=(1.0, 1.0),
            metavar="LOW,HIGH",
            help=f"{what}, drawn for each image of a step (default: 1,1)",
        )
    group.add_argument(
        "--images-a-step",
        type=whole(1),
        default=32,
        metavar="N",
        help="images that a step looks at (default: %(default)s)",
    )


def read(arguments: argparse.Namespace) -> UniversalOptions | None:
    """Arguments -> options, None without ``--universal``.

    Raises:
      ValueError: for options that do not go together.
    """
    if not arguments.universal:
        typed = [option for dest, option in arguments.typed.items() if dest in _OWN]
        refuse(typed, "without --universal")
        return None
    typed = [option for dest, option in arguments.typed.items() if dest in _OF_SEARCHES_OF_EACH]
    refuse(typed, "with --universal, which is one patch for many images")
    if arguments.run is None:
        raise ValueError(
            "--universal: expected RUN_FOLDER, a run of certify, whose images it is for"
        )
    low, high = arguments.brightness
    if low <= 0:
        raise ValueError(f"--brightness: expected numbers above 0, got {low:g},{high:g}")
    least, most = arguments.patch_scale
    if not 0 < least <= most <= 1:
        raise ValueError(
            f"--patch-scale: expected numbers above 0 and at most 1, got {least:g},{most:g}"
        )
    return UniversalOptions(
        arguments.held_out,
        arguments.under,
        arguments.target,
        Transformations(brightness=arguments.brightness, scale=arguments.patch_scale),
        arguments.images_a_step,
    )


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH, such as 0.8,1.2, got {text!r}")
    return low, high
