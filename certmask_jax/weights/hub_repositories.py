"""Weights from the Hugging Face Hub: ``hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k``.

Through huggingface_hub where that is installed, with its cache, its tokens, its offline mode and
its endpoint (``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

from certmask_jax._text import json_of
from certmask_jax.weights import cards, reading
from certmask_jax.weights.cards import Card
from certmask_jax.weights.stored import WeightsFile

SCHEME = "hf:"
_FORM = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?")
_FILES = ("model.safetensors", "pytorch_model.bin")
_CONFIG = "config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubRepository:
    """A repository of weights on the Hub; nothing is fetched before it is asked for.

    Attributes:
      repository: ``OWNER/NAME``.
      revision: branch, tag or commit; None for the main branch.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> HubRepository:
        """Reads ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``; else ``ValueError``."""
        match = _FORM.fullmatch(text.removeprefix(SCHEME))
        if match is None:
            raise ValueError(
                f"{text}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, a repository of the "
                "Hugging Face Hub"
            )
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + ("" if self.revision is None else f"@{self.revision}")

    def card(self) -> Card | None:
        """What its ``config.json`` says, where that is of timm's form.

        Raises:
          ValueError, OSError: as ``read``, or for a card that cannot be read.
        """
        return self._card_and_commit()[0]

    def read(self) -> WeightsFile:
        """Its ``model.safetensors``, or ``pytorch_model.bin``, with its card and where it is from.

        Raises:
          ValueError: where huggingface_hub is missing, for a repository or a revision that is not
            there or not open to this user, one without such a file, or a file that is no weights.
          OSError: where it cannot be fetched, and is not in the cache.
        """
        card, commit = self._card_and_commit()
        path, lacking = None, None
        for name in _FILES:
            try:
                path = path or self._fetched(name, commit or self.revision)
            except _NotCachedError as error:  # offline nobody knows which of the two there is
                lacking = lacking or error
        if path is None:
            raise lacking or ValueError(
                f"{self}: expected a repository with {' or '.join(_FILES)}, got one with neither"
            )
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        source = {
            "repository": self.repository,
            "revision": _commit_of(path) or self.revision,
            "file": path.name,
            "sha256": sha256,
        }
        return dataclasses.replace(reading.read(path), card=card, source=source)

    def _card_and_commit(self) -> tuple[Card | None, str | None]:
        path = self._fetched(_CONFIG, self.revision)
        if path is None:
            return None, None
        try:
            facts = json_of(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self}: expected JSON in its {_CONFIG} ({error})") from error
        card = cards.of_timm(facts, str(self)) if isinstance(facts, dict) else None
        return card, _commit_of(path)

    def _fetched(self, name: str, revision: str | None) -> Path | None:
        """A file of the repository in the cache, where it is put first; None if it has none."""
        hub = _hub(self)
        try:
            return Path(hub.hf_hub_download(self.repository, name, revision=revision))
        except Exception as error:  # of whichever library it asks by, too
            if self._is_known_to_lack(hub, name, revision, error):
                return None
            raise self._said(hub, name, error) from error

    def _is_known_to_lack(
        self, hub: Any, name: str, revision: str | None, error: Exception
    ) -> bool:
        if not isinstance(error, hub.errors.EntryNotFoundError):
            return False
        if not isinstance(error, hub.errors.LocalEntryNotFoundError):
            return True
        known = hub.try_to_load_from_cache(self.repository, name, revision=revision)
        return known is not None and not isinstance(known, str)  # it was asked for once

    def _said(self, hub: Any, name: str, error: Exception) -> Exception:
        """What to say where a file cannot be had, in one line."""
        errors, constants = hub.errors, hub.constants
        endpoint = constants.ENDPOINT
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return ValueError(
                f"{self}: expected a repository that is open to you, but it is gated; ask for "
                f"access at {endpoint}/{self.repository} and log in (hf auth login, or HF_TOKEN)"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return ValueError(
                f"{self}: expected a repository, but {endpoint} has none of this name that is open "
                "to you; see to the name, or log in if it is private (hf auth login, or HF_TOKEN)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ValueError(
                f"{self}: expected a branch, a tag or a commit after @, but the repository has no "
                f"{self.revision or 'main branch'}"
            )
        if status in (401, 403):
            return ValueError(
                f"{self}: expected a token that {endpoint} accepts, but it refused this one "
                f"({status}); log in again (hf auth login, or HF_TOKEN)"
            )
        if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
            return _NotCachedError(
                f"{self}: expected {name} in the cache ({constants.HF_HUB_CACHE}), as "
                "HF_HUB_OFFLINE is set, found none; fetch it once without"
            )
        why = error.__cause__ or error
        line = (str(why).strip() or type(why).__name__).splitlines()[0]
        return OSError(f"{self}: expected to fetch {name} from {endpoint} ({line})")


class _NotCachedError(OSError):
    """A file that is not in the cache, where nothing may be fetched."""


def _hub(wanted: HubRepository) -> Any:
    try:
        for name in ("huggingface_hub.constants", "huggingface_hub.errors"):  # its rooms are lazy
            importlib.import_module(name)
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError(
            f"{wanted}: expected huggingface_hub, which fetches it, but that is not installed "
            f"({error}); pip install huggingface_hub"
        ) from error
    return hub


def _commit_of(path: Path) -> str | None:
    """The commit that a file of the cache is of: the name of its folder there."""
    return path.parent.name if _COMMIT.fullmatch(path.parent.name) else None
