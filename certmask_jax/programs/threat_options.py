"""The options that say what attacks: ``--patch``, ``--patch-area``, ``--patches`` and more."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from certmask_jax.masks import geometry
from certmask_jax.masks.rectangles import rectangles_of_area
from certmask_jax.masks.threats import Box, Threat
from certmask_jax.programs import spec_keys
from certmask_jax.programs.command_line import named
from certmask_jax.programs.threat_entries import THREATS

_DEFAULT = "1%"
_IN_OWN_PIXELS = "in the data set's own pixels"
_BY_DEFAULT = f"--patch (the default of {_DEFAULT})"
_MOST_SIZES = 1000


@dataclasses.dataclass(frozen=True)
class ThreatOptions:
    """A threat as it is given on the command line; the defaults are those of the options."""

    patch: tuple[str, ...] = ()
    patch_area: str | None = None
    patches: int = 1
    patch_region: str | None = None
    sizes: tuple[str, ...] = ()  # instead of patch: one threat after another, smallest first

    def about(self) -> dict[str, Any]:
        """What the identity of a run says of it, without what is as usual."""
        patch = list(self.patch) or ([] if self.patch_area or self.sizes else [_DEFAULT])
        facts: dict[str, Any] = {
            "patch_area": self.patch_area,
            "patch_region": self.patch_region,
            "sizes": list(self.sizes) or None,
        }
        more = {} if self.patches == 1 else {"patches": self.patches}
        return {"patch": patch, **{k: v for k, v in facts.items() if v is not None}, **more}


def add(group: argparse._ArgumentGroup) -> None:
    """Adds the options, one for each of ``THREATS``."""
    for entry in THREATS:
        entry.add(group)


def read(arguments: argparse.Namespace) -> ThreatOptions:
    """From the parsed command line; ``ValueError`` for what goes without an image size."""
    if arguments.patch and arguments.patch_area:
        raise ValueError("--patch-area: expected it or --patch, got both")
    if arguments.sizes is not None and (arguments.patch or arguments.patch_area):
        raise ValueError("--sizes: expected either --patch or --sizes, got both")
    options = ThreatOptions(
        tuple(arguments.patch or ()),
        arguments.patch_area,
        arguments.patches,
        arguments.patch_region,
        () if arguments.sizes is None else read_sizes(arguments.sizes),
    )
    for text in options.patch:
        if not all(part.strip() for part in re.split("[,+]", text)):
            raise ValueError(
                f"--patch: expected sizes such as 5, 5x9 or 2%, with commas between, got {text!r}"
            )
    if len({text.count(",") for text in options.patch}) > 1:
        raise ValueError(
            "--patch: expected as many sizes with commas each time (the shapes of the first threat "
            f"come first, ...), got {' and '.join(options.patch)}"
        )
    return options


def recorded(known: Mapping[str, Any]) -> ThreatOptions | None:
    """From what ``ThreatOptions.about`` said; None if it did not."""
    if not known.get("patch") and "patch_area" not in known and "sizes" not in known:
        return None
    return ThreatOptions(
        tuple(known.get("patch", ())),
        known.get("patch_area"),
        known.get("patches", 1),
        known.get("patch_region"),
        tuple(known.get("sizes", ())),
    )


def is_native(known: Mapping[str, Any]) -> bool:
    """Whether a run says that its patches are in the data set's own pixels."""
    said = known.get("native_patches")
    if said is None:  # a run of before that was recorded, which has a sentence of it
        return str(known.get("patch_lives", "")).startswith(_IN_OWN_PIXELS)
    return bool(said)


def threats(options: ThreatOptions, image_size: tuple[int, int]) -> list[Threat]:
    """What the options mean on an image.

    Raises:
      ValueError: for sizes, areas and regions that cannot be read or do not fit, naming the option.
    """
    region = None
    if options.patch_region is not None:
        region = _box(options.patch_region)
        with named(f"--patch-region {options.patch_region}"):
            Threat.of(image_size, 1, region=region)  # its own errors first: any patch fits an image
    if options.patch_area is not None:
        areas = [read_area(text, image_size) for text in options.patch_area.split(",")]
        size = image_size
        if region is not None:
            size = (region[2] - region[0], region[3] - region[1])
        shapes: list[tuple[tuple[int, int], ...]] = [rectangles_of_area(size, a) for a in areas]
        words = [f"--patch-area {options.patch_area}"] * len(areas)
    else:
        option, given = _given(options)
        each = list(zip(*[text.split(",") for text in given], strict=True))
        if any("+" in text for one in each for text in one):
            return [_at_once(one, options, image_size, region) for one in each]
        words = [f"{option} {' '.join(one)}" if option else _BY_DEFAULT for one in each]
        shapes = [
            tuple(read_patch(text, image_size, option or _BY_DEFAULT) for text in one)
            for one in each
        ]
    attacks = []
    for what, of_one in zip(words, shapes, strict=True):
        with named(what, "patch_size"):
            attacks.append(Threat.of(image_size, *of_one, patches=options.patches, region=region))
    return attacks


def _given(options: ThreatOptions) -> tuple[str, tuple[str, ...]]:
    """The option that says the sizes, empty for the default, and what it says."""
    if options.sizes:
        return "--sizes", (",".join(options.sizes),)
    return ("--patch", options.patch) if options.patch else ("", (_DEFAULT,))


def _at_once(
    one: tuple[str, ...], options: ThreatOptions, image_size: tuple[int, int], region: Box | None
) -> Threat:
    """``"5+3"``: patches of different sizes at once."""
    option, _ = _given(options)
    what = f"{option} {' '.join(one)}"
    if len(one) > 1 or options.patches > 1:
        raise ValueError(
            f"{what}: expected sizes joined by + (patches at once) without other shapes or "
            "--patches"
        )
    sizes = [read_patch(text, image_size, option) for text in one[0].split("+")]
    with named(what, "patch_size"):
        return Threat(
            image_size, tuple((size,) for size in sizes), () if region is None else (region,)
        )


def read_sizes(text: str) -> tuple[str, ...]:
    """``"1-3,5x9,2%"`` -> ("1", "2", "3", "5x9", "2%"): patches as ``--patch`` takes them."""
    sizes: list[str] = []
    for item in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,99})\s*-\s*([0-9]{1,99})\s*", item)
        if not item.strip() or (ends and not 1 <= int(ends[1]) <= int(ends[2])):
            raise ValueError(
                "--sizes: expected patch sizes from the smallest to the largest, such as 1-12, or "
                f"2,5,9 or 1%,2%,3%, got {text!r}"
            )
        if ends and int(ends[2]) - int(ends[1]) >= _MOST_SIZES:
            raise ValueError(f"--sizes: expected at most {_MOST_SIZES} sizes, got {text!r}")
        sizes += map(str, range(int(ends[1]), int(ends[2]) + 1)) if ends else [item.strip()]
    return tuple(sizes)


def read_patch(text: str, image_size: tuple[int, int], option: str = "--patch") -> tuple[int, int]:
    """``"5"``, ``"5x9"`` (height x width) or ``"2.4%"`` of the pixels -> pixels.

    Raises:
      ValueError: beginning with ``option``, for what cannot be read or does not fit.
    """
    with named(option, "patch_size", "patch percent"):
        if text.endswith("%"):
            return geometry.patch_size_from_percent(_percent(text, option), image_size)
        patch = geometry.as_size(spec_keys.size(text))
        geometry.check_patch_fits(image_size, patch)
        return patch


def read_area(text: str, image_size: tuple[int, int]) -> int:
    """``"37"`` or ``"1%"`` of the pixels, rounded down -> pixels."""
    everything = image_size[0] * image_size[1]
    if text.endswith("%"):
        percent = _percent(text, "--patch-area")
        area = math.floor(percent * everything / 100) if math.isfinite(percent) else 0
        if area == 0 < percent < math.inf:
            raise ValueError(
                f"--patch-area: expected at least 1 pixel, but {text} of the {everything} pixels "
                f"of {image_size[0]}x{image_size[1]} are {percent * everything / 100:.2g}; give "
                "pixels, or more percent"
            )
    else:
        area = int(text) if spec_keys.is_number(text) else 0
    if not 1 <= area <= everything:
        raise ValueError(
            f"--patch-area: expected 1 to {everything} pixels, or a percent of them such as 1%, "
            f"got {text!r}"
        )
    return area


def _percent(text: str, option: str) -> float:
    try:
        if text.isascii() and "_" not in text:
            return float(text[:-1])
    except ValueError:
        pass
    raise ValueError(f"{option}: expected a percent such as 2.4%, got {text!r}")


def _box(text: str) -> Box:
    parts = text.split(",")
    if len(parts) != 4 or not all(map(spec_keys.is_number, parts)):
        raise ValueError(f"--patch-region: expected TOP,LEFT,BOTTOM,RIGHT in pixels, got {text!r}")
    top, left, bottom, right = map(int, parts)
    return top, left, bottom, right
