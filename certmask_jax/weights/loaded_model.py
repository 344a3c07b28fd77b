"""From a model's name and a file of weights to all that ``predict`` and ``defended`` take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax import models
from certmask_jax._settings import SettingError, as_keyword
from certmask_jax.data import preprocess
from certmask_jax.data.decoding import decode
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Precision, Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.views import Views
from certmask_jax.inference.views import read as read_views
from certmask_jax.models import DataConfig, Model, Params
from certmask_jax.models.output_choice import viewed
from certmask_jax.models.spellings import resolve
from certmask_jax.weights import loading
from certmask_jax.weights.addresses import Address, card_of
from certmask_jax.weights.stored import WeightsFile

AnyFile = str | os.PathLike[str]
AnyWeights = AnyFile | Address


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its weights and its preprocessing; ``load_model`` makes it.

    Attributes:
      model: the architecture, its data config and number of classes.
      params: its variables, ``float32``.
      preprocessing: from ``uint8`` pixels of ``image_size`` to what the model sees.
      weights_entry: which of several sets of weights in the file these are; None where it has one.
    """

    model: Model
    params: Params = dataclasses.field(repr=False)
    preprocessing: Preprocessing
    weights_entry: str | None = None

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"LoadedModel({self.model.name!r}, images uint8 [B, {height}, {width}, "
            f"{self.channels}], {self.num_classes} classes)"
        )

    @property
    def apply_fn(self) -> ApplyFn:
        """``(params, normalised images float32[B, h, w, c]) -> logits float32[B, K]``."""
        return self.model.apply_fn

    @property
    def local(self) -> LocalLogits | None:
        """The model's local logits, where it has any (BagNet); a guard with them does less work."""
        return self.model.local

    @property
    def dropping(self) -> TokenDropping | None:
        """How the model drops hidden tokens, where it is a ViT without views; for those who ask."""
        return self.model.dropping

    @property
    def num_classes(self) -> int:
        """K."""
        return self.model.num_classes

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the images that the model takes; masks are built for it."""
        return self.model.data_config.input_size

    @property
    def channels(self) -> int:
        """3 (RGB) or 1 (grey)."""
        return self.model.data_config.channels

    @property
    def data_config(self) -> DataConfig:
        """How the weights want images resized, cropped and normalised."""
        return self.model.data_config

    def images(self, files: Iterable[AnyFile]) -> NDArray[np.uint8]:
        """Image files as the model takes them: ``uint8[B, h, w, c]``.

        Decoded by Pillow, resized and cropped as the data config says; all in memory at once.

        Args:
          files: paths, B >= 1.

        Raises:
          UnreadableImage: (a ``ValueError``) naming a file that cannot be read or decoded.
          ValueError: for no files, or one path in place of several.
        """
        if isinstance(files, str | bytes | os.PathLike):
            raise ValueError(f"files: expected several paths, got one; give [{os.fspath(files)!r}]")
        paths = [Path(file) for file in files]
        if not paths:
            raise ValueError("files: expected at least 1 path, got none")
        return np.stack([preprocess(decode(p, str(p)), self.data_config, str(p)) for p in paths])


def load_model(
    name: str | None = None,
    file: AnyWeights | WeightsFile | None = None,
    *,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    entry: str | None = None,
    resize_positions: bool = False,
    gelu: str | None = None,
    pooling: str | None = None,
    attention: str | None = None,
    views: Views | None = None,
    fill: float | Sequence[float] | None = None,
    precision: Precision = "highest",
) -> LoadedModel:
    """A model by name with the weights of a file.

    Args:
      name: as in ``create``: ``"vit_b16"``, timm's name, PatchCleanser's. None for weights of
        ``hf:OWNER/NAME`` or ``timm:NAME``, whose card says it.
      file: as in ``load``; None for the weights that ship with a model. Where it has a card, that
        says the preprocessing too; an ``input_size`` or a model for another size wins over it.
      num_classes: K; by default what the name says, else as many as the head in the file has.
      input_size: side, or ``(height, width)``, in pixels, other than the model's own.
      entry: which set of weights, where the file has several.
      resize_positions: resize a ViT's position embeddings to ``input_size``.
      gelu, pooling, attention: of a ViT, as in ``create``; Google's own
        weights were trained with ``gelu="tanh"``.
      views: average the logits over views of each image, such as ``"mirror"``: ``apply_fn`` then
        does it, and ``local`` and ``dropping`` are None. See ``with_views``.
      fill: pixel value in [0, 255], one or one a channel, that masked pixels take; None for the
        model's mean colour.
      precision: of the products, as in ``Preprocessing``.

    Raises:
      FileNotFoundError: when there is no such file.
      OSError: when the system cannot read it.
      ValueError: for a name, an option or views that there are not, a model that ships without
        weights, or a file that is not the model (see ``load``).
    """
    if file is None:
        file = None if name is None else models.default_weights(name)
        if file is None:
            if name is not None:
                models.create(name)  # for its error about the name
            raise ValueError(
                f"file: expected the weights of model {name!r}; only {models.DEFAULT} ships with "
                "weights"
            )
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    options: dict[str, Any] = {
        "input_size": size,
        "gelu": gelu,
        "pooling": pooling,
        "attention": attention,
    }
    read_views(views)  # its errors come before the file is opened, and so do those of the model
    card = file.card if isinstance(file, WeightsFile) else card_of(file)
    if card is None and name is None:
        raise ValueError(
            f"name: expected that of a model, as nothing says what the weights of {file} are of"
        )
    if card is not None:
        name = name or card.model_name()
        card.check_is(name)
        options = {**card.options(), **{k: v for k, v in options.items() if v is not None}}
    assert name is not None
    said = num_classes
    if said is None:
        said = resolve(name).num_classes if card is None else card.num_classes
    models.create(name, num_classes=said, **options)
    opened = file if isinstance(file, WeightsFile) else loading.read(file)
    classes = loading.num_classes(opened, entry=entry) if said is None else said
    model = models.create(name, num_classes=classes, **options)
    model = model if card is None else card.prepared(model, size)
    config = model.data_config
    preprocessing = Preprocessing(
        mean=config.mean,
        std=config.std,
        fill=(fill,) if isinstance(fill, int | float) else None if fill is None else tuple(fill),
        precision=precision,
    )
    preprocessing.check_channels(config.channels)
    try:
        taken = loading.taken(opened, model, entry=entry)
        params = loading.load(opened, model, entry=entry, resize_positions=resize_positions)
    except SettingError as error:
        raise ValueError(error.said_with(_named)) from error
    return LoadedModel(viewed(model, views), params, preprocessing, taken.entry)


def _named(keyword: str, value: Any) -> str:
    """A setting as ``load_model`` has it; an untrained head is no model to load."""
    said = as_keyword(keyword, value)
    return f"weights.load(..., {said})" if keyword == "new_head" else said
