"""Words for what a page says of masks, labels and counts. Masks are numbered from 1, as drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from certmask_jax.defenses.defense import ALERT
from certmask_jax.tables.prediction_table import NO_LABEL

_NAMED = 4  # masks

Sayer = Callable[[int], str]
"""A label in words."""


def name_of(label: int, class_names: Sequence[str]) -> str:
    """A class, an alert, or no label, in words."""
    if label == ALERT:
        return "an alert"
    if label == NO_LABEL:
        return "no label"
    named = class_names[label] if 0 <= label < len(class_names) else ""
    return named or f"class {label}"


def named(masks: Sequence[int]) -> str:
    """``mask 3``, ``masks 3 and 4``, ``masks 1, 2, 3, 4 and 12 more``."""
    numbers = [str(i + 1) for i in masks]
    if len(numbers) == 1:
        return f"mask {numbers[0]}"
    if len(numbers) > _NAMED + 1:
        numbers = [*numbers[:_NAMED], f"{len(numbers) - _NAMED} more"]
    return f"masks {', '.join(numbers[:-1])} and {numbers[-1]}" if numbers else "no mask"


def counted(count: int, what: str) -> str:
    """``"1 image"``, ``"1,000 images"``, ``"2 classes"``."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
