"""Patches that are given: read from files, fitted to a threat, and pasted into images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax.data import decoding, folders
from certmask_jax.masks.threats import Shape, Threat
from certmask_jax.programs.attacking.given_places import hosts


class GivenPatch(NamedTuple):
    """A patch, and what it is called.

    Attributes:
      name: of the patch, each once.
      pixels: ``uint8[h, w, c]``.
    """

    name: str
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> Shape:
        """``(height, width)``."""
        return self.pixels.shape[0], self.pixels.shape[1]


def read(path: Path) -> list[GivenPatch]:
    """The patches in a file or folder, in its order.

    Args:
      path: an image; a folder of images, which are taken in the order of their names; or an
        ``.npz`` with ``patches`` ``[P, h, w, c]``, ``uint8`` or floating in [0, 1], and perhaps
        ``names`` ``[P]``.

    Raises:
      FileNotFoundError: for nothing there.
      ValueError: for what cannot be read as patches.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if folders.is_image(p.name) and p.is_file())
        if not files:
            raise ValueError(f"{path}: expected a folder with images of patches, found none in it")
        names = folders.unique_names([file.name for file in files])
        return [_of_image(file, name) for file, name in zip(files, names, strict=True)]
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected an image, a folder of images or an .npz")
    return _of_npz(path) if path.suffix == ".npz" else [_of_image(path, path.name)]


def fitted(
    patches: Sequence[GivenPatch], threat: Threat, channels: int, *, scale: bool
) -> list[GivenPatch]:
    """The patches in the channels of the images, and of sizes that a threat allows.

    Args:
      patches: of any sizes.
      threat: what was certified against.
      channels: 1 or 3.
      scale: resize every patch (bicubic) to the largest shape that each patch of the threat may
        have. Otherwise they keep their sizes: a patch that is resized is another patch, and may be
        weaker.

    Raises:
      ValueError: for a patch that is too large, unless it is scaled: of such patches no certificate
        says anything.
    """
    common = [one for one in threat.shapes if all(hosts(one, of) for of in threat.patches)]
    largest = max(common, key=lambda shape: (shape[0] * shape[1], shape), default=None)
    if scale and largest is None:
        raise ValueError(
            f"--scale-patch-images: expected a shape that every patch may have, got {threat}"
        )
    made = []
    for patch in patches:
        if not scale and not all(hosts(patch.size, shapes) for shapes in threat.patches):
            height, width = patch.size
            raise ValueError(
                f"--patch-images: expected patches that the threat allows ({threat}), got "
                f"{patch.name} of {height}x{width} pixels, of which no certificate says anything; "
                "--scale-patch-images resizes all to the largest that is allowed"
            )
        image = Image.fromarray(
            patch.pixels[..., 0] if patch.pixels.shape[2] == 1 else patch.pixels
        )
        image = image.convert("RGB" if channels == 3 else "L")
        if scale and largest is not None:
            image = image.resize(largest[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.uint8).reshape(image.size[1], image.size[0], channels)
        made.append(GivenPatch(patch.name, pixels))
    return made


def pasted(
    image: NDArray[np.uint8], patch: GivenPatch, place: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """A copy of ``uint8[h, w, c]`` with the patch at all places ``int64[K, 4]``."""
    made = image.copy()
    for height, width, row, column in place.tolist():
        made[row : row + height, column : column + width] = patch.pixels
    return made


def _of_image(path: Path, name: str) -> GivenPatch:
    image = decoding.decode(path, name).convert("RGB")
    return GivenPatch(name, np.asarray(image, np.uint8))


def _of_npz(path: Path) -> list[GivenPatch]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            pixels = np.asarray(stored["patches"])
            names = [str(n) for n in stored["names"]] if "names" in stored else []
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: expected an .npz with patches [P, h, w, c] ({error})") from error
    names = names or [f"patch {number}" for number in range(len(pixels))]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"{path}: expected patches [P, h, w, c] with c 1 or 3, got {list(pixels.shape)}"
        )
    if len(names) != len(pixels) or len(set(names)) != len(names):
        raise ValueError(f"{path}: expected {len(pixels)} names, each once, got {names}")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"{path}: expected floating pixels in [0, 1], or uint8, got {pixels.min():g} to "
                f"{pixels.max():g}"
            )
        pixels = np.rint(255 * pixels.astype(np.float64)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{path}: expected uint8 or floating pixels, got {pixels.dtype}")
    return [GivenPatch(name, one) for name, one in zip(names, pixels, strict=True)]
