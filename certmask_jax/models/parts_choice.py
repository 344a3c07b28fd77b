"""A model of the registry in two parts, by what there is of it: tokens, or local logits."""

from __future__ import annotations

import dataclasses

from certmask_jax.inference.two_parts import of_local_logits
from certmask_jax.masks.geometry import Size
from certmask_jax.models.named_models import Model


def in_two_parts(model: Model, *, windows: Size | None = None, depth: int | None = None) -> Model:
    """The model whose ``apply_fn`` is in two parts, a ``TwoParts``, with its own parameters.

    A ViT is cut after ``depth`` blocks, which look within windows of tokens (``vit_in_two_parts``).
    Of a model with local logits, such as a BagNet, these are the features, and their mean over the
    cells that are seen the head (``of_local_logits``). ``predict``, ``defended`` and ``evaluate``
    take the ``apply_fn`` as any other; masks are built for the ``grid`` of it, and for the threat
    that its ``on_cells`` gives.

    Args:
      model: as ``models.create`` gives it.
      windows, depth: of ViTs, both.

    Raises:
      ValueError: for a model that is neither, windows or a depth that it cannot have or that are
        missing.
    """
    if model.local is not None:
        if windows is not None or depth is not None:
            raise ValueError(
                f"windows: expected none for {model.name}, whose local logits are the features"
            )
        parts = of_local_logits(model.local, model.data_config.input_size)
    elif not hasattr(model.module, "pooling"):
        raise ValueError(
            "two parts: expected a ViT, or a model with local logits such as a BagNet, got "
            f"{model.name}"
        )
    elif windows is None or depth is None:
        raise ValueError(
            f"windows: expected windows and depth for {model.name}, such as windows=(14, 2) and "
            "depth=9"
        )
    else:
        from certmask_jax.models.split_vit import vit_in_two_parts  # which imports Flax

        parts = vit_in_two_parts(model, windows=windows, depth=depth)
    return dataclasses.replace(model, apply_fn=parts, local=None, dropping=None)
