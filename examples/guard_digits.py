"""A guarded classifier against a patch: ``python examples/guard_digits.py`` from a clone.

Forty handwritten digits get a patch of random noise at a random place. The shipped model answers,
guarded by double masking, and no image that is certified may have a wrong answer.
"""

from __future__ import annotations

import numpy as np

import certmask_jax as cm
from certmask_jax.data import digits_arrays

COUNT = 40


def patched(images: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The images ``uint8[T, h, w, c]`` with a patch of noise of ``size`` pixels a side on each."""
    rng = np.random.default_rng(seed)
    copies = images.copy()
    for image in copies:
        top, left = rng.integers(0, image.shape[0] - size + 1, 2)
        image[top : top + size, left : left + size] = rng.integers(0, 256, (size, size, 1))
    return copies


def main() -> None:
    """Prints how many answers are right, and that no certified one is wrong."""
    images, labels = digits_arrays("test")
    images, labels = images[:COUNT], labels[:COUNT]
    loaded = cm.load_model("vit_digits")
    model = (loaded.apply_fn, loaded.params)
    how = loaded.preprocessing

    masks = cm.mask_sets.budgeted_grid(loaded.image_size, patch_size=1, masks_per_axis=4)
    defense = cm.defenses.double_masking(masks)
    table = cm.predict(*model, images, defense.masked_images, preprocessing=how)
    certified = defense.worst_case(table, labels)

    guarded = cm.defended(*model, defense, channels=1, preprocessing=how)
    answers, _, passes = guarded(patched(images, size=1, seed=0))
    right = answers == labels
    print(defense)
    print(f"certified: {certified.sum()} of {COUNT}")
    print(f"right with a patch: {right.sum()} of {COUNT}, {passes.mean():.0f} passes each")
    print(f"certified and wrong: {(certified & ~right).sum()}")


if __name__ == "__main__":
    main()
