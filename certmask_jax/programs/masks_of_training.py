"""Which masks training hides, and which defense a trained model is evaluated with at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from certmask_jax import defenses, mask_sets
from certmask_jax._text import counted
from certmask_jax.inference.bounded_model import BoundedModel
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.programs import mask_specs
from certmask_jax.programs.command_line import named
from certmask_jax.programs.threat_options import read_patch
from certmask_jax.training import Recipe, cutout

_OF_IMAGES = "masks_per_axis=6"
_OF_CELLS = "mask_stride=1"  # PatchCURE's own: as large as the window, one cell apart


class AtTheEnd(NamedTuple):
    """A defense, what is said of it, and the model function that it is of."""

    defense: defenses.Defense
    about: str
    apply_fn: ApplyFn


def read(model: Model, arguments: argparse.Namespace) -> tuple[MaskSet, ...]:
    """The masks of ``--cutout-masks``, a set for each ``--cutout-patch``.

    Of a model in two parts they are masks of cells, for what the patches reach.

    Raises:
      ValueError: naming the option.
    """
    size, parts = model.data_config.input_size, model.kind.parts
    keys = arguments.cutout_masks
    sets = []
    for text in arguments.cutout_patch or ["2%"]:
        threat = Threat.of(size, read_patch(text, size, "--cutout-patch"))
        if parts is not None:
            with named(f"--cutout-patch {text}", "patch_size"):
                threat = parts.on_cells(threat)
        usual = _OF_IMAGES if parts is None else _OF_CELLS
        sets.append(mask_specs.read(keys or usual, threat, "--cutout-masks"))
    return tuple(sets)


def at_the_end(recipe: Recipe, model: Model, masks: Sequence[MaskSet]) -> AtTheEnd:
    """Double masking, votes of the bands or the bounds that were trained, or PatchCURE's masking.

    Blocks stand beside each other, as all of them would be as many as pixels. A model in two parts
    has the masks that it was trained on, if there are any.

    Raises:
      ValueError: for bands so wide that a patch meets all of them, or a map whose cells it all
        reaches.
    """
    size, parts = model.data_config.input_size, model.kind.parts
    patch = max(1, round(size[0] / 10))
    if parts is not None:
        return _of_cells(parts, masks[0] if masks else None, patch)
    if recipe.bounds_patch:
        side = recipe.bounds_patch
        places = defenses.interval_bounds(mask_sets.budgeted_grid(size, side, mask_stride=1))
        return AtTheEnd(places, f"{side} px patch, interval bounds", BoundedModel(model.apply_fn))
    if recipe.cutout not in cutout.BANDS:
        masking = defenses.double_masking(mask_sets.budgeted_grid(size, patch, masks_per_axis=4))
        return AtTheEnd(masking, f"{patch} px patch, double masking 4x4", model.apply_fn)
    band = recipe.cutout_band or cutout.default_band(size)
    stride = band if recipe.cutout == "blocks" else 1
    try:
        bands = getattr(mask_sets, recipe.cutout)(size, patch, band=band, stride=stride)
    except ValueError as error:
        raise ValueError(f"--cutout-band {band}: {error}") from error
    about = f"votes of {len(bands)} {recipe.cutout.replace('_', ' ')}"
    return AtTheEnd(defenses.plurality(bands), f"{patch} px patch, {about}", model.apply_fn)


def _of_cells(parts: TwoParts, masks: MaskSet | None, patch: int) -> AtTheEnd:
    if masks is None:
        with named("--two-parts", "patch_size"):
            threat = parts.on_cells(Threat.of(parts.image_size, patch))
        masks = mask_specs.read(_OF_CELLS, threat, "--two-parts")
    windows = str(masks.threat).replace(" patches", "", 1)
    about = f"windows of {windows} cells, patchcure with {counted(len(masks), 'mask')}"
    return AtTheEnd(defenses.patchcure(masks), about, parts)
