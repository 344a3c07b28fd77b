"""Templates of this package filled in by Jinja2, which escapes whatever comes from outside."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from certmask_jax._text import encodable

_FOLDER = Path(__file__).parent / "templates"


def rendered(template: str, **context: Any) -> str:
    """A page from a template; every name that the template uses has to be there."""
    return encodable(_environment().get_template(template).render(**context))


def as_json(content: Any) -> Markup:
    """JSON for a ``script`` element of a page, which no text in it can end.

    Raises:
      ValueError: for a number that is none in JSON (NaN, infinite).
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def file_text(name: str) -> Markup:
    """A file of the templates' folder, to be put in as it is."""
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["file_text"] = file_text
    return made
