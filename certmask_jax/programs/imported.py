"""A user's own models, data sets and defenses, by import path or as an installed package has them.

``package.module:name`` is looked for where Python finds modules and in the folder that is current.
Packages register names of their own as entry points, in the groups ``certmask_jax.models``,
``certmask_jax.datasets`` and ``certmask_jax.defenses``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from certmask_jax.programs.command_line import hint

MODELS = "certmask_jax.models"
DATASETS = "certmask_jax.datasets"
DEFENSES = "certmask_jax.defenses"

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


def is_path(text: str) -> bool:
    """Whether it is ``package.module:name``, by its looks."""
    is_dotted = re.fullmatch(f"{_DOTTED}:{_DOTTED}", text) is not None
    return is_dotted and not text.startswith("tfds:")  # which are data sets of TFDS by name


def begins_with_path(text: str) -> str | None:
    """``"package.module:name"`` of ``"package.module:name:..."``; None where there is none."""
    match = re.match(rf"({_DOTTED}:{_DOTTED})(?:$|:)", text)
    return match and match[1]


def registered(group: str) -> dict[str, str]:
    """Name -> import path, of what installed packages register in a group."""
    entries = importlib.metadata.entry_points(group=group)
    return {entry.name: entry.value.replace(" ", "") for entry in entries}


def path_of(name: str, group: str) -> str | None:
    """The import path that a name is or is registered with; None where it is neither."""
    return name if is_path(name) else registered(group).get(name)


@functools.lru_cache(maxsize=64)
def attribute(path: str) -> Any:
    """What a path names, imported.

    Raises:
      ValueError: for a module that there is not or that fails, or has no such name.
    """
    module_name, _, name = path.partition(":")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:  # as ``python -m`` has it
        sys.path.insert(0, folder)
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not _is_part(error.name, module_name):
            raise ValueError(f"{module_name}: importing it failed ({_why(error)})") from error
        raise ValueError(
            f"expected a module that can be imported, got {module_name!r} (no module named "
            f"{error.name!r}, here in {folder} or where Python looks for packages)"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module_name}: importing it failed ({_why(error)})") from error
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            like = hint(part, [n for n in dir(value) if not n.startswith("_")])
            raise ValueError(
                f"expected a name that {module_name} has, got {name!r}{like}"
            ) from error
    if not callable(value):
        raise ValueError(f"{path}: expected something to call, got a {type(value).__name__}")
    return value


def called(path: str, *positional: Any, wanted: type, **options: Any) -> Any:
    """Calls what a path names and checks what comes back.

    Args:
      path: ``package.module:name``.
      positional: handed on.
      wanted: the type that it has to return.
      options: handed on.

    Raises:
      ValueError: for a call that fails in any way of its own, or returns something else. Its own
        ``ValueError`` and ``OSError`` are let through.
    """
    function = attribute(path)
    try:
        result = function(*positional, **options)
    except (ValueError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} failed ({_why(error)})") from error
    if not isinstance(result, wanted):
        room = ".".join(wanted.__module__.split(".")[:2])
        raise ValueError(
            f"expected {path} to return a {room}.{wanted.__name__}, got {_described(result)}"
        )
    return result


def parameters(path: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of what a path names, by name.

    Raises:
      ValueError: when Python does not know them.
    """
    function = attribute(path)
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a signature that Python can read ({error})") from error


def accepts(path: str, name: str) -> bool:
    """Whether what a path names takes a keyword of that name."""
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    there = parameters(path)
    if name in there:
        return there[name].kind in by_keyword
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in there.values())


def check_accepts(path: str, options: Iterable[str]) -> None:
    """``ValueError``, beginning with the keyword, where what a path names takes no such one."""
    for name in options:
        if not accepts(path, name):
            takes = ", ".join(parameters(path)) or "nothing"
            raise ValueError(f"{name}: expected only where it is taken; {path} takes {takes}")


def _is_part(missing: str | None, module_name: str) -> bool:
    """Whether the module that is missing is the one asked for, or a package that it is in."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _why(error: BaseException) -> str:
    """The kind of an error, what it says, and where it was raised."""
    text = " ".join(str(error).split())[:200]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    frames = [f for f in frames if "importlib" not in f.filename]
    at = f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{': ' * bool(text)}{text}{at}"


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
