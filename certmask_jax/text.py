"""Text that can be written anywhere: names of files may hold bytes that are no text."""

from __future__ import annotations


def encodable(text: str) -> str:
    """The same text, with what UTF-8 cannot hold written as escapes.

    A byte of a file's name that is no UTF-8 (a lone surrogate in Python) becomes ``\\udce9`` or the
    like, six characters that can be written, so that files, tables and screens take the result.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
