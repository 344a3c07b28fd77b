"""Class folders: what counts as a class, what as an image, and what is left out.

``FOLDER/CLASS/**/*`` as torchvision's ImageFolder reads it: classes in the order of their names,
files below each in the order of their paths, links followed. Hidden and system folders, which
notebooks, file managers and archives leave, are neither classes nor do they hold images.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from certmask_jax.data.listing import ImageFile
from certmask_jax.text import encodable

# What systems leave beside users' files; whatever begins with a dot, @ or $ is left out anyway.
_SYSTEM = frozenset(
    {"__macosx", "__pycache__", "system volume information", "lost+found", "#recycle",
     "#snapshot", "thumbs.db", "desktop.ini", "icon\r"}
)  # fmt: skip
# Formats of which Pillow knows the name only, or that need other programs.
_NO_IMAGES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF"})
_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval",
     "holdout", "held_out"}
)  # fmt: skip
_SHOWN = 5


class Folder(NamedTuple):
    """What a folder of class folders holds."""

    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]  # what was left out, and classes without images, in lines


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes, in small letters, of the image files that Pillow reads here."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(
        suffix for suffix, name in known.items() if name in Image.OPEN and name not in _NO_IMAGES
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's, or meant not to be seen."""
    return name.startswith((".", "@", "$")) or name.lower() in _SYSTEM


def scan(folder: Path, *, without_split: bool) -> Folder:
    """The classes and images of a folder.

    Args:
      folder: that holds a folder for each class.
      without_split: whether no split was asked for, so that ``folder`` may be the root of several.

    Raises:
      FileNotFoundError: when it is not there, or no folder.
      ValueError: for a root of splits, or images that lie in no class folder.
      OSError: for what cannot be read.
    """
    left_out: Counter[str] = Counter()
    names = []
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if is_hidden(entry.name):
            left_out["hidden or of the system"] += 1
        elif entry.is_dir():
            names.append(entry.name)
        else:
            left_out[_kind(entry) if not _is_image(entry.name) else "in no class folder"] += 1
    if left_out["in no class folder"] and not names:
        raise ValueError(
            f"{folder}: expected a folder for each class, got {left_out['in no class folder']} "
            "images in none; images with a list of labels are the data set image_list"
        )
    files: list[ImageFile] = []
    empty: list[str] = []
    folders_of: dict[str, set[str]] = {}
    for number, name in enumerate(names):
        found, inner = _images_below(folder / name, left_out)
        if found:
            folders_of[name] = inner
        empty += [name] * (not found)
        files += _as_files(folder, found, number)
    if without_split:
        _check_no_root_of_splits(folder, folders_of)
    notes = []
    if empty and files:
        what = "1 class folder has" if len(empty) == 1 else f"{len(empty)} class folders have"
        notes.append(f"{what} no images: {_some(empty)}")
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        notes.append(f"left out of {folder}: {kinds}")
    return Folder(tuple(map(encodable, names)), tuple(files), tuple(map(encodable, notes)))


def check_folder(root: Path, split: str) -> Path:
    """``root`` or its subfolder of a split; ``FileNotFoundError`` with what there is."""
    folder = root / split if split else root
    if folder.is_dir():
        return folder
    if not root.is_dir():
        what = "got a file" if root.exists() else "found none"
        raise FileNotFoundError(f"{root}: expected a folder with one subfolder a class, {what}")
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    close = difflib.get_close_matches(split, there, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise FileNotFoundError(
        f"{folder}: expected a folder with one subfolder a class, found none{hint}; "
        f"{root} holds {_some(there) or 'no folders'}"
    )


def unique_ids(names: Sequence[str]) -> list[str]:
    """The names as text that can be written, each once."""
    seen: Counter[str] = Counter()
    ids = []
    for name in map(encodable, names):
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return ids


def _images_below(folder: Path, left_out: Counter[str]) -> tuple[list[tuple[Path, int]], set[str]]:
    """Image files at any depth with their bytes, and the names of folders if images lie only there.

    Every real folder is looked at once, so that links in a circle end.
    """
    found: list[tuple[Path, int]] = []
    waiting, seen = [folder], set()
    direct, folders = 0, set()
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            left_out["links to folders that were read already"] += 1
            continue
        seen.add(real)
        for entry in os.scandir(here):
            if is_hidden(entry.name):
                left_out["hidden or of the system"] += 1
            elif entry.is_dir():
                waiting.append(here / entry.name)
                if here == folder:
                    folders.add(entry.name)
            elif _is_image(entry.name) and entry.is_file():
                found.append((here / entry.name, entry.stat().st_size))
                direct += here == folder
            else:
                left_out[_kind(entry)] += 1
    found.sort(key=lambda one: one[0].parts)
    return found, set() if direct or not found else folders


def _as_files(folder: Path, found: list[tuple[Path, int]], number: int) -> list[ImageFile]:
    ids = unique_ids([path.relative_to(folder).as_posix() for path, _ in found])
    return [
        ImageFile(path, image_id, number, size)
        for (path, size), image_id in zip(found, ids, strict=True)
    ]


def _check_no_root_of_splits(folder: Path, folders_of: dict[str, set[str]]) -> None:
    """``ValueError`` where all folders with images hold only folders, and look like splits."""
    if not folders_of or not all(folders_of.values()):
        return  # some class folder has images of its own
    shared = set.intersection(*folders_of.values())
    if len(shared) > 1 or all(name.lower() in _SPLITS for name in folders_of):
        names = list(folders_of)
        raise ValueError(
            f"{folder}: expected a folder for each class with its images, but "
            f"{_some(names)} hold only folders ({_some(sorted(folders_of[names[0]]))}); choose one "
            f"as the split (--split {names[0]}), or say --split . if these are the classes"
        )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes()


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file is that is no image: its suffix, or that a link leads nowhere."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "links that lead nowhere"
    return os.path.splitext(entry.name)[1].lower() or "without a suffix"


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
