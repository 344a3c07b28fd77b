"""``python -m experiments.papers.patchguard TABLE``: PatchGuard's main table, and later figures.

Table V of the first version of the paper (arXiv 2005.10884v1), whose printed certificate is
unsound; at the threshold of 0 that it uses, the program's is right.
"""

from experiments.papers.recipes import LEADERBOARD, PATCHES, Figures, Paper, Row, Table, main_rows
from experiments.papers.runner import main

_V1 = "arXiv 2005.10884, version 1, Table V"


def _figures(*pairs: tuple[float, float]) -> Figures:
    """Of ImageNette and ImageNet at 1, 2 and 3%, then CIFAR-10 at 0.4 and 2.4%."""
    cells = [(data, patch) for data, patches in PATCHES.items() for patch in patches]
    return dict(zip(cells, pairs, strict=True))


_TABLE5 = (
    (
        "Mask-BN", "patchguard", "BagNet-17",
        _figures(
            (93.0, 87.6), (92.4, 85.2), (91.7, 81.6), (53.1, 19.9), (51.9, 14.4), (50.7, 9.8),
            (79.5, 58.6), (76.2, 37.2),
        ),
    ),
    (
        "Mask-DS", "mask_ds", "ResNet on bands",
        _figures(
            (91.2, 83.7), (90.7, 81.0), (90.2, 78.3), (39.1, 21.4), (37.6, 17.7), (36.4, 14.8),
            (82.6, 72.1), (80.0, 62.2),
        ),
    ),
    (
        "CBN", "clipped_bagnet", "BagNet-17",
        _figures(
            (94.9, 74.6), (94.9, 60.9), (94.9, 45.9), (49.5, 13.4), (49.5, 7.1), (49.5, 3.1),
            (84.2, 44.2), (84.2, 9.3),
        ),
    ),
    (
        "DS", "derandomized_smoothing", "ResNet on bands",
        _figures(
            (92.1, 82.3), (92.1, 79.1), (92.1, 75.7), (44.4, 17.7), (44.4, 14.0), (44.4, 11.2),
            (83.9, 68.9), (83.9, 56.2),
        ),
    ),
)  # fmt: skip

TABLE5 = Table(
    "table5",
    "clean and provable robust accuracy",
    tuple(
        row
        for label, defense, model, figures in _TABLE5
        for row in main_rows(label, defense, model, figures, _V1)
    ),
    "On ImageNet and ImageNette the rows with DS are of images of 299 pixels. CBN's figures rest "
    "on a comparison with the runner-up alone, which is an upper bound. Mask-BN and CBN need a "
    "model with local logits.",
)
LEADER = Table(
    "leaderboard",
    "later figures of the authors, with training on masked features",
    tuple(
        Row(label, defense, "ImageNet", "--patch 2%", model, clean, certified, LEADERBOARD)
        for label, defense, model, clean, certified in (
            ("PatchGuard", "patchguard", "BagNet-17", 54.6, 26.0),
            ("PatchGuard", "patchguard", "BagNet-33", 60.4, 24.1),
            ("PatchGuard, DS", "mask_ds", "ResNet-50 on bands", 43.6, 15.7),
            ("Clipped BagNet", "clipped_bagnet", "BagNet-17", 53.7, 14.4),
            ("Clipped BagNet", "clipped_bagnet", "BagNet-33", 62.7, 9.4),
            ("PatchGuard++, low tau", "patchguard_pp:tau=0", "BagNet-33", 49.8, 49.8),
        )
    ),
)
PAPER = Paper(
    "patchguard",
    "PatchGuard (Xiang, Bhagoji, Sehwag and Mittal, USENIX Security 2021)",
    "arXiv 2005.10884",
    (TABLE5, LEADER),
    "Tables IX, XIII, XVI and XX: BagNets of other fields, and run times.",
)

if __name__ == "__main__":
    main(PAPER)
