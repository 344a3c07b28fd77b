"""Where a JSON value is not of its schema: so much of JSON schema as ``results.json`` needs.

What is read back may have been damaged or edited by hand. A number that is text would be met by
whoever first compares it, far from the file that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}

_SHOWN = 80  # characters of a value


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place of a value that is of another kind than its schema says, in a sentence.

    Names that the schema does not know, and those that it requires and that are not there, are let
    pass: earlier and later versions of a file have others, and a reader misses what it needs.

    Args:
      value: as ``json.loads`` gives it.
      schema: with ``type``, ``enum``, ``minimum``, ``maximum``, ``minItems``, ``maxItems``,
        ``items``, ``properties``, ``additionalProperties``, ``oneOf``, and ``$ref`` into its own
        ``$defs``; what else it says is not looked at.

    Returns:
      Such as ``"defenses[0].masks: expected integer, got 'many'"``; None where all fits.
    """
    return _misfit(value, schema, schema.get("$defs", {}), "")


def _misfit(
    value: Any, schema: Mapping[str, Any], named: Mapping[str, Any], place: str
) -> str | None:
    if "$ref" in schema:
        return _misfit(value, named[schema["$ref"].rpartition("/")[2]], named, place)
    if "oneOf" in schema:
        each = [_misfit(value, one, named, place) for one in schema["oneOf"]]
        return None if None in each else each[-1]
    wrong = _unlike(value, schema)
    if wrong is not None:
        got = repr(value)
        return (
            f"{place or 'it'}: expected {wrong}, got {got if len(got) < 80 else got[:77] + '...'}"
        )
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(value, list) and "items" in schema:
        inner = [(one, schema["items"], f"{place}[{n}]") for n, one in enumerate(value)]
    elif isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        inner = [
            (one, known.get(name, others), f"{place}.{name}" if place else name)
            for name, one in value.items()
        ]
    for one, own, where in inner:
        found = _misfit(one, own, named, where) if isinstance(own, Mapping) else None
        if found is not None:
            return found
    return None


def _unlike(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What was expected of a value itself, whatever is in it; None where it fits."""
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
    ):
        return str(kind)
    if "enum" in schema and value not in schema["enum"]:
        return " or ".join(map(str, schema["enum"]))
    # Written so that NaN, which Python's JSON may hold, is within no bounds.
    if "minimum" in schema and not value >= schema["minimum"]:
        return f"at least {schema['minimum']}"
    if "maximum" in schema and not value <= schema["maximum"]:
        return f"at most {schema['maximum']}"
    if "minItems" in schema and len(value) < schema["minItems"]:
        return f"at least {schema['minItems']} in the list"
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        return f"at most {schema['maxItems']} in the list"
    return None
