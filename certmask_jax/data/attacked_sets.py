"""The folder of an attack as a data set: patched images with their true labels.

``attacks.jsonl`` names them: its first line holds what was attacked and how, each other one an
image under a defense or with a given patch. A split is one of these, ``undefended`` or
``double_masking``, and ``double_masking/broken`` those of its images that were answered wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from certmask_jax._settings import SettingError
from certmask_jax._text import json_of, like, some
from certmask_jax.data.listing import ImageFile
from certmask_jax.files import fingerprint
from certmask_jax.files.storage import AnyPath, lacking

LINES = "attacks.jsonl"
PREFIX = "attacked:"
FORMAT = 1

_BROKEN = "/broken"
_OF_RUN = ("dataset", "split", "model", "weights_sha256", "patch", "patch_area", "patch_lives")
_NEEDED = {"defense": str, "number": int, "image": str, "label": int, "class": str}

Line = dict[str, Any]


class AttackLines(NamedTuple):
    """What ``attacks.jsonl`` holds.

    Attributes:
      settings: what decided the numbers of the attack.
      about: what is known beside that, such as the names of all classes.
      lines: one for each image and defense.
    """

    settings: dict[str, Any]
    about: dict[str, Any]
    lines: list[Line]


class AttackedSet(NamedTuple):
    """Images of an attack.

    Attributes:
      class_names: of the classes that they may have, each once.
      class_outputs: the output of the attacked model that each class is; None where they are
        numbered in this order.
      files: of the images.
      facts: which attack, of which run, and what tells its images from others; JSON-able.
      notes: what to know of them, in lines.
    """

    class_names: tuple[str, ...]
    class_outputs: Mapping[str, int] | None
    files: tuple[ImageFile, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def read_lines(folder: AnyPath) -> AttackLines | None:
    """What an attack wrote into a folder; None where there is nothing.

    A last line that a killed process did not finish is left out, and so are further lines of what
    has one: where no lock kept them apart two processes may have attacked the same images.

    Raises:
      ValueError: for a file that is no such list, or of another format; says which line.
    """
    path = folder / LINES
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    whole = text[: text.rfind("\n") + 1].split("\n")[:-1]
    head, *lines = [_read_line(path, number, line) for number, line in enumerate(whole, 1)] or [{}]
    if head.get("format") != FORMAT or not isinstance(head.get("settings"), dict):
        raise ValueError(
            f"{path}: expected settings of an attack of format {FORMAT} in its first line, got "
            f"format {head.get('format')!r}; choose another folder"
        )
    first: dict[tuple[str, str | None, int], Line] = {}
    for line in lines:
        first.setdefault((line["defense"], line.get("patch"), line["number"]), line)
    return AttackLines(head["settings"], dict(head.get("about") or {}), list(first.values()))


def read(folder: Path, split: str) -> AttackedSet:
    """The images of one split of an attack.

    Args:
      folder: of the attack.
      split: a defense as it was attacked, ``undefended`` or the name of a given patch; with
        ``/broken`` behind it those alone that were answered wrongly. Empty: the only one there is.

    Raises:
      FileNotFoundError: for a folder without an attack, or an image that is gone.
      ValueError: for lines that are damaged, a split that there is not, or none of several.
    """
    attack = read_lines(folder)
    if attack is None:
        got = lacking(folder, "make an attack into it, or give the folder of one")
        raise FileNotFoundError(
            f"{folder}: expected the folder of an attack, with {LINES}, got {got}"
        )
    groups: dict[str, list[Line]] = {}
    for line in attack.lines:
        if "file" in line:
            groups.setdefault(str(line.get("patch") or line["defense"]), []).append(line)
    name, is_broken = split.removesuffix(_BROKEN), split.endswith(_BROKEN)
    if not name and len(groups) == 1:
        name = next(iter(groups))
    if name not in groups:
        raise SettingError(
            lambda say: (
                f"{folder}: expected {say('split', None)}, whose patched images are meant: "
                f"{some(list(groups)) or 'none is there yet'}, or one of these with {_BROKEN}"
                + (f", got {split!r}{like(name, groups)}" if split else "")
            )
        )
    # A given patch is there once for every defense; it counts as broken where the first one broke.
    first: dict[int, Line] = {}
    for line in groups[name]:
        first.setdefault(line["number"], line)
    chosen = [first[n] for n in sorted(first) if first[n]["broken"] or not is_broken]
    if not chosen:
        raise ValueError(f"{folder}: expected images of {name} that are broken, got none")
    names, index = _classes(attack, chosen)
    place = _places(names, index, attack.settings)
    files, digest = [], hashlib.sha256()
    for line in chosen:
        path = folder / line["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the image that {LINES} names, found none")
        content = path.read_bytes()
        digest.update(f"{line['image']} {line['label']} {len(content)}\n".encode())
        digest.update(content)
        if line["label"] not in place:
            raise ValueError(
                f"{folder / LINES}: expected labels of {len(names)} classes, got {line['label']} "
                f"for image {line['image']}"
            )
        files.append(ImageFile(path, line["image"], place[line["label"]], len(content)))
    facts = {
        "attacked": {
            "split": name + _BROKEN * is_broken,
            "images_sha256": digest.hexdigest(),
            "attack_sha256": fingerprint.of_facts(attack.settings),
            "attack": attack.settings.get("attack"),
            "run": {key: attack.settings.get(key) for key in _OF_RUN if key in attack.settings},
        }
    }
    note = (
        f"{len(chosen)} patched images of {name} in {folder}: what is called clean here is right "
        "in spite of the patch"
    )
    return AttackedSet(names, index, tuple(files), facts, (note,))


def _read_line(path: AnyPath, number: int, text: str) -> Line:
    """A line; ``ValueError`` says which one is damaged."""
    needed = _NEEDED if number > 1 else {}
    try:
        line = dict(json_of(text))
        if not all(isinstance(line[key], kind) for key, kind in needed.items()):
            raise ValueError(f"expected {', '.join(needed)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the lines of an attack, but line {number} is damaged "
            f"({type(error).__name__}: {error}); restore the file, or choose another folder"
        ) from error
    return {"broken": None, **line} if needed else line


def _classes(
    attack: AttackLines, chosen: Sequence[Line]
) -> tuple[tuple[str, ...], Mapping[str, int] | None]:
    """The names of the classes, and the outputs of the attacked model that they are."""
    named = [str(name) for name in attack.about.get("class_names") or ()]
    kept = attack.settings.get("only_classes")
    given = attack.settings.get("classes")
    if given:
        index = {str(name): int(output) for name, output in given.items()}
        if kept:
            index = {name: int(kept[output]) for name, output in index.items()}
        return tuple(index), index
    if not all(named) or len(set(named)) != len(named) or not named:
        named = [str(number) for number in range(1 + max(line["label"] for line in chosen))]
    if kept and len(kept) == len(named):
        return tuple(named), dict(zip(named, map(int, kept), strict=True))
    return tuple(named), None


def _places(
    names: Sequence[str], index: Mapping[str, int] | None, settings: Mapping[str, Any]
) -> dict[int, int]:
    """Where the class of a label stands among the names: labels are what the attacked model had."""
    if index is None:
        return {number: number for number in range(len(names))}
    kept = settings.get("only_classes")
    label_of = {int(output): label for label, output in enumerate(kept)} if kept else None
    places: dict[int, int] = {}
    for place, name in enumerate(names):
        label = index[name] if label_of is None else label_of[index[name]]
        places.setdefault(label, place)
    return places
