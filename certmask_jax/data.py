"""Data sets by name, as uint8 images of the size that a model sees, a few at a time.

Preprocessing (resize, crop; Pillow, on uint8) is the model's data config; normalisation happens on
the device, after masking's place has been decided.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.models import DataConfig

# Name -> (one line, split that results are reported on, name for TFDS or None).
_KNOWN: dict[str, tuple[str, str, str | None]] = {
    "digits": ("8x8 handwritten digits (UCI, with scikit-learn); embedded", "test", None),
    "image_folder": ("DATA_DIR/[SPLIT/]CLASS/*.jpg|png, any images", "", None),
    "cifar10": ("32x32, 10 classes (TFDS, prepared)", "test", "cifar10"),
    "cifar100": ("32x32, 100 classes (TFDS, prepared)", "test", "cifar100"),
    "imagenette": ("10 ImageNet classes (TFDS, prepared)", "validation", "imagenette/full-size-v2"),
    "imagenet2012": ("1,000 classes (TFDS, prepared)", "validation", "imagenet2012"),
}
_TFDS = "tfds:"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})
_DIGITS_TEST = 500
_DIGITS_SEED = 2026


class Batch(NamedTuple):
    """Some images of a data set."""

    images: NDArray[np.uint8]  # [B, h, w, c]
    labels: NDArray[np.int32]  # [B]
    ids: tuple[str, ...]  # [B]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split; :func:`load` makes it, ``read`` gives images as the model sees them."""

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    _count: int
    _example: Callable[[int], tuple[Any, int, str]] = dataclasses.field(repr=False)
    _prepare: Callable[[Any, str], NDArray[np.uint8]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` (cut to the end), decoded now.

        Raises:
          ValueError: naming an image that cannot be decoded.
        """
        found = [self._example(i) for i in range(start, min(stop, self._count))]
        images = np.stack([self._prepare(image, name) for image, _, name in found])
        labels = np.array([label for _, label, _ in found], dtype=np.int32)
        return Batch(images, labels, tuple(name for _, _, name in found))


def names() -> dict[str, str]:
    """Name -> one line about it."""
    listed = {name: about for name, (about, _, _) in _KNOWN.items()}
    return {**listed, f"{_TFDS}NAME": "any other TFDS data set with image and label, prepared"}


def check_name(name: str) -> None:
    """``ValueError`` for a name that :func:`load` does not know, listing those that it does."""
    if name not in _KNOWN and not name.startswith(_TFDS):
        close = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"data set: expected one of {', '.join(names())}, got {name!r}{hint}")


def load(
    name: str,
    *,
    data_config: DataConfig,
    split: str | None = None,
    data_dir: Path | str | None = None,
    num_images: int | None = None,
    native: bool = False,
) -> Dataset:
    """A data set by name.

    Args:
      name: one of :func:`names`.
      data_config: how the model wants its images.
      split: such as ``test``, ``test[300:400]`` or ``validation[:10%]``; by default the one that
        results are reported on.
      data_dir: where a TFDS data set was prepared, or the image folder.
      num_images: only the first ones.
      native: leave images at their own size, which has to be the same for all, for a forward pass
        that resizes after masking.

    Raises:
      ValueError: for an unknown name or split, an empty data set, or fewer images than asked for.
      FileNotFoundError: for a data set that is not there, with what to do about it.
    """
    check_name(name)
    _, usual, source = _KNOWN.get(name, ("", "test", name.removeprefix(_TFDS)))
    split = usual if split is None else split
    if name == "digits":
        found = _digits(split)
    elif name == "image_folder":
        found = _image_folder(split, data_dir)
    else:
        found = _tfds(str(source), split, data_dir)
    count, class_names, example = found
    if count == 0:
        raise ValueError(f"data set {name!r}, split {split!r}: expected at least 1 image, got none")
    if num_images is not None:
        if num_images > count:
            raise ValueError(
                f"num_images: expected at most {count}, as many as {name!r}, split {split!r} has, "
                f"got {num_images}"
            )
        count = num_images

    if native:
        size = _size(example(0)[0])
        data_config = dataclasses.replace(data_config, input_size=size, resize=None)

    def prepare(image: Any, image_id: str) -> NDArray[np.uint8]:
        if native and _size(image) != data_config.input_size:
            raise ValueError(
                f"{image_id}: expected {data_config.input_size} (height, width) pixels like the "
                f"first image, as masking at native resolution needs one size, got {_size(image)}"
            )
        return preprocess(image, data_config, image_id)

    size = data_config.input_size
    return Dataset(name, split, len(class_names), class_names, size, count, example, prepare)


def preprocess(image: Any, config: DataConfig, image_id: str = "image") -> NDArray[np.uint8]:
    """An image ``uint8[h, w, c]`` (or a Pillow image) as ``uint8`` of the model's input size.

    Resizes the shorter side and crops the centre if the config says so, else straight to the input
    size; an image that has it already is left alone.
    """
    from PIL import Image

    height, width = config.input_size
    mode = "RGB" if config.channels == 3 else "L"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"{image_id}: expected uint8 pixels [h, w, c], got {image.dtype} {image.shape}"
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    image = image.convert(mode)
    if image.size != (width, height):
        how = Image.Resampling[config.interpolation.upper()]
        if config.resize is None:
            image = image.resize((width, height), how)
        else:
            # The longer side is cut to whole pixels, as torchvision does (exact in integers).
            short = min(image.size)
            image = image.resize(tuple(config.resize * side // short for side in image.size), how)
            left = round((image.size[0] - width) / 2)
            top = round((image.size[1] - height) / 2)
            image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, dtype=np.uint8).reshape(height, width, config.channels)


def _size(image: Any) -> tuple[int, int]:
    """Height and width of an array or a Pillow image."""
    if isinstance(image, np.ndarray):
        return int(image.shape[0]), int(image.shape[1])
    return int(image.size[1]), int(image.size[0])


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


_Found = tuple[int, tuple[str, ...], Callable[[int], tuple[Any, int, str]]]


def _digits(split: str) -> _Found:
    base, cut = _split_slice(split)
    images, labels = digits_arrays(base)
    chosen = range(len(images))[cut(len(images))]

    def example(number: int) -> tuple[Any, int, str]:
        i = chosen[number]
        return images[i], int(labels[i]), f"{base}:{i}"

    return len(chosen), tuple(str(digit) for digit in range(10)), example


def _image_folder(split: str, data_dir: Path | str | None) -> _Found:
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

    return len(files), tuple(classes), example


def _tfds(name: str, split: str, data_dir: Path | str | None) -> _Found:
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
        found = source[number]
        raw = found.get("id", found.get("file_name"))
        image_id = f"{split}:{number}" if raw is None else _text(raw)
        return np.asarray(found["image"]), int(found["label"]), image_id

    return len(source), tuple(features["label"].names), example


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
