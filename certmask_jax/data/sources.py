"""Where images come from: the embedded digits, folders of files, a prepared TFDS data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import NotPreparedError, SettingError
from certmask_jax._text import encodable
from certmask_jax.data import attacked_sets, decoding, folders, image_lists
from certmask_jax.data.embedded_digits import digits_arrays
from certmask_jax.data.listing import ImageFile
from certmask_jax.files.quiet_logs import errors_alone
from certmask_jax.files.storage import local_path
from certmask_jax.files.unreadable import UnreadableImage


class Found(NamedTuple):
    """A split of a data set, not decoded yet.

    Attributes:
      num_images: T.
      class_names: of the classes that it has, each once.
      example: number -> image (``uint8[h, w, c]`` or Pillow's), number of its class, id; raises
        ``UnreadableImage``.
      in_order: whether the data set numbers its classes itself.
      files: of a data set of files, all T.
      notes: what was left out, in lines.
      missing: images that a list names and that are not there.
      classes_of: the classes of the first n images, without decoding them, ``int[n]``.
      class_outputs: name -> output of each class, where the data set itself records it.
      as_they_are: images of the size that a model wants are given to it without another resize.
      facts: what decides its images beside their names, for the fingerprint of a run; JSON-able.
    """

    num_images: int
    class_names: tuple[str, ...]
    example: Callable[[int], tuple[Any, int, str]]
    in_order: bool = True
    files: tuple[ImageFile, ...] | None = None
    notes: tuple[str, ...] = ()
    classes_of: Callable[[int], NDArray[np.int64]] | None = None
    missing: tuple[str, ...] = ()
    class_outputs: Mapping[str, int] | None = None
    as_they_are: bool = False
    facts: Mapping[str, Any] = MappingProxyType({})


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
    """``DATA_DIR/[SPLIT/]CLASS/*.jpg``; see ``data.folders``."""
    if data_dir is None:
        raise SettingError(
            lambda say: (
                f"{say('data_dir', None)}: expected the folder of image_folder, which has "
                "CLASS/*.jpg"
            )
        )
    base, cut = _split_slice(split)
    folder = folders.scan(folders.check_folder(local_path(data_dir), base), split=base)
    return _of_files(folder.class_names, folder.files, cut, folder.notes)


def image_list(split: str, data_dir: Path | str | None, labels: Path | str | None) -> Found:
    """The images of ``DATA_DIR/[SPLIT/]`` that a list names, see ``image_lists.read``."""
    if data_dir is None or labels is None:
        raise SettingError(
            lambda say: (
                f"image_list: expected a folder of images ({say('data_dir', None)}) and a list of "
                f"labels ({say('labels', None)})"
            )
        )
    base, cut = _split_slice(split)
    folder = local_path(data_dir) / base if base else local_path(data_dir)
    listed = image_lists.read(folder, local_path(labels))
    files = _of_files(listed.class_names, listed.files, cut, listed.notes)
    return files._replace(missing=listed.missing)


def attacked(split: str, data_dir: Path | str | None) -> Found:
    """The patched images of an attack, see ``attacked_sets.read``; their pixels are not resized."""
    if data_dir is None:
        raise SettingError(
            lambda say: (
                f"attacked: expected the folder of an attack, attacked:FOLDER or "
                f"{say('data_dir', None)}"
            )
        )
    base, cut = _split_slice(split)
    read = attacked_sets.read(local_path(data_dir), base)
    pictures = _of_files(read.class_names, read.files, cut, read.notes)
    return pictures._replace(
        in_order=read.class_outputs is None,
        class_outputs=read.class_outputs,
        as_they_are=True,
        facts=read.facts,
    )


def _of_files(
    class_names: tuple[str, ...],
    files: tuple[ImageFile, ...],
    cut: Callable[[int], slice],
    notes: tuple[str, ...],
) -> Found:
    files = files[cut(len(files))]

    def example(number: int) -> tuple[Any, int, str]:
        file = files[number]
        return decoding.decode(file.path, file.image_id), file.number, file.image_id

    def classes_of(count: int) -> NDArray[np.int64]:
        return np.array([file.number for file in files[:count]], np.int64)

    return Found(len(files), class_names, example, False, files, notes, classes_of)


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
        with errors_alone():
            builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises many kinds, some of its own
        raise _unprepared(name, where, str(error).split("\n")[0]) from error
    if not builder.info.splits:
        raise _unprepared(name, where, "it has no prepared splits")
    base, _ = _split_slice(split)
    if base not in builder.info.splits:
        raise ValueError(
            f"split: expected one of {', '.join(sorted(builder.info.splits))} of {name!r} "
            f"(slices such as test[:100] are fine), got {split!r}"
        )
    try:
        with errors_alone():
            source: Sequence[Any] = builder.as_data_source(split=split)
    except Exception as error:
        raise _unprepared(name, where, str(error).split("\n")[0]) from error
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise ValueError(f"data set {name!r}: expected features image and label, got {features}")

    def example(number: int) -> tuple[Any, int, str]:
        try:
            with errors_alone():
                record = source[number]
                image = np.asarray(record["image"])
        except MemoryError:
            raise
        except Exception as error:  # of the decoder, of many kinds
            where = f"{name} {split}:{number}"
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnreadableImage(f"{split}:{number}", why, where=where) from error
        raw = record.get("id", record.get("file_name"))
        image_id = f"{split}:{number}" if raw is None else encodable(_text(raw))
        number_of_class = int(record["label"])
        if not 0 <= number_of_class < len(names):  # -1 in splits whose labels were not published
            raise ValueError(
                f"{name} {split}: expected labels from 0 to {len(names) - 1}, got "
                f"{number_of_class} for image {image_id}; choose a split that has labels"
            )
        return image, number_of_class, image_id

    def classes_of(count: int) -> NDArray[np.int64]:
        plain = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        return np.array([int(plain[number]["label"]) for number in range(count)], np.int64)

    label = features["label"]
    names = tuple(map(encodable, getattr(label, "names", None) or ()))
    if not names:
        count = getattr(label, "num_classes", None)
        if not count:
            raise ValueError(
                f"data set {name!r}: expected a label that is one of some classes, got {label}"
            )
        names = tuple(map(str, range(count)))
    return Found(len(source), names, example, classes_of=classes_of)


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else str(raw)


def _unprepared(name: str, where: str, why: str) -> NotPreparedError:
    return NotPreparedError(
        lambda say: (
            f"data set {name!r}: expected it prepared for array_record in {where} ({why}). Prepare "
            f'it once where TFDS can fetch it: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', file_format='array_record', data_dir='DIR')"
            f'.download_and_prepare()", then give {say("data_dir", "DIR")}'
        )
    )


def _split_slice(split: str) -> tuple[str, Callable[[int], slice]]:
    """``"test[10:20]"`` -> ``"test"`` and a function from a count to the slice."""
    match = re.fullmatch(r"([^\[\]]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
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
