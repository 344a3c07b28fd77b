"""The command that made an earlier run, read again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def words_of(command: str) -> list[str]:
    """What stood behind the name of the program: of ``certmask certify ...`` all after certify.

    Raises:
      ValueError: for the command of another program.
    """
    words = shlex.split(command)
    for place, word in enumerate(words[:4]):
        if word == "certify" or word.endswith(".certify"):
            return words[place + 1 :]
    raise ValueError(f"expected a command of certify, got {command!r}")


def of_run(provenance: Mapping[str, Any]) -> str:
    """The command of a whole run, where it was made in shares too; empty where none is known."""
    return str(provenance.get("command_of_all_shares") or provenance.get("command") or "")
