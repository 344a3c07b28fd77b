"""Where images come from: the embedded digits, a folder of files, a prepared TFDS data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})
_DIGITS_TEST = 500
_DIGITS_SEED = 2026


class Found(NamedTuple):
    """A split of a data set, not decoded yet."""

    num_images: int
    class_names: tuple[str, ...]
    example: Callable[[int], tuple[Any, int, str]]
    """Number -> image (``uint8[h, w, c]`` or Pillow's), label, id; ``ValueError`` if unreadable."""


def digits_arrays(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The digits' ``train`` (1,297) or ``test`` (500) split: images ``uint8[T, 8, 8, 1]``, labels.

    The split is a fixed shuffle; the grey levels 0 to 16 are spread over 0 to 255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(bunch.images))
    chosen = {"test": order[:_DIGITS_TEST], "train": order[_DIGITS_TEST:]}
    if split not in chosen:
        raise ValueError(f"split: expected one of {', '.join(sorted(chosen))}, got {split!r}")
    pixels = np.round(bunch.images[chosen[split]] * (255 / 16)).astype(np.uint8)
    return pixels[..., None], bunch.target[chosen[split]].astype(np.int32)


def digits(split: str) -> Found:
    """``train`` or ``test`` of the embedded digits, or a slice of one."""
    base, cut = _split_slice(split)
    images, labels = digits_arrays(base)
    chosen = range(len(images))[cut(len(images))]

    def example(number: int) -> tuple[Any, int, str]:
        i = chosen[number]
        return images[i], int(labels[i]), f"{base}:{i}"

    return Found(len(chosen), tuple(str(digit) for digit in range(10)), example)


def image_folder(split: str, data_dir: Path | str | None) -> Found:
    """``DATA_DIR/[SPLIT/]CLASS/*.jpg``; classes in the order of their names, as torchvision's."""
    if data_dir is None:
        raise ValueError("--data-dir: expected the folder of image_folder, which has CLASS/*.jpg")
    base, cut = _split_slice(split)
    folder = Path(data_dir) / base
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with one subfolder a class")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    files = files[cut(len(files))]

    def example(number: int) -> tuple[Any, int, str]:
        from PIL import Image

        path, label = files[number]
        try:
            with Image.open(path) as image:
                image.load()
                return image.copy(), label, str(path.relative_to(folder))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: expected an image that can be decoded ({error})") from error

    return Found(len(files), tuple(classes), example)


def tfds(name: str, split: str, data_dir: Path | str | None) -> Found:
    """A TFDS data set that was prepared as array_record, read without TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} is read with tensorflow-datasets, which is missing ({error}); "
            "pip install 'certmask_jax[data]'"
        ) from error
    where = "its default folder" if data_dir is None else str(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises many kinds, some of its own
        raise FileNotFoundError(_unprepared(name, where, str(error).split("\n")[0])) from error
    if not builder.info.splits:
        raise FileNotFoundError(_unprepared(name, where, "it has no prepared splits"))
    base, _ = _split_slice(split)
    if base not in builder.info.splits:
        raise ValueError(
            f"split: expected one of {', '.join(sorted(builder.info.splits))} of {name!r} "
            f"(slices such as test[:100] are fine), got {split!r}"
        )
    try:
        source: Sequence[Any] = builder.as_data_source(split=split)
    except Exception as error:
        raise FileNotFoundError(_unprepared(name, where, str(error).split("\n")[0])) from error
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise ValueError(f"data set {name!r}: expected features image and label, got {features}")

    def example(number: int) -> tuple[Any, int, str]:
        try:
            found = source[number]
            image = np.asarray(found["image"])
        except Exception as error:  # of the decoder, of many kinds
            raise ValueError(
                f"{name} {split}:{number}: expected an image that can be decoded ({error})"
            ) from error
        raw = found.get("id", found.get("file_name"))
        image_id = f"{split}:{number}" if raw is None else _text(raw)
        return image, int(found["label"]), image_id

    return Found(len(source), tuple(features["label"].names), example)


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def _unprepared(name: str, where: str, why: str) -> str:
    return (
        f"data set {name!r}: expected it prepared for array_record in {where} ({why}). Prepare it "
        f'once where TFDS can fetch it: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record', data_dir='DIR')"
        '.download_and_prepare()", then give --data-dir DIR'
    )


def _split_slice(split: str) -> tuple[str, Callable[[int], slice]]:
    """``"test[10:20]"`` -> ``"test"`` and a function from a count to the slice."""
    match = re.fullmatch(r"([\w./-]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise ValueError(
            f"split: expected test, test[:100], test[10%:20%] or the like, got {split!r}"
        )
    base, first, last = match.groups()

    def place(text: str | None, count: int) -> int | None:
        if text is None:
            return None
        return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    return base, lambda count: slice(place(first, count), place(last, count))
