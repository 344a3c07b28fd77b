"""The keys that a user's own function or class has by its signature, and what reads each value."""

from __future__ import annotations

import ast
import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal, Union

from certmask_jax.programs import imported
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.spec_keys import Key, flag


def own_keys(path: str, *, given: Collection[str]) -> tuple[Key, ...]:
    """The keys of a user's own: its parameters after the first, but for those that are given."""
    hints = _hints(imported.attribute(path))
    return tuple(
        Key(
            p.name,
            _reader(hints.get(p.name, Any)),
            f"of {path}",
            "" if p.default in (p.empty, None) else f"{p.default}",
        )
        for p in list(imported.parameters(path).values())[1:]
        if p.name not in given and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def own_words(path: str) -> str:
    """The first line of what a user's own says of itself."""
    words = inspect.getdoc(imported.attribute(path)) or ""
    return words.partition("\n")[0].strip().rstrip(".") or "no words"


def _hints(built: Any) -> dict[str, Any]:
    """Annotations by name, as far as they can be read."""
    hints: dict[str, Any] = {}
    # Of a record's fields each class that it comes from has its own, in its own module's names.
    for of in (built, built.__init__) if inspect.isclass(built) else (built,):
        with contextlib.suppress(Exception):  # names that are not there when it runs
            hints.update(typing.get_type_hints(of))
    return hints


def _reader(kind: Any) -> Callable[[str], Any]:
    """What reads a value of a type; without one a value as Python writes it, else as it stands."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else Any
    if typing.get_origin(kind) is Literal:
        return lambda text: _one_of(text, typing.get_args(kind))
    readers: dict[Any, Callable[[str], Any]] = {bool: flag, int: int, float: _number, str: str}
    collection = typing.get_origin(kind) or kind
    if collection in (tuple, list, dict, set, frozenset):
        return lambda text: _collection(text, collection)
    return readers.get(kind, _literal)


def _number(text: str) -> float:
    number = float(text)
    if number != number:  # it equals nothing, so that no defense with it equals another
        raise ValueError("expected a number, got nan")
    return number


def _collection(text: str, kind: type) -> Any:
    value = _literal(text)
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__} as Python writes it")
    return value


def _one_of(text: str, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if text == str(choice):
            return choice
    names = [str(choice) for choice in choices]
    raise ValueError(f"expected one of {', '.join(names)}{hint(text, names)}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
