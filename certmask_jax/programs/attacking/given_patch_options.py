"""The options of ``certmask attack`` that give patches instead of searching for them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from certmask_jax.programs import paths
from certmask_jax.programs.command_line import check_not_typed

_OF_SEARCHES = (
    *("search", "queries"),
    *("images", "places", "locations", "targets", "starts", "steps", "masks_a_step", "at_once"),
    *("target", "stride"),
    *("step_size", "schedule", "optimizer", "momentum"),
)


@dataclasses.dataclass(frozen=True)
class GivenOptions:
    """One field for each option of ``add``."""

    patches: Path
    scale: bool


def add(group: argparse._ArgumentGroup) -> None:
    """Adds the options of patches that are given."""
    group.add_argument(
        "--patch-images",
        type=paths.local_path,
        metavar="PATH",
        help="search no patches: paste these on the images of RUN_FOLDER. An image, a folder of "
        "images, or an .npz with patches (P, h, w, c; uint8 or in [0, 1]) and perhaps names; none "
        "may be larger than the patch of the run (default: patches are searched for)",
    )
    group.add_argument(
        "--scale-patch-images",
        action="store_true",
        help="resize them (bicubic) to the patch of the run, the largest if it has several shapes; "
        "a resized patch is another one, and may be weaker (default: as large as they are)",
    )


def read(arguments: argparse.Namespace) -> GivenOptions | None:
    """Arguments -> options of given patches; ``ValueError`` for those that do not go with them."""
    if arguments.patch_images is None:
        if arguments.scale_patch_images:
            raise ValueError("--scale-patch-images: expected --patch-images beside it")
        return None
    check_not_typed(arguments, _OF_SEARCHES, "with --patch-images, which are not searched for")
    if arguments.run is None:
        raise ValueError(
            "--patch-images: expected RUN_FOLDER, a run of certify, whose images they are put on"
        )
    return GivenOptions(arguments.patch_images, arguments.scale_patch_images)
