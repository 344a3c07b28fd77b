"""The folder of an attack: a line for each image and defense, and the patched images as PNG.

``attacks.jsonl`` begins with the settings. A line is written, down to the disk, when an image is
settled and its PNG is there, down to the disk too, so a killed attack goes on where it was. What
the folder says in the end is made from these lines alone.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.data.attacked_sets import FORMAT, LINES, Line, read_lines
from certmask_jax.files import file_systems, fingerprint, storage, whole_files
from certmask_jax.files.folder_locks import FolderLock

__all__ = ["LINES", "AttackFolder", "Line"]

SUMMARY = "attack.json"


class AttackFolder:
    """What has been attacked, and the place for more; use as a context manager.

    No other process writes there until it is left, or dropped.

    Args:
      folder: new, empty, or of this same attack.
      settings: JSON-able, what decides the numbers.
      about: JSON-able, what else there is to know, such as the names of the classes.

    Raises:
      FileExistsError: for a folder that holds something else; names what differs; while another
        process attacks there.
      OSError: for a folder that cannot be written to.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.lines: list[Line] = []
        self._names: dict[str, str] = {}
        storage.check_no_file(folder, str(folder))
        holds_other = folder.exists() and any(map(_is_other, folder.iterdir()))
        if holds_other and read_lines(folder) is None:
            raise FileExistsError(
                f"{folder}: expected a new or empty folder, or this same attack to go on with, "
                "but it holds other files; choose another with --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(folder, "this attack")
        try:
            self._open(fingerprint.plain(dict(settings)), dict(about or {}))
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._lock.close()

    def _open(self, wanted: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Begins the list of lines, or reads what there is of this same attack."""
        folder = self.folder
        there = read_lines(folder)  # another process may have begun meanwhile
        if there is None:
            known = {"format": FORMAT, "settings": wanted, "about": about}
            head = json.dumps(fingerprint.plain(known), sort_keys=True)
            whole_files.write_text(folder / LINES, head + "\n")
            return
        self.lines = there.lines
        self._names = {
            _of(line): Path(line["file"]).parts[1] for line in there.lines if "file" in line
        }
        differences = fingerprint.differences(there.settings, wanted)
        if differences:
            raise FileExistsError(
                f"{folder}: expected this same attack, but {'; '.join(differences[:5])}; choose "
                "another folder with --out, or give the command of that attack"
            )
        _drop_torn_line(folder / LINES)

    def done(self) -> set[tuple[str, int]]:
        """The defenses and numbers of images that are settled."""
        return {(line["defense"], line["number"]) for line in self.lines}

    def add(self, lines: Sequence[Line], images: Sequence[NDArray[np.uint8] | None]) -> None:
        """Writes patched images and then their lines; ``images`` None where none was patched.

        Images lie in a folder of their defense, or of their given patch: those are the same for
        all defenses, and written once.
        """
        written = set()
        for line, image in zip(lines, images, strict=True):
            if image is None:
                continue
            name = Path("images") / self._name_of(_of(line)) / _as_name(line["class"])
            line["file"] = (name / f"{line['number']:06d}.png").as_posix()
            if line["file"] in written:
                continue
            written.add(line["file"])
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            whole_files.write(self.folder / line["file"], _png(image))
        text = "".join(json.dumps(fingerprint.plain(line), sort_keys=True) + "\n" for line in lines)
        path = self.folder / LINES
        with whole_files.named(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            file_systems.sync_handle(file.fileno())
        self.lines += lines

    def _name_of(self, of: str) -> str:
        """A folder for each defense or patch, as names that differ may be one name of a folder."""
        if of not in self._names:
            taken = {name.casefold() for name in self._names.values()}
            name, number = _as_name(of), 2
            while name.casefold() in taken:
                name, number = f"{_as_name(of)}-{number}", number + 1
            self._names[of] = name
        return self._names[of]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``attack.json``."""
        text = json.dumps(fingerprint.plain(dict(summary)), indent=1, sort_keys=True)
        whole_files.write_text(self.folder / SUMMARY, text + "\n")


def _png(image: NDArray[np.uint8]) -> bytes:
    """``uint8[h, w, c]``, c 1 or 3, as the content of a file."""
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()


def _is_other(file: Path) -> bool:
    """Whether a file is more than what a killed process was writing."""
    return not file.name.endswith(whole_files.UNFINISHED)


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _of(line: Line) -> str:
    """The given patch, or else the defense, that the image of a line belongs to."""
    return str(line.get("patch") or line["defense"])


def _as_name(text: str) -> str:
    """A name for a folder of what may be any text."""
    return re.sub(r"[^\w.,=+-]+", "_", text).strip(". ")[:100] or "_"
