"""From a defense and a model to what a search sees of them."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from certmask_jax.attacks.attacked_evidence import OnBands, OnLocalLogits
from certmask_jax.attacks.attacked_model import AskedModel, Attacked, Undefended
from certmask_jax.attacks.attacked_tables import MOST_COLUMNS, OnTable
from certmask_jax.defenses.band_defense import BandDefense
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing


def attacked(
    defense: Defense | EvidenceDefense | None,
    apply_fn: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    local: LocalLogits | None = None,
    preprocessing: Preprocessing | None = None,
    mesh: Mesh | None = None,
    most_columns: int = MOST_COLUMNS,
) -> Attacked:
    """A defense of a model as a search sees it.

    Args:
      defense: None for the model itself.
      apply_fn, params, preprocessing: the model, see ``attack_images``.
      image_shape: ``(h, w, c)``.
      local: its local logits, for a defense on these.
      mesh: 1-D mesh; all devices of this process by default.
      most_columns: masked images of an image that a search looks at all of; of more the answers
        alone are asked for.

    Raises:
      ValueError: for a defense on local logits without these.
    """
    shown = Preprocessing() if preprocessing is None else preprocessing
    on = device_mesh() if mesh is None else mesh
    model = AskedModel(apply_fn, params, image_shape, shown, on)
    if defense is None:
        return Undefended(model)
    if isinstance(defense, BandDefense):
        return OnBands(defense, model)
    if isinstance(defense, LocalDefense):
        if local is None:
            raise ValueError(
                f"local: expected the local logits of the model for {defense.name}, got None"
            )
        return OnLocalLogits(defense, local, model)
    if isinstance(defense, EvidenceDefense):
        raise ValueError(f"defense: expected one on local logits or on bands, got {defense}")
    return OnTable(defense, model, most_columns=most_columns)
