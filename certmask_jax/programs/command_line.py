"""A stricter argparse: errors of one line, nothing guessed, and a record of what was typed.

A program whose modes use different options says so with ``check_uses``; an option that would
be ignored is refused by name, also when its default was typed.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from certmask_jax.programs import program

_LONGEST = 80  # characters of a typed word that an error repeats
_KINDS = {"int": "a whole number", "float": "a number"}
_VALUES = {
    "one argument": "a value",
    "at least one argument": "at least one value",
    "at most one argument": "at most one value",
}


class CommandLine(argparse.ArgumentParser):
    """A parser that raises ``ValueError`` where argparse prints its usage and exits.

    Options are given in full (``--num`` is no ``--num-images``) and once, unless they are collected
    (``--patch 3 --patch 5x2``). A word that begins like a negative number is a value:
    ``--patch -3x4`` is a bad patch and not a missing one.
    """

    def __init__(self, *, prog: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=Help,
        )

    def format_help(self) -> str:
        """What ``--help`` prints: the usage names what is required, the groups all the rest."""
        formatter = self._get_formatter()
        options = [action for action in self._actions if action.option_strings]
        required = [f"{one.option_strings[0]} {one.metavar}" for one in options if one.required]
        others = [
            formatter._format_args(action, str(action.metavar))
            for action in self._actions
            if not action.option_strings
        ]
        self.usage = " ".join(["%(prog)s", *others, *required, "[options]"])
        return super().format_help()

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Arguments -> values, and in ``typed`` the options that stood there, by destination.

        Raises:
          ValueError: for anything that cannot be read, naming the option.
        """
        words = self._with_negative_values(sys.argv[1:] if args is None else list(args))
        typed = self._typed(words)
        read, rest = self.parse_known_args(words)
        if rest:
            self.error(f"expected options and their values, got {_short(rest[0])!r} beside them")
        for action, uses in typed.items():
            if len(uses) > 1 and not isinstance(action, argparse._AppendAction):
                said = " and ".join(map(_short, uses))
                self.error(f"{uses[0].split()[0]}: expected once, got {said}")
        read.typed = {action.dest: uses[0].split()[0] for action, uses in typed.items()}
        return read

    def without(self, words: Sequence[str], left_out: Collection[str]) -> list[str]:
        """Words that can be read, for another program: the options of all other destinations.

        Words that belong to no option are left out too.
        """
        kept: list[str] = []
        left = list(words)
        while left:
            taken = [left.pop(0)]
            name, equals, _ = taken[0].partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                continue
            if not equals and action.nargs != 0:
                taken += left[:1]
                left = left[1:]
            if action.dest not in left_out:
                kept += taken
        return kept

    def error(self, message: str) -> NoReturn:
        """Raises what argparse says, in the words of this project."""
        text = re.sub(r"^argument ", "", message)
        kind = re.match(r"(.*): invalid (\w+) value: (.*)", text, re.DOTALL)
        if kind and kind[2] in _KINDS:
            text = f"{kind[1]}: expected {_KINDS[kind[2]]}, got {kind[3]}"
        count = re.match(r"(.*): expected (.* argument)", text)
        if count and count[2] in _VALUES:
            text = f"{count[1]}: expected {_VALUES[count[2]]}, got none"
        ignored = re.match(r"(.*): ignored explicit argument (.*)", text)
        if ignored:
            text = f"{ignored[1]}: expected no value, got {ignored[2]}"
        missing = re.match(r"the following arguments are required: (.*)", text)
        if missing:
            text = f"{missing[1]}: required, and not given (--help explains)"
        raise ValueError(text)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"expected one of {', '.join(names)}, got {value!r}{hint(value, names)}"
            )

    def _with_negative_values(self, words: Sequence[str]) -> list[str]:
        """``--patch -3x4`` as ``--patch=-3x4``, which argparse reads as it is meant."""
        joined: list[str] = []
        for word in words:
            before = self._option_string_actions.get(joined[-1]) if joined else None
            takes_value = before is not None and before.nargs != 0
            is_value = re.match(r"-(\d|\.|inf|nan)", word, re.IGNORECASE)
            if takes_value and is_value and word not in self._option_string_actions:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def _typed(self, words: Sequence[str]) -> dict[argparse.Action, list[str]]:
        """The options that stand there, each time as it was typed with its value."""
        typed: dict[str, tuple[argparse.Action, list[str]]] = {}
        for number, word in enumerate(words):
            if word == "--":
                break
            if not re.match(r"--?[^\W\d]", word):
                continue
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is None and " " in word:
                continue  # argparse takes it for a value, such as --job's
            if action is None:
                close = hint(name, self._option_string_actions)
                self.error(f"{_short(name)}: there is no such option{close or ' (see --help)'}")
            if not equals and action.nargs != 0:
                value = "".join(words[number + 1 : number + 2])
            # One destination, such as --decide and --no-decide, counts as one option.
            _, uses = typed.setdefault(action.dest, (action, []))
            uses.append(f"{name} {value}".rstrip())
        return dict(typed.values())


class Help(argparse.HelpFormatter):
    """80 columns at most; lines of an epilog that are indented stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=78)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super()._fill_text
        parts = re.split(r"((?:^[ ].*(?:\n|$))+)", text, flags=re.MULTILINE)
        return "\n".join(
            part.rstrip("\n") if part.startswith(" ") else filled(part, width, indent)
            for part in parts
            if part.strip()
        )


def hint(word: object, names: Iterable[str]) -> str:
    """``" (did you mean ...?)"``, or nothing if no name is like it."""
    text = str(word).lstrip("-")
    # bfloat16 is in no word's place: what is like it, float16 or float32, means more digits.
    known = {
        name.lstrip("-"): name
        for name in names
        if not name.startswith("bfloat") or text.startswith("b")
    }
    begun = [name for name in known if len(text) > 2 and name.startswith(text)]
    close = begun[:1] or difflib.get_close_matches(text, known, n=1)
    return f" (did you mean {known[close[0]]}?)" if close else ""


@contextlib.contextmanager
def named(option: str, *own_names: str) -> Iterator[None]:
    """Lets errors of the library begin with the option that they are about.

    Args:
      option: as the user knows it, ``"--patch"`` or ``"--patch 5"``.
      own_names: what the library calls it, other than ``option`` with underscores.
    """
    try:
        yield
    except ValueError as error:
        text = program.message(error)
        if text.startswith("--"):
            raise
        own = (option.split(" ")[0].strip("-").replace("-", "_"), *own_names)
        for name in own:
            text = text.removeprefix(f"{name}: ")
        raise ValueError(f"{option}: {text}") from error


@contextlib.contextmanager
def as_options(*names: str) -> Iterator[None]:
    """Lets errors of the library about one of these arguments begin with the option of that name.

    ``"input_size: expected ..."`` becomes ``"--input-size: expected ..."``.
    """
    try:
        yield
    except ValueError as error:
        name, colon, rest = program.message(error).partition(": ")
        if not colon or name not in names:
            raise
        raise ValueError(f"--{name.replace('_', '-')}: {rest}") from error


def check_uses(arguments: argparse.Namespace, used: Collection[str], mode: str) -> None:
    """Refuses options that were typed and that what is to be done has no use for.

    Args:
      arguments: of ``CommandLine.parse_args``.
      used: destinations.
      mode: what is to be done, to say why: ``"--list, which ..."``.

    Raises:
      ValueError: naming all of them.
    """
    useless = [option for dest, option in arguments.typed.items() if dest not in used]
    refuse(useless, mode)


def check_not_typed(arguments: argparse.Namespace, useless: Collection[str], mode: str) -> None:
    """Refuses options that were typed though they have no use; ``useless`` are destinations."""
    refuse([option for dest, option in arguments.typed.items() if dest in useless], mode)


def refuse(options: Sequence[str], mode: str) -> None:
    """``ValueError`` for options that have no use with ``mode``, if there are any."""
    if options:
        verb, them = ("has", "it") if len(options) == 1 else ("have", "them")
        raise ValueError(f"{', '.join(options)}: {verb} no use {mode}; leave {them} out")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
