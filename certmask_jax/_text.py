"""Text that can be written anywhere, lists of names that stay short, and files as they come."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

_SURELY = 0.8  # how like a word is to the name that it was meant to be
_A_LINE = 100  # characters of names; an error is of one or two lines


def encodable(text: str) -> str:
    """Writes as escapes what UTF-8 cannot hold; any other text stays as it is.

    A byte of a file's name that is no UTF-8 (a lone surrogate in Python) becomes ``\\udce9`` or the
    like, six characters that can be written, so that files, tables and screens take the result.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def some(names: Sequence[str], shown: int = 5) -> str:
    """``"a, b, ... (9 in all)"``: the first names, and how many there are if that is more."""
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def nearest(word: str, names: Iterable[str], most: int = 3) -> list[str]:
    """The names that are like a word, the nearest first: what is surely meant, or a few."""
    known = list(names)
    begun = [name for name in known if len(word) > 2 and name.startswith(word)]
    if begun:
        return begun[:1]
    close = difflib.get_close_matches(word, known, n=most)
    alike = [difflib.SequenceMatcher(None, name, word).ratio() for name in close]
    if close and alike[0] >= _SURELY:
        return [name for name, of_it in zip(close, alike, strict=True) if of_it == alike[0]]
    letters = max(re.findall("[a-z]+", word.lower()), key=len, default="")
    holding = [name for name in known if len(letters) > 3 and letters in name.lower()]
    return list(dict.fromkeys([*close, *holding]))[:most]


def like(word: str, names: Iterable[str]) -> str:
    """``" (did you mean a, b or c?)"``: the names that are like a word; empty if none is."""
    close = nearest(word, names)
    meant = " or ".join(filter(None, [", ".join(close[:-1]), *close[-1:]]))
    return f" (did you mean {meant}?)" if meant else ""


def names_of(names: Collection[str], what: str, listed: str) -> str:
    """``"a, b, c"``, or ``"the 68 models of certmask list"`` where a line could not name them.

    Args:
      names: that there are.
      what: they are, as a plural.
      listed: what names them all.
    """
    every = ", ".join(names)
    return every if len(every) <= _A_LINE else f"the {len(names)} {what} of {listed}"


def words_of(error: Exception) -> str:
    """What is wrong with something that was read, and not as Python writes an exception."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return str(error) or "it ends too early"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``"1 image"``, ``"1,000 images"``: a number and what it counts, in words that agree.

    ``many`` is the plural where an s does not make it: ``"passes"``.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def text_in(file: Path) -> str:
    """The text of a file in UTF-8, without the mark that some editors begin it with.

    Raises:
      ValueError: for a file of other bytes; names it.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, got other bytes ({error})") from error
    if "\0" in text:
        raise ValueError(f"{file}: expected text in UTF-8, got zero bytes")
    return text


def json_of(
    text: str | bytes, *, each_object: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """What JSON from a file says.

    Args:
      text: of the file.
      each_object: makes of an object's names and values what stands for it (None: a dict).

    Raises:
      ValueError: for anything else, also where it is nested more deeply than Python can read, which
        ``json.loads`` alone ends with a ``RecursionError`` that nobody expects of a file.
    """
    try:
        return json.loads(text, object_pairs_hook=each_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply to be read") from error
