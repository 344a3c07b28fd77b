"""What all programs share: screens that take any text, errors of one line, exit statuses.

``run`` does a program's work; how its process begins and ends is in ``own_process``. Only the
standard library is imported here, and what is as light.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from certmask_jax._settings import said_with
from certmask_jax._text import encodable

BAD_INPUT = 2
INTERRUPTED = 130  # as the shell reports a program that Ctrl-C ended

INSTALLED = "certmask"  # the name of the installed command

LISTED = "certify --list"
"""What names all data sets, models, defenses and keys."""

_PACKAGE = "certmask_jax"
_OPTIONS = {  # keyword of the library -> option, where they differ
    "data.names()": LISTED,
    "folder": "--out",
    "keep": "--keep-evidence",
    "models.names()": LISTED,
    "search_without_gradients": "--search square",
}
_UNPRINTED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, other line ends


def command(name: str) -> str:
    """How a person begins a program, in the way in which this process was begun.

    ``"certmask merge"`` where the installed command runs, ``"python -m certmask_jax merge"`` where
    the package does, else ``"python -m experiments.merge"``, as from a clone.

    Args:
      name: of the program's module, such as ``convert_weights``.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name == f"{_PACKAGE}.__main__":
        return f"python -m {_PACKAGE} {name.replace('_', '-')}"
    if os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))[0] == INSTALLED:
        return f"{INSTALLED} {name.replace('_', '-')}"
    return f"python -m experiments.{name}"


def typed(name: str, words: Sequence[str]) -> str:
    """A whole command as a shell takes it, in text that can be written anywhere."""
    return encodable(" ".join([command(name), *map(shlex.quote, words)]))


def run(work: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Does a program's work and returns its exit status.

    What may go wrong with what people give ends in one line on stderr and status 2, Ctrl-C in
    status 130. A warning of Python is one line too. What cannot be printed is escaped,
    and a screen that takes no more is left alone: printing never decides the status.

    Args:
      work: returns the status.
      interrupted: what is said after Ctrl-C.
    """
    streams, shown = (sys.stdout, sys.stderr), warnings.showwarning
    warnings.showwarning = _show_warning
    sys.stdout, sys.stderr = _Screen.over(sys.stdout), _Screen.over(sys.stderr)
    try:
        return work()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        say(f"error: {one_line(message(error))}")
        return BAD_INPUT
    except KeyboardInterrupt:
        say(interrupted)
        return INTERRUPTED
    finally:
        for screen in (sys.stdout, sys.stderr):
            screen.flush()
        sys.stdout, sys.stderr = streams
        warnings.showwarning = shown


def say(line: str) -> None:
    """Prints a line that is no result, to stderr."""
    print(line, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints what a warning says, and not at which line of code, which is not a user's."""
    del category, filename, lineno, file, line
    say(f"warning: {one_line(str(message))}")


def message(error: BaseException) -> str:
    """The text of an error; an OSError's without its number, settings as options."""
    in_options = said_with(error, as_option)
    if in_options is not None:
        return in_options
    if isinstance(error, MemoryError):
        return f"expected more memory ({error or 'there is none left'})"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror


def as_option(keyword: str, value: Any) -> str:
    """What the library calls ``keyword=value``, as programs have it: ``--new-head``, ``--out``."""
    option = _OPTIONS.get(keyword, f"--{keyword.replace('_', '-')}")
    if value is False:
        return option.replace("--", "--no-", 1)
    return option if value is None or value is True else f"{option} {shlex.quote(str(value))}"


def one_line(text: str) -> str:
    """Writes line ends, control characters and what is no text as escapes."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNPRINTED else c
        for c in text.strip("\n")
    )


class _Screen(io.TextIOBase):
    """A text stream that escapes what it cannot encode, and goes quiet when it cannot be written.

    As after ``| head -1``, or when the disk that it is redirected to is full, of which the other
    screen is told.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_gone = False

    @classmethod
    def over(cls, stream: Any) -> Any:
        """A screen over a stream; None (``pythonw``) takes everything and shows nothing."""
        return stream if isinstance(stream, cls) else cls(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(self._printable(text)))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def close(self) -> None:
        """Nothing: the stream is not its own."""

    def isatty(self) -> bool:
        return bool(getattr(self._stream, "isatty", lambda: False)())

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _printable(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding, "replace")

    def _try(self, act: Callable[[], Any]) -> None:
        if self._stream is None or self._is_gone:
            return
        try:
            act()
        except (BrokenPipeError, ValueError):  # nobody reads on, or it is closed
            self._is_gone = True
        except OSError as error:
            self._is_gone = True
            if self is not sys.stderr:
                say(f"warning: the screen cannot be written to ({one_line(message(error))})")
