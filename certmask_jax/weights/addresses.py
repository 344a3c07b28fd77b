"""Where weights are, as people write it: a path, ``pip:NAME``, ``hf:OWNER/NAME``, ``timm:NAME``."""

from __future__ import annotations

import os
from pathlib import Path

from certmask_jax.files.local_paths import local_path
from certmask_jax.weights import kept_cards
from certmask_jax.weights.cards import Card
from certmask_jax.weights.hub_repositories import SCHEME as _HUB
from certmask_jax.weights.hub_repositories import HubRepository
from certmask_jax.weights.installed_packages import SCHEME as _INSTALLED
from certmask_jax.weights.installed_packages import InstalledPackage
from certmask_jax.weights.timm_models import SCHEME as _TIMM
from certmask_jax.weights.timm_models import TimmModel

Address = Path | InstalledPackage | HubRepository | TimmModel
"""A file or folder here, or what is still to be looked for or fetched."""


def address(where: str | os.PathLike[str] | Address) -> Address:
    """Reads where weights are; nothing is looked for or fetched.

    Args:
      where: a path; ``pip:NAME``, the file of weights of an installed package, or of several the
        one whose path ends so: ``pip:NAME/END``; ``hf:OWNER/NAME``, a repository of the Hugging
        Face Hub, its main branch or ``hf:OWNER/NAME@REVISION``; or ``timm:NAME``, the pretrained
        weights of a model of timm's. A file whose own name begins like this is ``./hf:...``.

    Raises:
      ValueError: for one that cannot be read.
      OSError, ValueError: as ``local_path``.
    """
    if isinstance(where, InstalledPackage | HubRepository | TimmModel):
        return where
    text = os.fspath(where)
    if isinstance(text, str) and text.startswith(_INSTALLED):
        return InstalledPackage.of(text)
    if isinstance(text, str) and text.startswith(_HUB):
        return HubRepository.of(text)
    if isinstance(text, str) and text.startswith(_TIMM):
        return TimmModel.of(text)
    return local_path(where)


def card_of(where: str | os.PathLike[str] | Address) -> Card | None:
    """What is said of weights where they are published, or in a file that was made from such here.

    None where nothing is said.

    Raises:
      ValueError, OSError: for what is not there, or cannot be fetched; or as ``address``.
    """
    place = address(where)
    return kept_cards.of_file(place) if isinstance(place, Path) else place.card()
