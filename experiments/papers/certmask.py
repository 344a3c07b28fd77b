"""``python -m experiments.papers.certmask TABLE``: what CertMask's tables compare.

No figure of its tables is at hand, only what its abstract says: up to 13.4 points more than
PatchCleanser. So the paper's cells are empty, and the recipes are what its text describes: masks
of 1.5 patches a side, k = 6, one round. Its "certified" is k-fold correctness, which proves no
recovery: the worst case stands beside it.
"""

from experiments.papers.recipes import PATCHES, Paper, Row, Shows, Table, main_rows
from experiments.papers.runner import main

_PRINTED = "certmask:tiling=replicated,coverage=6"

TABLE1 = Table(
    "table1",
    "certified and clean accuracy beside PatchCleanser",
    tuple(
        row
        for label, defense in (
            ("CertMask, k = 6", _PRINTED),
            ("PatchCleanser, 6x6", "double_masking:masks_per_axis=6"),
            ("what k-fold correctness does prove", "certmask_detection:tiling=replicated"),
        )
        for row in main_rows(label, defense, "", {}, "")
    ),
    "Masks are the printed tiling of 1.5 patches a side, each six times. The abstract compares "
    "these two; whether the paper's own table has just these rows is not at hand.",
)
COVERAGE = Table(
    "coverage",
    "the number k of masks that hide each place",
    tuple(
        Row(
            f"k = {k}, {tiling}", f"certmask:tiling={tiling},coverage={k}", data,
            f"--patch {patch}",
        )
        for data in PATCHES
        for patch in PATCHES[data][-2:]
        for tiling, k in (
            ("replicated", 1), ("replicated", 6), ("exact", "2x2" if patch == "0.4%" else "3x2"),
        )
    ),
    "Replicated masks say the same for every k, as each is only listed more often. Masks of 3 "
    "pixels for a patch of 2 can be distinct in at most 2x2.",
)  # fmt: skip
_SIZES = {"ImageNet": (40, 48, 56, 64), "CIFAR-10": (7, 8, 10, 12)}
"""Sides of masks in pixels: 1.25 to 2 patches of 32 on 224, and 1.4 to 2.4 of 5 on 32."""

MASK_SIZE = Table(
    "mask_size",
    "the size of the masks",
    tuple(
        Row(
            f"masks of {side}x{side}", f"certmask:tiling=replicated,mask_size={side}", data,
            f"--patch {patch}", x=side,
        )
        for data, patch in (("ImageNet", "2%"), ("CIFAR-10", "2.4%"))
        for side in _SIZES[data]
    ),
    "Larger masks are fewer and hide more. The sizes are of images of 224 and of 32 pixels.",
    axis="side of the masks, pixels",
)  # fmt: skip
MASKS = Table(
    "masks",
    "how many masks there are",
    tuple(
        Row(label, defense, data, f"--patch {patch}")
        for data in ("ImageNet", "CIFAR-10")
        for patch in PATCHES[data]
        for label, defense in (
            ("CertMask as printed, k = 1", "certmask:tiling=replicated,coverage=1"),
            ("CertMask as printed, k = 6", "certmask:tiling=replicated,coverage=6"),
            ("CertMask's offset tiling, k = 6", "certmask:tiling=offset,coverage=3x2"),
            ("distinct masks, each place exactly 6 times", "certmask:tiling=exact,coverage=3x2"),
            ("the fewest, k = 6", "certmask:tiling=tight,coverage=6"),
            ("PatchCleanser, 6x6", "double_masking:masks_per_axis=6"),
        )
        if (data, patch, defense[-3:]) != ("CIFAR-10", "0.4%", "3x2")
    ),
    "The rows of CertMask as printed follow its Theorem 2 and Equation 5, so they are the paper's "
    "count too. A patch of 2 pixels has masks of 3, in which 3x2 does not fit.",
    Shows.COUNTS,
)
RUNTIME = Table(
    "runtime",
    "how long an answer takes, beside PatchCleanser",
    tuple(
        Row(label, defense, data, f"--patch {patch}")
        for data, patch in (("ImageNet", "2%"), ("CIFAR-10", "2.4%"))
        for label, defense in (
            ("no defense", ""),
            ("CertMask, k = 6", _PRINTED),
            ("PatchCleanser, 6x6", "double_masking:masks_per_axis=6"),
            ("challenger masking, 6x6", "challenger_masking:masks_per_axis=6"),
            ("Minority Reports, 6x6", "minority_reports:masks_per_axis=6"),
        )
    ),
    "The paper compares one round with PatchCleanser's two. As printed its tiling has 196 masks "
    "for 32 pixels of 224 and 121 for 5 of 32, and PatchCleanser's first round has 36; its second "
    "is made only where the first disagrees.",
    Shows.TIMES,
)
_QUESTIONS = (
    "which question of the paper's it answers is not at hand; those that its text raises are "
    "mask_size (the size of the masks), coverage (k), masks (how many there are) and runtime"
)
PAPER = Paper(
    "certmask",
    "CertMask (Lyu, Lin, Al Arafat, von der Brüggen, Chen and Guo, AAAI 2026)",
    "arXiv 2511.09834",
    (TABLE1, MASK_SIZE, COVERAGE, MASKS, RUNTIME),
    "which of these questions Tables 2 to 4, Figures 6 to 8 and Appendix D answer is not at hand, "
    "so nothing here is called by their numbers.",
    dict.fromkeys(
        ("table2", "table3", "table4", "figure6", "figure7", "figure8", "appendix_d"), _QUESTIONS
    ),
)

if __name__ == "__main__":
    main(PAPER)
