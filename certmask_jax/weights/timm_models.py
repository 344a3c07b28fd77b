"""Weights as timm itself loads them, where it is installed: ``timm:vit_tiny_patch16_224``."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

from certmask_jax.weights import cards, torch_files
from certmask_jax.weights.cards import Card
from certmask_jax.weights.stored import WeightsFile

SCHEME = "timm:"


@dataclasses.dataclass(frozen=True)
class TimmModel:
    """A model of timm's with its pretrained weights; nothing is loaded before it is asked for.

    Attributes:
      name: timm's, with or without the tag of the weights.
    """

    name: str

    @classmethod
    def of(cls, text: str) -> TimmModel:
        """Reads ``timm:NAME``; ``ValueError`` for anything else."""
        name = text.removeprefix(SCHEME)
        if not re.fullmatch(r"\w+(?:\.\w+)?", name):
            raise ValueError(f"{text}: expected timm:NAME, a model of timm's")
        return cls(name)

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}"

    def card(self) -> Card | None:
        """What timm's table of weights says of them.

        Raises:
          ValueError: where timm is missing, or has no such model or no weights for it.
        """
        return cards.of_timm(self._facts(_timm(self)), str(self))

    def read(self) -> WeightsFile:
        """The weights, with their card and where they are from.

        Raises:
          ValueError: as ``card``.
          OSError: where timm cannot fetch them.
        """
        timm = _timm(self)
        facts = self._facts(timm)
        try:
            tensors = timm.create_model(self.name, pretrained=True).state_dict()
        except Exception as error:  # of whichever library it fetches by
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OSError(f"{self}: expected timm to load its weights ({line})") from error
        cfg = facts["pretrained_cfg"]
        names = (facts["architecture"], cfg.get("tag"))
        source = {
            "timm": timm.__version__,
            "model": ".".join(filter(None, names)),
            "from": cfg.get("hf_hub_id") or cfg.get("url"),
        }
        file = torch_files.of_tensors(Path(str(self)), tensors)
        return dataclasses.replace(file, card=cards.of_timm(facts, str(self)), source=source)

    def _facts(self, timm: Any) -> dict[str, Any]:
        try:
            cfg = timm.models.get_pretrained_cfg(self.name)
            known = timm.is_model(self.name.partition(".")[0]) and cfg is not None
        except (RuntimeError, AttributeError):  # of a tag, and of a name that there is not
            known = False
        if not known:
            raise ValueError(
                f"{self}: expected a model of timm's, but timm {timm.__version__} has none of this "
                "name (timm.list_models(pretrained=True) names those with weights)"
            )
        if not cfg.has_weights:
            raise ValueError(
                f"{self}: expected a model with weights, but timm {timm.__version__} has none for "
                "it (timm.list_models(pretrained=True) names those that it has)"
            )
        cfg_facts = cfg.to_dict()
        return {"architecture": cfg_facts["architecture"], "pretrained_cfg": cfg_facts}


def _timm(wanted: TimmModel) -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:  # torchvision, which it imports, ends in others
        missing = isinstance(error, ImportError)
        why = "not installed" if missing else "broken"
        raise ValueError(
            f"{wanted}: expected timm, which has it, but that is {why} here ({error}); pip install "
            f"torch torchvision {torch_files.CPU_INDEX}, then pip install timm"
        ) from error
