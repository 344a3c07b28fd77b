"""Text that can be written anywhere, and lists of names that stay short."""

from __future__ import annotations

from collections.abc import Sequence


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
