"""The installed command, ``certmask NAME ...``: finds the program of that name and begins it.

Nothing heavy is imported before a program is known: a mistyped name, ``--help`` and ``--version``
answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from certmask_jax._version import __version__
from certmask_jax.programs import own_process, program
from certmask_jax.programs.command_line import hint

PROGRAMS = {
    "certify": "certify a test set: what is answered, and what is proved",
    "choose": "choose a defense for a budget of passes",
    "report": "write a page of a run, or of several, for a browser",
    "compare": "paired differences of runs on the same images",
    "leaderboard": "rank what runs prove, with where every number comes from",
    "attack": "attack what was certified, with patches aimed at it",
    "audit": "attack every certificate of a run, for so many minutes",
    "merge": "put the shares of a run on many machines together",
    "train": "train a model with masks, or fine-tune one",
    "export": "write a guarded classifier as one file that JAX runs",
    "convert-weights": "convert weights between formats, checked against a model",
    "benchmark": "measure speed and memory on this machine",
}
"""Name -> one line; the module has the same name in ``programs``, with underscores."""

_HELP = ("--help", "-h", "help")


def main() -> NoReturn:
    """Runs the command that ``sys.argv`` holds and ends the process with its status."""
    words = sys.argv[1:]
    name = words[0].replace("_", "-") if words else ""
    if name not in PROGRAMS:
        own_process.leave(lambda: program.run(lambda: _without_program(words)))
    own_process.begin()
    with own_process.without_collections():
        module = importlib.import_module(f"certmask_jax.programs.{name.replace('-', '_')}")
    run: Callable[[Sequence[str]], int] = module.main
    own_process.leave(lambda: run(words[1:]))


def help_text() -> str:
    """What ``--help`` prints, in 80 columns."""
    command = program.command("").strip()
    width = max(map(len, PROGRAMS))
    lines = [
        f"usage: {command} NAME [options]",
        "",
        "Certified defence of image classifiers against adversarial patches.",
        "",
        *(f"  {name.ljust(width)}  {about}" for name, about in PROGRAMS.items()),
        "",
        f"First run: {command} certify",
        "(handwritten digits and the model that ships with the package, in seconds)",
        f"Options:   {command} NAME --help",
        f"Version:   {command} --version",
    ]
    return "\n".join(lines)


def _without_program(words: Sequence[str]) -> int:
    """``--help`` and ``--version``; ``ValueError`` for a name that there is not."""
    if not words:
        program.say(help_text())
        return program.BAD_INPUT
    if words[0] in _HELP:
        print(help_text())
        return 0
    if words[0] == "--version":
        print(f"certmask_jax {__version__}")
        return 0
    names = ", ".join(PROGRAMS)
    if words[0].startswith("-"):
        raise ValueError(f"expected the name of a program first ({names}), got {words[0]!r}")
    raise ValueError(f"expected one of {names}, got {words[0]!r}{hint(words[0], PROGRAMS)}")
