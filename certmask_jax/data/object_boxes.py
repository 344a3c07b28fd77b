"""Files that say where the objects of images are: CSV, COCO's JSON, and folders of Pascal VOC XML.

ImageNet's own boxes are such a folder (``Annotations/CLS-LOC/val``), and ``LOC_val_solution.csv``
of the same challenge. Boxes are of the file as it was published, before any resize and crop; what a
model sees of them is a matter of ``object_shares``.
"""

from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from certmask_jax._text import encodable, json_of, text_in
from certmask_jax.data.label_tables import FILE_COLUMNS
from certmask_jax.data.names_of_images import matched

Box = tuple[float, float, float, float]
"""``(left, top, right, bottom)`` in pixels of the file: edges, from 0 to its width and height."""

_EDGES = (("x0", "xmin", "left"), ("y0", "ymin", "top"), ("x1", "xmax", "right"),
          ("y1", "ymax", "bottom"))  # fmt: skip
_SIZE = ("imageheight", "imagewidth")
_STRING = "predictionstring"  # of ImageNet's challenge: a class and a box, again and again


class Objects(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes: one or more.
      size: ``(height, width)`` of the image that the boxes are of, where their file says so.
    """

    boxes: tuple[Box, ...]
    size: tuple[float, float] | None


class Matched(NamedTuple):
    """What a file of boxes says of the images of a run.

    Attributes:
      of_image: id of an image -> its objects; images without a box are not in it.
      others: names in the file that are no image of the run.
    """

    of_image: dict[str, Objects]
    others: tuple[str, ...]


def read(path: Path, ids: Sequence[str]) -> Matched:
    """The boxes of the images that ``ids`` name.

    An image is meant by its id, with or without the suffix, or by the end of that path: its name
    alone where no other image has it.

    Args:
      path: a CSV file with columns of ids and of ``x0, y0, x1, y1`` (``xmin, ymin, xmax, ymax``; or
        ``PredictionString``), a row for each box, with ``image_width, image_height`` or without;
        COCO's JSON; or a folder of XML files, one for each image, at any depth.
      ids: of the images, each once.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for what cannot be read, a box that is none, a name that may mean several images,
        or where no image has a box.
    """
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*.xml"))}
        if not files:
            raise ValueError(f"{path}: expected a folder of XML files with boxes, found none")
        names, others = matched(path, [name.removesuffix(".xml") for name in files], ids)
        read_files = {image: _of_xml(files[f"{name}.xml"]) for name, image in names.items()}
        with_boxes = {image: own for image, own in read_files.items() if own.boxes}
        if not with_boxes:
            raise ValueError(f"{path}: expected at least 1 box of an image of the run, got none")
        return Matched(with_boxes, others)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file or folder with boxes, found none")
    text = text_in(path)
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    objects = _of_coco(path, text) if is_json else _of_csv(path, text)
    if not objects:
        raise ValueError(f"{path}: expected at least 1 box, got none")
    names, others = matched(path, list(objects), ids)
    return Matched({image: objects[name] for name, image in names.items()}, others)


def _of_csv(path: Path, text: str) -> dict[str, Objects]:
    try:
        first = text.lstrip().partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise ValueError(f"{path}: expected a CSV file, got another ({error})") from error
    header = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0]] if rows else []
    image = next((header.index(name) for name in FILE_COLUMNS if name in header), None)
    places = [next((header.index(n) for n in names if n in header), None) for names in _EDGES]
    string = header.index(_STRING) if _STRING in header else None
    if image is None or (string is None and None in places):
        raise ValueError(
            f"{path}: expected a first line with a column of images (id, file, ...) and x0, y0, "
            f"x1, y1, got {', '.join(rows[0]) if rows else 'an empty file'}"
        )
    size = [header.index(name) for name in _SIZE if name in header]
    made: dict[str, Objects] = {}
    for number, row in enumerate(rows[1:], 2):
        where = f"{path}, row {number}"
        if len(row) != len(header) or not row[image].strip():
            raise ValueError(f"{where}: expected {len(header)} cells, the first line's, got {row}")
        name = encodable(row[image].strip())
        if string is not None:
            boxes = _of_string(where, row[string])
        else:
            boxes = (_box(where, [row[place] for place in places if place is not None]),)
        own = tuple(_numbers(where, [row[place] for place in size])) if len(size) == 2 else None
        before = made.get(name)
        if before is not None and before.size != own:
            raise ValueError(f"{where}: expected one size for each image, got two of {name}")
        boxes = (() if before is None else before.boxes) + boxes
        made[name] = Objects(boxes, _size(where, own))
    return made


def _of_string(where: str, text: str) -> tuple[Box, ...]:
    """``n01440764 85 1 499 272 n01440764 ...``."""
    words = text.split()
    if not words or len(words) % 5:
        raise ValueError(f"{where}: expected a class and 4 numbers for each box, got {text!r}")
    return tuple(_box(where, words[at + 1 : at + 5]) for at in range(0, len(words), 5))


def _of_coco(path: Path, text: str) -> dict[str, Objects]:
    try:
        content = json_of(text)
        images = {one["id"]: one for one in content["images"]}
        annotated = [
            (
                one.get("id", place),
                images[one["image_id"]],
                encodable(str(images[one["image_id"]]["file_name"])),
                list(one["bbox"]),
            )
            for place, one in enumerate(content["annotations"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected COCO's JSON, images with file_name and annotations with image_id "
            f"and bbox ({type(error).__name__}: {error})"
        ) from error
    made: dict[str, Objects] = {}
    image_of: dict[str, Any] = {}
    for number, image, name, corner in annotated:
        where = f"{path}, annotation {number}"
        if image_of.setdefault(name, image) is not image:
            raise ValueError(f"{where}: expected one image for each file_name, got two of {name}")
        if len(corner) != 4:
            raise ValueError(f"{where}: expected bbox as [x, y, width, height], got {corner}")
        left, top, width, height = _numbers(where, corner)
        boxes = (_box(where, [left, top, left + width, top + height]),)
        if name in made:
            made[name] = made[name]._replace(boxes=made[name].boxes + boxes)
        else:
            sides = [image.get(side) for side in ("height", "width")]
            made[name] = Objects(
                boxes, None if None in sides else _size(f"{path}, {name}", tuple(sides))
            )
    return made


def _of_xml(file: Path) -> Objects:
    try:
        root = xml.parse(file).getroot()
    except (xml.ParseError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{file}: expected XML in the form of Pascal VOC ({error})") from error
    boxes = []
    for one in root.iter("bndbox"):
        edges = [one.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(_box(str(file), edges))
    sides = [root.findtext(f"size/{name}") for name in ("height", "width")]
    size = None if None in sides else _size(str(file), tuple(_numbers(str(file), sides)))
    return Objects(tuple(boxes), size)


def _box(where: str, cells: Iterable[Any]) -> Box:
    left, top, right, bottom = _numbers(where, cells)
    if not (left < right and top < bottom):
        raise ValueError(
            f"{where}: expected a box with x0 < x1 and y0 < y1, got {left:g}, {top:g}, {right:g}, "
            f"{bottom:g}"
        )
    return left, top, right, bottom


def _numbers(where: str, cells: Iterable[Any]) -> list[float]:
    given = list(cells)
    try:
        numbers = [float(cell) for cell in given]
    except (TypeError, ValueError, OverflowError):  # JSON has integers of any size
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: expected numbers of pixels, got {', '.join(map(str, given))}")
    return numbers


def _size(where: str, sides: tuple[float, ...] | None) -> tuple[float, float] | None:
    if sides is None:
        return None
    height, width = _numbers(where, sides)
    if height <= 0 or width <= 0:
        raise ValueError(
            f"{where}: expected an image of at least 1 pixel, got {width:g}x{height:g}"
        )
    return height, width
