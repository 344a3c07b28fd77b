"""Errors whose remedy is a setting, which the library and each program name in their own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Naming = Callable[[str, Any], str]
"""``(keyword, value) -> what a user writes``: ``new_head=True``, or a program's ``--new-head``.

Where no value is meant it is None, and the keyword stands alone: ``chunk``, or ``--chunk``.
"""


class _Remedy(Exception):
    """An error that can say its remedy in a program's words."""

    _text: Callable[[Naming], str]

    def said_with(self, naming: Naming) -> str:
        """The message with settings named by ``naming``."""
        return self._text(naming)


class SettingError(_Remedy, ValueError):
    """A ``ValueError`` that can say its remedy in a program's words.

    Args:
      text: the message, given how settings are named.
    """

    def __init__(self, text: Callable[[Naming], str]) -> None:
        super().__init__(text(as_keyword))
        self._text = text


class FolderTakenError(_Remedy, FileExistsError):
    """A file or folder holds something else, or another process writes: a ``FileExistsError``."""

    def __init__(self, text: Callable[[Naming], str]) -> None:
        super().__init__(text(as_keyword))
        self._text = text


class NotPreparedError(_Remedy, FileNotFoundError):
    """Files are missing that have to be there before: a ``FileNotFoundError``."""

    def __init__(self, text: Callable[[Naming], str]) -> None:
        super().__init__(text(as_keyword))
        self._text = text


class WritingError(_Remedy, OSError):
    """A disk does not take what is written: an ``OSError``; ``number`` is the system's."""

    def __init__(self, number: int | None, text: Callable[[Naming], str]) -> None:
        super().__init__(number, text(as_keyword))
        self._text = text


def said_with(error: BaseException, naming: Naming) -> str | None:
    """What an error says with settings named by ``naming``; None for one that names none."""
    return error.said_with(naming) if isinstance(error, _Remedy) else None


def as_keyword(keyword: str, value: Any) -> str:
    """A setting as a Python caller writes it: ``new_head=True``."""
    return keyword if value is None else f"{keyword}={value!r}"
