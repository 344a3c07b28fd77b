"""Image files -> Pillow images of 8 bits, and which files cannot be decoded, found out cheaply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from certmask_jax.files.unreadable import UnreadableImage

_THREADS = 8
_TAIL = 1 << 10
# How whole files end, where the format says so; of others the pixels are decoded to find out.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}
_USUAL = ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr")  # become RGB in any case
_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Formats whose mode "I" (32 bits) holds 16-bit pixels: Pillow spreads a PGM's range over 0..65535,
# and older releases open 16-bit PNG files so.
_16_BITS_IN_32 = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


def decode(path: Path, image_id: str) -> Any:
    """The (first) image in a file, as Pillow's, with 8 bits a channel.

    Grey pixels of 16 bits keep their upper 8, as Pillow itself does with colours of 16 bits.

    Raises:
      UnreadableImage: for whatever a decoder raises, and for pixels whose range nobody knows.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return eight_bits(image.copy(), image.format, getattr(image, "tag_v2", None))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything
        raise UnreadableImage(image_id, reason(error, path), where=str(path)) from error


def header_size(path: Path, image_id: str) -> tuple[int, int]:
    """Height and width of the image in a file, which is not decoded.

    Raises:
      UnreadableImage: for whatever a decoder raises.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return int(image.height), int(image.width)
    except Exception as error:  # decoders raise anything
        raise UnreadableImage(image_id, reason(error, path), where=str(path)) from error


def eight_bits(
    image: Any, file_format: str | None = None, tags: Mapping[int, Any] | None = None
) -> Any:
    """A Pillow image whose pixels have 8 bits a channel; others are scaled as their range says.

    ``tags`` are those of a TIFF file, whose grey pixels may have 12 bits of the 16 that Pillow
    gives, and may count from white.

    Raises:
      ValueError: for modes whose range the file does not say: 32-bit integers and floats.
    """
    from PIL import Image

    mode = image.mode
    if mode in _16_BITS or (mode == "I" and file_format in _16_BITS_IN_32):
        pixels = np.asarray(image).astype(np.int64)
        tags = tags or {}
        bits = max(np.atleast_1d(tags.get(_BITS_PER_SAMPLE, 16)).tolist())
        pixels = (pixels >> (int(bits) - 8)).clip(0, 255)
        if tags.get(_PHOTOMETRIC, 1) == 0:
            pixels = 255 - pixels  # Pillow does so itself up to 8 bits
        return Image.fromarray(pixels.astype(np.uint8))
    if mode == "I" or mode == "F" or ";" in mode:
        kind = {"I": "32-bit integers", "F": "32-bit floats"}.get(mode, "more than 8 bits")
        raise ValueError(
            f"pixels are {kind} (Pillow's mode {mode}), whose range the file does not say; save "
            "it with 8 bits a channel"
        )
    return image if mode in _USUAL else image.convert("RGB")  # such as LAB, which has no way to L


def find_unreadable(files: Iterable[tuple[Path, str]]) -> dict[str, str]:
    """Id -> why, of the files that cannot be decoded as far as headers and ends of files tell.

    Of formats that do not mark their end the pixels are decoded.
    """
    with ThreadPoolExecutor(_THREADS, "looks at headers") as pool:
        asked = [(image_id, pool.submit(_why, path)) for path, image_id in files]
        reasons = ((image_id, future.result()) for image_id, future in asked)
        return {image_id: why for image_id, why in reasons if why is not None}


def reason(error: Exception, path: Path) -> str:
    """What a decoder says, in one line without the file's name."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    line = " ".join(text.split())
    for name in (repr(str(path)), str(path)):
        line = line.replace(name, "it")
    return line[:200]


def _why(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in _USUAL:
                eight_bits(Image.new(image.mode, (1, 1)), image.format)
            end = _ENDS.get(str(image.format))
            if end is None or not _tail(path).rstrip(b"\0\r\n ").endswith(end):
                image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything
        return reason(error, path)
    return None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        return file.read()
