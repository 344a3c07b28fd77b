"""The card in a file of weights that was made here, so that what it says is not lost.

Weights that came with a card (``hf:OWNER/NAME``, ``timm:NAME``) want their images as it says, and
so do weights that were trained from them or converted. Of ``.npz`` the card is a member that is no
array, of ``.safetensors`` it lies in the metadata, and in an Orbax folder it is a file. Whoever
else reads these leaves it alone.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certmask_jax._text import json_of, words_of
from certmask_jax.models import DataConfig
from certmask_jax.weights.cards import Card
from certmask_jax.weights.kinds import CARD

_FIELDS = ("architecture", "tag", "num_classes", "pooling", "label_names")


def as_text(card: Card) -> str:
    """A card as it is kept."""
    facts = {name: getattr(card, name) for name in _FIELDS}
    return json.dumps({**facts, "data_config": dataclasses.asdict(card.data_config)}, indent=1)


def of_file(path: Path) -> Card | None:
    """The card that is kept with a file or an Orbax folder; None where there is none.

    What is no file of weights, or damaged, has none: reading the weights says what is wrong.

    Raises:
      ValueError: for a card that cannot be read.
    """
    try:
        text = _text(path)
    except Exception:  # of zip, safetensors and the system: said when the weights are read
        return None
    if text is None:
        return None
    try:
        return _card(json_of(text), str(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the card of its weights as it was written, but it is damaged "
            f"({words_of(error)}); write the weights anew from where they came from"
        ) from error


def _text(path: Path) -> str | None:
    if path.is_dir():
        kept = path / CARD
        return kept.read_text(encoding="utf-8") if kept.is_file() else None
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as file:
            return file.read(CARD).decode() if CARD in file.namelist() else None
    if path.suffix.lower() == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(CARD)
            return None if text is None else str(text)
    return None


def _card(facts: Mapping[str, Any], where: str) -> Card:
    config = facts["data_config"]
    size = tuple(int(side) for side in config["input_size"])
    mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    return Card(
        where,
        str(facts["architecture"]),
        str(facts["tag"]),
        None if facts["num_classes"] is None else int(facts["num_classes"]),
        DataConfig(**{**config, "input_size": size, "mean": mean, "std": std}),
        facts["pooling"],
        label_names=tuple(str(name) for name in facts["label_names"]),
    )
