"""What can attack, as it is typed: the table that options, the list and the docs are made from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from certmask_jax.programs.number_options import whole

_MOST_PATCHES = 100


@dataclasses.dataclass(frozen=True)
class ThreatEntry:
    """One option.

    Attributes:
      name: without its dashes.
      metavar: what it is given.
      about: its line of help, in which a percent sign is one.
      examples: what is typed, and what attacks then.
      default: what ``--help`` says of it, if it is not typed.
      read: what reads it; None: a text, which is read when the size of the images is known.
      usual: its value if it is not typed.
      repeated: whether it may be typed several times.
    """

    name: str
    metavar: str
    about: str
    examples: Mapping[str, str]
    default: str
    read: Callable[[str], Any] | None = None
    usual: Any = None
    repeated: bool = False

    def add(self, group: argparse._ArgumentGroup) -> None:
        """Adds the option to a group of a command line."""
        kind: dict[str, Any] = {} if self.read is None else {"type": self.read}
        group.add_argument(
            f"--{self.name}",
            action="append" if self.repeated else "store",
            default=self.usual,
            metavar=self.metavar,
            help=f"{self.about} (default: {self.default})".replace("%", "%%"),
            **kind,
        )


THREATS = (
    ThreatEntry(
        "patch",
        "SIZE[,SIZE...]",
        "pixels (5, or 5x9: height x width) or percent of the pixels (2%), of the image that "
        "the model sees, or see --patch-lives. Repeat it for a patch that may have any of these "
        "shapes (--patch 5x9 --patch 9x5); with commas, one threat after another, with rows of its "
        "own (--patch 1%,2%,3%); with +, patches at once, which may overlap (--patch 5+3)",
        {
            "--patch 5": "a square of 5x5 pixels, anywhere",
            "--patch 5x9": "a rectangle, 5 pixels high",
            "--patch 2%": "the square of at most that share of the pixels",
            "--patch 5x9 --patch 9x5": "a patch of any of these shapes",
            "--patch 1%,2%,3%": "one threat after another, each with rows of its own",
            "--patch 5+3": "two patches at once, of these sizes",
        },
        "1%",
        repeated=True,
    ),
    ThreatEntry(
        "patch-area",
        "AREA[,AREA...]",
        "instead of --patch: a patch of any shape (upright rectangles) with at most that many "
        "pixels, or percent of the pixels (1%)",
        {"--patch-area 25": "any rectangle of at most 25 pixels"},
        "--patch",
    ),
    ThreatEntry(
        "sizes",
        "A-B|A,B,...",
        "the largest patch for which each defense certifies an image, and the curve of "
        "accuracy against patch size: patches from A to B pixels a side, or those listed (as for "
        "--patch), each inside the next. Every defense that masks is there with masks built for "
        "each size, and as one classifier, with masks built for the largest; one on evidence as "
        "it is against each size",
        {"--sizes 1-8": "every square from 1 to 8 pixels a side: the largest that is certified"},
        "--patch",
    ),
    ThreatEntry(
        "patches",
        "K",
        "how many patches there may be at once; they may overlap",
        {"--patches 2": "two of them at once, anywhere"},
        "1",
        read=whole(1, _MOST_PATCHES),
        usual=1,
    ),
    ThreatEntry(
        "patch-region",
        "TOP,LEFT,BOTTOM,RIGHT",
        "patches lie inside this box of pixels; masks are then made for it alone",
        {"--patch-region 0,0,16,32": "inside the box of the first 16 rows and 32 columns"},
        "anywhere",
    ),
)
