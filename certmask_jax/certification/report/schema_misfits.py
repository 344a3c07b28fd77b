"""Where a JSON value is not of its schema, in a sentence.

What is read back may have been damaged or edited by hand. A number that is text would be met by
whoever first compares it, far from the file that it came from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN = 80  # characters of a value
_WORDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} in the list",
    "maxItems": "at most {} in the list",
}


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place of a value that is of another kind than its schema says.

    Names that the schema does not know, and those that it requires and that are not there, are let
    pass: earlier and later versions of a file have others, and a reader misses what it needs. NaN,
    which Python's JSON may hold, is within no bounds.

    Args:
      value: as ``json.loads`` gives it.
      schema: JSON schema, 2020-12.

    Returns:
      Where and what, as in ``"defenses[0].masks: expected integer, got 'many'"``; None where all
      fits.
    """
    error = next(_lenient()(schema).iter_errors(value), None)
    if error is None:
        return None
    while error.context:  # of several kinds that may stand there, the last one says what is wrong
        error = error.context[-1]
    wanted = error.validator_value
    if error.validator == "enum":
        wanted = " or ".join(map(str, wanted))
    place = error.json_path.removeprefix("$").removeprefix(".") or "it"
    got = repr(error.instance)
    got = got if len(got) < _SHOWN else got[: _SHOWN - 3] + "..."
    return f"{place}: expected {_WORDS.get(error.validator, '{}').format(wanted)}, got {got}"


@functools.cache
def _lenient() -> Any:
    """A validator that requires no name, forbids none, and lets NaN pass no bound."""
    import jsonschema

    usual = jsonschema.Draft202012Validator
    others = usual.VALIDATORS["additionalProperties"]

    def additional(
        validator: Any, own: Any, value: Any, schema: Mapping[str, Any]
    ) -> Iterator[Any]:
        return iter(()) if own is False else others(validator, own, value, schema)

    def within(name: str) -> Any:
        def check(validator: Any, bound: Any, value: Any, schema: Any) -> Iterator[Any]:
            if value != value:
                yield jsonschema.ValidationError("no number")
            else:
                yield from usual.VALIDATORS[name](validator, bound, value, schema) or ()

        return check

    return jsonschema.validators.extend(
        usual,
        {
            "required": lambda *_: iter(()),
            "additionalProperties": additional,
            "minimum": within("minimum"),
            "maximum": within("maximum"),
        },
    )
