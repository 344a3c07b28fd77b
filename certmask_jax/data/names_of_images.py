"""Which images of a run a file means by the names that it has for them: paths, or their ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from certmask_jax._text import some
from certmask_jax.data.folders import suffixes


def matched(
    path: Path, names: Sequence[str], ids: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name in the file -> id of an image, and the names that are no image.

    Args:
      path: of the file, for errors.
      names: as it has them, each once.
      ids: of the images of the run.

    Raises:
      ValueError: for a name that may mean several images, two that mean one, or where none is one.
    """
    exact = set(ids)
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for one in ids:
        plain = _plain(one)
        whole.setdefault(plain, []).append(one)
        for end in _ends(plain):
            ends.setdefault(end, []).append(one)
    made: dict[str, str] = {}
    others: list[str] = []
    unclear: list[str] = []
    for name in names:
        if name in exact:
            made[name] = name
            continue
        plain = _plain(name)
        candidates = whole.get(plain) or ends.get(plain)
        if candidates is None:  # the file may name folders above those of the run
            candidates = next((whole[end] for end in _ends(plain) if end in whole), [])
        if len(candidates) == 1:
            made[name] = candidates[0]
        else:
            (unclear if candidates else others).append(name)
    if unclear:
        raise ValueError(
            f"{path}: several images of the run may be meant by {some(unclear)}; give each its "
            "path as the run has it (the column id of per_image.csv)"
        )
    names_of: dict[str, list[str]] = {}
    for name, image in made.items():
        names_of.setdefault(image, []).append(name)
    twice = next((alike for alike in names_of.values() if len(alike) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{path}: expected one name for each image, but {some(twice)} all mean {made[twice[0]]}"
        )
    if not made:
        raise ValueError(
            f"{path}: expected boxes of images of the run, such as {ids[0] if ids else 'none'}, "
            f"but none of its {len(others):,} names is one, such as {others[0]}"
        )
    return made, tuple(others)


def _plain(name: str) -> str:
    """A path without the suffix of an image."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("")) if path.suffix.lower() in suffixes() else str(path)


def _ends(plain: str) -> list[str]:
    parts = plain.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
