"""Numbers of the command line: whole or not, within bounds, in plain digits."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

MOST_SEED = 2**32 - 2
"""JAX cuts larger seeds off without a word, and training uses the next one too."""


def whole(least: int, most: int | None = None, *, what: str = "") -> Callable[[str], int]:
    """argparse's type of a whole number from ``least`` to ``most``; ``what`` is said of them."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,4000}\s*", text):
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected {what}at least {least}, got {value}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"expected {what}at most {most}, got {value}")
        return value

    return read


def number(
    *, least: float | None = None, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    """argparse's type of a finite number within bounds."""
    ends = (("at least", least), ("more than", above), ("less than", below))
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in ends if bound is not None)

    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"expected a number, {bounds}, got {text!r}"
            ) from error
        good = (
            math.isfinite(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not good:
            more = "" if math.isfinite(value) else " and finite"
            raise argparse.ArgumentTypeError(f"expected {bounds}{more}, got {text!r}")
        return value

    return read


seed = whole(0, MOST_SEED, what="a seed of ")
"""argparse's type of a seed."""
