"""Errors whose remedy is a setting, which the library and each program name in their own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Naming = Callable[[str, Any], str]
"""``(keyword, value) -> what a user writes``: ``new_head=True``, or a program's ``--new-head``."""


class SettingError(ValueError):
    """A ``ValueError`` that can say its remedy in a program's words.

    Args:
      text: the message, given how settings are named.
    """

    def __init__(self, text: Callable[[Naming], str]) -> None:
        super().__init__(text(as_keyword))
        self._text = text

    def said_with(self, naming: Naming) -> str:
        """The message with settings named by ``naming``."""
        return self._text(naming)


def as_keyword(keyword: str, value: Any) -> str:
    """A setting as a Python caller writes it: ``new_head=True``."""
    return f"{keyword}={value!r}"
