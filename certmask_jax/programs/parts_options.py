"""``--two-parts``: a model as a stem and a head, and the threats as they arrive between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax.defenses.feature_grid import threat_on_cells
from certmask_jax.inference import views
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.models.parts_choice import in_two_parts
from certmask_jax.programs import defense_specs, evidence_entries, mask_entries
from certmask_jax.programs.command_line import hint, named
from certmask_jax.programs.spec_keys import Key, pairs, size, values

CELLS = "cells"
"""What stands for a model with local logits, which needs no keys."""

_KEYS = (
    Key("windows", size, "height x width in tokens"),
    Key("depth", int, "blocks"),
)


@dataclasses.dataclass(frozen=True)
class PartsOptions:
    """How a model is cut, as it was typed; both None for one with local logits."""

    text: str
    windows: tuple[int, int] | None = None
    depth: int | None = None


_CERTIFYING = (
    "run a stem once an image and a head for every mask of its features, as PatchCURE does",
    "the whole model for every masked image",
)


def add(group: Any, about: tuple[str, str] = _CERTIFYING) -> None:
    """Adds the option to an argument group; ``about`` says what it does, and the default."""
    group.add_argument(
        "--two-parts",
        metavar="windows=HxW,depth=K|cells",
        help=f"{about[0]}: of a ViT the first K blocks, in which the tokens of a window of "
        "HxW tokens look at each other alone (windows=14x2,depth=9), and the other blocks; of a "
        "model with local logits (BagNet) these, and their mean (cells). Masks are then those of "
        f"the map of features, in cells, for the windows of cells that patches reach "
        f"(default: {about[1]})",
    )


def read(text: str | None) -> PartsOptions | None:
    """From what was typed; ``ValueError`` names the option."""
    if text is None:
        return None
    if text == CELLS:
        return PartsOptions(text)
    given = dict(pairs(text, f"--two-parts {text}")) if "=" in text else {}
    known = [key.name for key in _KEYS]
    unknown = next((key for key in given if key not in known), None)
    if sorted(given) != sorted(known):
        like = "" if unknown is None else hint(unknown, known)
        raise ValueError(
            "--two-parts: expected windows and depth, such as windows=14x2,depth=9, or "
            f"{CELLS}, got {text!r}{like}"
        )
    try:
        chosen = values(_KEYS, given)
    except ValueError as error:
        raise ValueError(f"--two-parts {text}: {error}") from error
    windows = chosen["windows"]
    sides = (windows, windows) if isinstance(windows, int) else windows
    return PartsOptions(text, sides, chosen["depth"])


def check(config: Any, specs: Sequence[str]) -> None:
    """Refuses what does not go with a model in two parts.

    Args:
      config: of certification, of a model in two parts: cut by its ``two_parts``, or a user's own.
      specs: of the defenses.

    Raises:
      ValueError: naming the option that does not go with it.
    """
    beside = "a model in two parts" if config.two_parts is None else "--two-parts"
    for option, is_given, why in (
        ("--views", config.views != views.NONE, "a view of an image has its patch in other cells"),
        (
            "--hidden-tokens drop",
            config.hidden_tokens != "fill",
            "hidden windows are left out as it is",
        ),
        ("--whole-images", config.whole_images, "no masked image is evaluated whole"),
        ("--sizes", bool(config.threat.sizes), "several sizes reach windows of one size"),
        ("--fill", config.fill != "mean", "hidden features are left out, and nothing filled in"),
    ):
        if is_given:
            raise ValueError(f"{option}: expected none beside {beside}: {why}")
    named_so = next((spec for spec in specs if evidence_entries.is_on_evidence(spec)), None)
    if named_so is not None:
        raise ValueError(
            f"--defense {named_so}: expected a defense that masks beside {beside}, got one on "
            "local evidence; run it with the whole model"
        )


def check_whole(specs: Sequence[str]) -> None:
    """Refuses a defense of a whole model with masks that are for a map: one for every place.

    Raises:
      ValueError: naming it.
    """
    for text in specs:
        if evidence_entries.is_on_evidence(text):
            continue
        spec = defense_specs.parsed(text)
        keys = {key for key, _ in spec.keys}
        if spec.name == "patchcure" and not keys & set(mask_entries.KEYS):
            raise ValueError(
                f"--defense {text}: expected --two-parts beside it, whose map has few places, or "
                "masks, such as patchcure:masks_per_axis=6; its own are one for every place of the "
                "patch"
            )


def cut(model: Model, options: PartsOptions) -> Model:
    """The model in two parts; ``ValueError`` for one that cannot be cut so."""
    with named(f"--two-parts {options.text}"):
        if model.kind.parts is not None:
            raise ValueError(f"expected none for {model.name}, which is in two parts as it is")
        if options.windows is None and model.local is None:
            raise ValueError(
                f"expected a model with local logits (BagNet) for {CELLS}, got {model.name}; of a "
                "ViT give windows and depth"
            )
        return in_two_parts(model, windows=options.windows, depth=options.depth)


def on_cells(parts: TwoParts, attacks: Sequence[Threat]) -> list[Threat]:
    """The threats on the map; ``ValueError`` for a patch that reaches all of it."""
    with named("--patch", "patch_size"):
        return [parts.on_cells(threat) for threat in attacks]


def recorded_on_cells(known: Mapping[str, Any], attacks: Sequence[Threat]) -> list[Threat]:
    """The threats of a run as its tables have them, by what is recorded of its model."""
    facts = known["two_parts"]
    sizes = {name: tuple(facts[name]) for name in ("field", "stride", "seen_size") if name in facts}
    with named("--patch", "patch_size"):
        return [threat_on_cells(threat, **sizes) for threat in attacks]


def image_size_of(known: Mapping[str, Any], masked_size: tuple[int, int]) -> tuple[int, int]:
    """Pixels of the images of a run, whose tables have masks of ``masked_size``."""
    height, width = known["two_parts"]["image_size"] if "two_parts" in known else masked_size
    return int(height), int(width)
