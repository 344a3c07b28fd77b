"""Class folders: what counts as a class, what as an image, and what is left out.

``FOLDER/CLASS/**/*`` as torchvision's ImageFolder reads it: classes in the order of their names,
files below each in the order of their paths, links followed. Hidden and system folders, which
notebooks, file managers and archives leave, are neither classes nor do they hold images.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from certmask_jax._settings import Naming, SettingError
from certmask_jax._text import counted, encodable, like, some
from certmask_jax.data.listing import ImageFile

# What systems leave beside users' files, by its whole name: a class may well be called $5 or @home.
# Whatever begins with a dot is left out anyway.
_SYSTEM = frozenset(
    {"__macosx", "__pycache__", "system volume information", "lost+found", "$recycle.bin",
     "#recycle", "#snapshot", "~snapshot", "@eadir", "@recycle", "@recently-snapshot", "@tmp",
     "@sharebin", "@__thumb", "network trash folder", "temporary items", "found.000", "thumbs.db",
     "desktop.ini", "icon\r"}
)  # fmt: skip
# Formats of which Pillow knows the name only, or that need other programs.
_NO_IMAGES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PCD", "WMF"})
# A JPEG of several pictures, as telephones write them: Pillow opens it as JPEG.
_MORE_SUFFIXES = frozenset({".mpo"})
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
    read = {
        suffix for suffix, name in known.items() if name in Image.OPEN and name not in _NO_IMAGES
    }
    return _MORE_SUFFIXES | read


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's, or meant not to be seen."""
    return name.startswith(".") or name.lower() in _SYSTEM


def scan(folder: Path, *, split: str = "") -> Folder:
    """The classes and images of a folder.

    Args:
      folder: that holds a folder for each class.
      split: as ``folder`` was chosen, for hints. If it ends in ``.``, what ``folder`` holds are
        classes, even if they look like splits or like folders of classes.

    Raises:
      FileNotFoundError: when it is not there, or no folder.
      ValueError: for a folder of splits, or images that lie in no class folder.
      OSError: for what cannot be read.
    """
    left_out: Counter[str] = Counter()
    names = []
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if is_hidden(entry.name):
            left_out["hidden or of the system"] += 1
        elif is_folder(entry):
            names.append(entry.name)
        else:
            left_out[_kind(entry) if not is_image(entry.name) else "in no class folder"] += 1
    if left_out["in no class folder"] and not names:
        raise ValueError(
            f"{folder}: expected a folder for each class, got "
            f"{counted(left_out['in no class folder'], 'image')} in none; "
            "images with a list of labels are the data set image_list"
        )
    images_of = {name: images_below(folder / name, left_out, above=folder) for name in names}
    empty = [name for name in names if not images_of[name]]
    inner = {n: _inner_folders(folder / n, images) for n, images in images_of.items() if images}
    if split.rstrip("/").rpartition("/")[2] != ".":
        _check_no_folder_of_splits(folder, inner, split)
    notes = []
    deep = sorted({name for names in inner.values() for name in names})
    if deep:
        notes.append(
            f"images of the classes {some([n for n in inner if inner[n]])} lie only in folders "
            f"inside them ({some(deep)}), which are taken for parts of a class"
        )
    if empty and any(images_of.values()):
        what = "1 class folder has" if len(empty) == 1 else f"{len(empty)} class folders have"
        notes.append(f"{what} no images: {some(empty)}")
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        notes.append(f"left out of {folder}: {kinds}")
    paths = [path.relative_to(folder).as_posix() for name in names for path, _ in images_of[name]]
    ids = iter(unique_names(paths))
    files = tuple(
        ImageFile(path, next(ids), number, size)
        for number, name in enumerate(names)
        for path, size in images_of[name]
    )
    return Folder(tuple(unique_names(names)), files, tuple(map(encodable, notes)))


def check_folder(root: Path, split: str) -> Path:
    """``root`` or its subfolder of a split; ``FileNotFoundError`` with what there is."""
    folder = root / split if split else root
    if folder.is_dir():
        return folder
    if not root.is_dir():
        what = "got a file" if root.exists() else "found none"
        raise FileNotFoundError(f"{root}: expected a folder with one subfolder a class, {what}")
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    raise FileNotFoundError(
        f"{folder}: expected a folder with one subfolder a class, found none{like(split, there)}; "
        f"{root} holds {some(there) or 'no folders'}"
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, which differ, as text that can be written and still differs."""
    written = list(map(encodable, names))
    taken = {text for text, name in zip(written, names, strict=True) if text == name}
    for place, (text, name) in enumerate(zip(written, names, strict=True)):
        if text == name:
            continue
        number = 2
        while written[place] in taken:
            written[place] = f"{text} ({number})"
            number += 1
        taken.add(written[place])
    return written


def images_below(
    folder: Path, left_out: Counter[str], *, above: Path | None = None
) -> list[tuple[Path, int]]:
    """Image files at any depth with their bytes, in the order of their paths.

    Every real folder is looked at once, and those that ``above`` lies in are not, so that links in
    a circle end, and none that leads up brings the images of other classes.

    Args:
      folder: where to look.
      left_out: counts what is no image, by kind; added to.
      above: the data set's own folder, if ``folder`` is a class of it.
    """
    seen: set[str] = set()
    if above is not None:
        real = Path(os.path.realpath(above))
        seen = {str(real), *map(str, real.parents)}
    images: list[tuple[Path, int]] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real_path = os.path.realpath(here)
        if real_path in seen:
            left_out["links to folders that lead up or were read already"] += 1
            continue
        seen.add(real_path)
        inside = []
        for entry in sorted(os.scandir(here), key=lambda one: one.name):
            if is_hidden(entry.name):
                left_out["hidden or of the system"] += 1
            elif is_folder(entry):
                inside.append((entry.is_symlink(), entry.name))
            elif is_image(entry.name) and _is_file(entry):
                images.append((here / entry.name, entry.stat().st_size))
            else:
                left_out[_kind(entry)] += 1
        # Real folders before links to them, whatever order the disk has them in.
        waiting += [here / name for _, name in sorted(inside, reverse=True)]
    return sorted(images, key=lambda one: one[0].parts)


def _inner_folders(folder: Path, images: list[tuple[Path, int]]) -> frozenset[str]:
    """The folders in a class folder that part its images; none if some lie beside them.

    A folder that holds nothing but another is passed over: Tiny ImageNet's ``CLASS/images``.
    """
    places = {path.relative_to(folder).parts[:-1] for path, _ in images}
    shared = 0
    while all(len(place) > shared for place in places) and len({p[shared] for p in places}) == 1:
        shared += 1
    if any(len(place) == shared for place in places):
        return frozenset()
    return frozenset(place[shared] for place in places)


def _check_no_folder_of_splits(
    folder: Path, inner: Mapping[str, frozenset[str]], split: str
) -> None:
    """``ValueError`` where what holds images looks like splits, or like folders of classes.

    That is: all of them, or two, are called as splits are; one is, and holds folders; or all hold
    the same folders.
    """
    named = [name for name in inner if name.lower() in _SPLITS]
    deep = [name for name in inner if inner[name]]
    if not inner:
        return
    alike = len(frozenset.intersection(*inner.values())) > 1
    if not (len(named) == len(inner) or len(named) > 1 or set(named) & set(deep) or alike):
        return
    base = f"{split.rstrip('/')}/" if split else ""

    def way_out(say: Naming) -> str:
        return f"or say {say('split', f'{base}.')} if these are the classes"

    if not deep:
        raise SettingError(
            lambda say: (
                f"{folder}: expected a folder for each class, but {some(list(inner))} are called "
                "as splits are, and hold images in no class folders; images with a list of labels "
                f"are the data set image_list, {way_out(say)}"
            )
        )
    offered = [name for name in deep if name in named] or deep

    def text(say: Naming) -> str:
        choices = " or ".join(say("split", base + name) for name in offered[:_SHOWN])
        return (
            f"{folder}: expected a folder for each class with its images, but {some(deep)} hold "
            f"only folders ({some(sorted(inner[deep[0]]))}); choose one as the split ({choices}), "
            f"{way_out(say)}"
        )

    raise SettingError(text)


def is_image(name: str) -> bool:
    """Whether a file's suffix is that of an image which Pillow reads here."""
    return os.path.splitext(name)[1].lower() in suffixes()


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; false for links that lead to themselves."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file is that is no image: its suffix, or that a link leads nowhere."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "links that lead nowhere"
    return os.path.splitext(entry.name)[1].lower() or "without a suffix"
