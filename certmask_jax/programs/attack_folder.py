"""The folder of an attack: a line for each image and defense, and the patched images as PNG.

``attacks.jsonl`` begins with the settings. A line is written, down to the disk, when an image is
settled and its PNG is there, so a killed attack goes on where it was. What the folder says in the
end is made from these lines alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.files import file_systems, fingerprint, whole_files

LINES = "attacks.jsonl"
SUMMARY = "attack.json"
_FORMAT = 1

Line = dict[str, Any]


class AttackFolder:
    """What has been attacked, and the place for more.

    Args:
      folder: new, empty, or of this same attack.
      settings: JSON-able, what decides the numbers.

    Raises:
      FileExistsError: for a folder that holds something else; names what differs.
      OSError: for a folder that cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = fingerprint.plain(dict(settings))
        there = read_lines(folder)
        if there is None:
            if folder.exists() and any(folder.iterdir()):
                raise FileExistsError(
                    f"{folder}: expected a new or empty folder, or this same attack to go on with, "
                    "but it holds other files; choose another name"
                )
            folder.mkdir(parents=True, exist_ok=True)
            self.lines: list[Line] = []
            head = json.dumps({"format": _FORMAT, "settings": wanted}, sort_keys=True)
            whole_files.write_text(folder / LINES, head + "\n")
            return
        known, self.lines = there
        differences = fingerprint.differences(known, wanted)
        if differences:
            raise FileExistsError(
                f"{folder}: expected this same attack, but {'; '.join(differences[:5])}; choose "
                "another folder, or give the command of that attack"
            )
        _drop_torn_line(folder / LINES)

    def done(self) -> set[tuple[str, int]]:
        """The defenses and numbers of images that are settled."""
        return {(line["defense"], line["number"]) for line in self.lines}

    def add(self, lines: Sequence[Line], images: Sequence[NDArray[np.uint8] | None]) -> None:
        """Writes patched images and then their lines; ``images`` None where none was patched."""
        for line, image in zip(lines, images, strict=True):
            if image is not None:
                name = Path("images") / _as_name(line["defense"]) / _as_name(line["class"])
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                line["file"] = str(name / f"{line['number']:06d}.png")
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(self.folder / line["file"])
        text = "".join(json.dumps(fingerprint.plain(line), sort_keys=True) + "\n" for line in lines)
        with (self.folder / LINES).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            file_systems.sync_handle(file.fileno())
        self.lines += lines

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``attack.json``."""
        text = json.dumps(fingerprint.plain(dict(summary)), indent=1, sort_keys=True)
        whole_files.write_text(self.folder / SUMMARY, text + "\n")


def read_lines(folder: Path) -> tuple[dict[str, Any], list[Line]] | None:
    """The settings and lines of an attack's folder; None where there is none.

    A last line that a killed process did not finish is left out.

    Raises:
      ValueError: for a file that is no such list, or of another format.
    """
    try:
        text = (folder / LINES).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    whole = text[: text.rfind("\n") + 1].splitlines()
    try:
        head, *lines = [json.loads(line) for line in whole]
        settings, version = dict(head["settings"]), head["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / LINES}: expected the lines of an attack, got something else ({error}); "
            "choose another folder"
        ) from error
    if version != _FORMAT:
        raise ValueError(
            f"{folder / LINES}: expected format {_FORMAT}, got {version!r}; choose another folder"
        )
    return settings, lines


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _as_name(text: str) -> str:
    """A name for a folder of what may be any text."""
    return re.sub(r"[^\w.,=+-]+", "_", text).strip(". ")[:100] or "_"
