"""What an attack of a run shows on its page: what it made of each image, and patched ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import Report
from certmask_jax.data import decoding
from certmask_jax.data.attacked_sets import LINES, Line, read_lines
from certmask_jax.defenses import ALERT
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.pages import pictures
from certmask_jax.pages.image_data import Attacked
from certmask_jax.programs.attacking.attack_options import UNDEFENDED
from certmask_jax.tables.outputs import NO_LABEL

_WORDS = {"alert": ALERT, "none": NO_LABEL}
_ATTACKED = 1_500_000  # characters of a page


def attacked_rows(
    report: Report, rows: NDArray[np.intp], folder: Path
) -> tuple[dict[int, list[Attacked]], list[str]]:
    """What an attack of the run made of its images; patched ones as far as a page holds them."""
    there = read_lines(folder)
    if there is None:
        return {}, [f"No patched images are shown: {folder / LINES} is not there."]
    shown = {report.ids[row]: row for row in rows.tolist()}
    specs = {d.spec: number for number, d in reversed(list(enumerate(report.defenses)))}
    lines = [
        line
        for line in there.lines
        if line["image"] in shown and line["broken"] is not None
        and (line["defense"] == UNDEFENDED or line["defense"] in specs)
    ]  # fmt: skip
    addresses, said = _patched_pictures(folder, lines)
    made: dict[int, list[Attacked]] = {}
    for place, line in enumerate(lines):
        number = None if line["defense"] == UNDEFENDED else specs[line["defense"]]
        after = _WORDS[line["after"]] if line["after"] in _WORDS else line["after"]
        one = Attacked(number, int(after), bool(line["broken"]), addresses.get(place))
        made.setdefault(shown[line["image"]], []).append(one)
    return made, said


def _patched_pictures(folder: Path, lines: Sequence[Line]) -> tuple[dict[int, str], list[str]]:
    """Addresses of the patched images that broke a defense, first of all; by number of line."""
    there = [place for place, line in enumerate(lines) if _is_there(folder, line)]
    order = sorted(there, key=lambda place: not lines[place]["broken"])

    def read(number: int) -> NDArray[np.uint8] | None:
        file = lines[order[number]]["file"]
        try:
            image = np.asarray(decoding.decode(folder / file, file), np.uint8)
        except UnreadableImage:
            return None
        return image.reshape(*image.shape[:2], -1)

    shown, unreadable = pictures.first_data_uris(read, len(order), budget=_ATTACKED)
    gone = len(lines) - len(there) + unreadable
    are = "is" if gone == 1 else "are"
    what = counted(gone, "patched image")
    said = [f"{what} of the attack {are} not there."] if gone else []
    if len(shown) + gone < len(lines):
        said.append(
            f"Of {counted(len(lines) - gone, 'patched image')} {len(shown)} are shown, those "
            "that broke a "
            "defense first; all are in the folder of the attack."
        )
    return {order[number]: address for number, address in shown.items()}, said


def _is_there(folder: Path, line: Line) -> bool:
    return "file" in line and (folder / line["file"]).is_file()
