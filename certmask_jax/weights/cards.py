"""What timm says of published weights beside the numbers: which model, and how it wants its images.

timm keeps it in ``config.json`` of a repository, and in its table of weights (``pretrained_cfg``).
Weights of one architecture differ in what they were trained with: another mean, another crop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from certmask_jax.models import DataConfig, Model
from certmask_jax.models.published import MODELS
from certmask_jax.models.spellings import resolve

_UNDERSTOOD = ("img_size", "num_classes", "in_chans", "global_pool")
"""Arguments of timm's models that are taken from a card or checked against it here."""
_TIMMS_OWN = {
    f"efficientnet_lite{number}": "timm's own padding and norms (the model that is here is its "
    f"tf_efficientnet_lite{number}, whose weights have the same names)"
    for number in range(5)
}
"""Models of timm's that have the name of another one here."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What is said of a set of weights.

    Attributes:
      where: what it was said of, for errors.
      architecture, tag: timm's name of the model, and of the weights (``""`` for none).
      num_classes: K; None for weights without a head.
      data_config: how the weights want images.
      pooling: timm's word for what the head looks at; None where it says nothing.
      others: arguments of the model that are not understood here.
      label_names: what the K outputs are, where it says that; else empty.
    """

    where: str
    architecture: str
    tag: str
    num_classes: int | None
    data_config: DataConfig
    pooling: str | None = None
    others: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    def model_name(self) -> str:
        """The model, by a name that ``models.create`` takes: timm's, with the tag if that is known.

        Raises:
          ValueError: for a model that is not here.
        """
        for name in (f"{self.architecture}.{self.tag}", self.architecture):
            with contextlib.suppress(ValueError):
                resolve(name)
                self._check_others()
                return name
        self._check_others()
        raise ValueError(
            f"model: expected one that is here, got {self.architecture!r}, of which the weights of "
            f"{self.where} are (models.names() lists those that are)"
        )

    def check_is(self, name: str) -> None:
        """``ValueError`` unless a model of ``models.create`` is what the weights are of.

        It may be the same model for another size of image.
        """
        mine, theirs = (
            MODELS[resolve(one).model].build(num_classes=1, is_training=False)
            for one in (name, self.model_name())
        )
        if mine != theirs:  # modules compare by their fields
            raise ValueError(
                f"model: expected {self.model_name()}, of which the weights of {self.where} are by "
                f"their card, got {name}; leave it out"
            )

    def options(self) -> dict[str, str]:
        """Keywords of ``models.create`` that the weights want, beside the name."""
        module = MODELS[resolve(self.model_name()).model].build(num_classes=1, is_training=False)
        is_mean = self.pooling == "avg" and hasattr(module, "pooling")
        return {"pooling": "mean"} if is_mean else {}

    def prepared(self, model: Model, input_size: tuple[int, int] | None) -> Model:
        """A model with the preprocessing of the weights, but for a size that was asked for.

        Args:
          model: what ``models.create`` gave for a name that ``check_is`` lets pass.
          input_size: as it was given there; None where it was not.
        """
        asked = resolve(model.name)
        config = self.data_config
        other = asked.model != resolve(self.model_name()).model  # the same for another size
        if input_size is not None or other or asked.resizes_whole:
            own = model.data_config
            config = dataclasses.replace(config, input_size=own.input_size, resize=own.resize)
        return dataclasses.replace(model, data_config=config)

    def of_trained(self, model: Model) -> Card:
        """The card of weights that were made from these for ``model``, which ``prepared`` gave.

        Args:
          model: with the size of images and the outputs that the weights have now. Of other outputs
            nobody has said what they are.
        """
        is_same = model.num_classes == self.num_classes
        return dataclasses.replace(
            self,
            architecture=model.name,
            tag="",
            num_classes=model.num_classes,
            data_config=model.data_config,
            label_names=self.label_names if is_same else (),
        )

    def _check_others(self) -> None:
        if self.others:
            raise ValueError(
                f"model: expected one as it is published, but the card of {self.where} builds "
                f"{self.architecture} with {', '.join(self.others)}, which is not known here; give "
                "a model of your own"
            )


def of_timm(facts: Mapping[str, Any], where: str) -> Card | None:
    """A card from what timm writes; None for facts that are not of timm's form.

    Args:
      facts: of ``config.json``, today's or the older one that is all one level; or
        ``{"architecture": ..., "pretrained_cfg": ...}``.
      where: what they are said of, for errors.

    Raises:
      ValueError: for a preprocessing that cannot be read or is not known here.
    """
    if not isinstance(facts.get("architecture"), str):
        return None
    cfg = facts.get("pretrained_cfg", facts)
    arguments = facts.get("model_args") or {}
    others = [f"{k}={v}" for k, v in arguments.items() if k not in _UNDERSTOOD]
    if facts["architecture"] in _TIMMS_OWN:
        others.append(_TIMMS_OWN[facts["architecture"]])
    try:
        classes = facts.get("num_classes", cfg.get("num_classes"))
        return Card(
            where,
            facts["architecture"],
            str(cfg.get("tag") or ""),
            int(classes) if classes else None,
            _data_config(cfg, arguments),
            facts.get("global_pool", arguments.get("global_pool")),
            tuple(others),
            _label_names(facts.get("label_names", cfg.get("label_names"))),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where}: expected a preprocessing as timm writes it on the card ({error})"
        ) from error


def _label_names(said: Any) -> tuple[str, ...]:
    """The outputs by name; none where it is no list of names."""
    is_names = isinstance(said, list | tuple) and all(isinstance(one, str) for one in said)
    return tuple(said) if is_names else ()


def _data_config(cfg: Mapping[str, Any], arguments: Mapping[str, Any]) -> DataConfig:
    """timm's way of evaluation: the shorter side to side / crop_pct, and the centre of that."""
    channels, height, width = map(int, cfg.get("input_size", (3, 224, 224)))
    channels = int(arguments.get("in_chans") or channels)
    side = arguments.get("img_size")
    if side is not None:
        height, width = (side, side) if isinstance(side, int) else map(int, side)
    if channels not in (1, 3) or min(height, width) < 1:
        raise ValueError(f"input_size: expected 1 or 3 channels and sides, got {cfg['input_size']}")
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            f"crop_mode: expected squash, or center of a square, got {mode} of {height}x{width}"
        )
    fraction = float(cfg.get("crop_pct") or 0.875)
    if not 0 < fraction <= 1:
        raise ValueError(f"crop_pct: expected a fraction in (0, 1], got {fraction}")
    how = cfg.get("interpolation") or "bicubic"
    mean, std = (
        tuple(float(value) for value in cfg.get(name) or default)
        for name, default in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)))
    )
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean, std: expected {channels} values each, got {mean} and {std}")
    # Squashed ones are resized whole, which has no crop: timm resizes to side / crop_pct first.
    if mode == "squash" and fraction != 1:
        raise ValueError(f"crop_pct: expected 1 with crop_mode squash, got {fraction}")
    resize = math.floor(height / fraction) if mode == "center" else None
    return DataConfig((height, width), mean, std, channels, resize, how)
