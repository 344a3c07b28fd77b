"""The error of an image that a test set has and cannot give."""

from __future__ import annotations


class UnreadableImage(ValueError):
    """One image cannot be decoded, or is gone; its text names the file and says why.

    Attributes:
      image_id: as the test set calls the image.
      why: what the decoder or the system said, in one line.
    """

    def __init__(self, image_id: str, why: str, *, where: str | None = None) -> None:
        self.image_id = image_id
        self.why = why
        super().__init__(f"{where or image_id}: expected an image that can be decoded ({why})")
