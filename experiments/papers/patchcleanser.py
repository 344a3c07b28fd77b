"""``python -m experiments.papers.patchcleanser TABLE``: the tables and figures of PatchCleanser.

The figures at hand are those that the authors repeat in their own list of defenses, and the
expected output in their program's guide, which says that it is Table 2's. What a table or figure
is of is read off that guide (github.com/inspire-group/PatchCleanser, misc/reproducibility.md): it
has the command of each one of the paper's main part, Tables 2 to 4 and Figures 2 and 4 to 9.
"""

import dataclasses

from experiments.papers.recipes import CLEAN, LEADERBOARD, Paper, Row, Shows, Table, main_rows
from experiments.papers.runner import main

_SIX = "double_masking:masks_per_axis=6"
_MODELS = {
    "PC-ResNet": ("ResNet-50 (BiT, distilled)", (81.6, 53.0)),
    "PC-ViT": ("ViT-B/16", (83.9, 62.1)),
    "PC-MLP": ("ResMLP-S24", (79.4, 53.8)),
}
_VIT_BY_MASKS: dict[int, tuple[float, float] | None] = {
    2: None,
    3: (83.3, 56.1),
    4: (83.6, 59.4),
    5: (83.7, 59.8),
    6: (83.9, 62.1),
}
_UNDEFENDED = {"PC-ResNet": 82.3, "PC-ViT": 84.8, "PC-MLP": 80.2}
_MR = (("low", "0", 74.3, 74.3), ("mid", "0.6", 81.8, 66.6), ("high", "0.9", 84.7, 32.4))
_TWO = "ImageNet", "2%"

TABLE2 = Table(
    "table2",
    "clean and certified robust accuracy, masks of 6x6",
    tuple(
        row
        for label, (model, figures) in _MODELS.items()
        for row in main_rows(label, _SIX, model, {_TWO: figures}, LEADERBOARD)
    ),
    "Models of the paper were fine-tuned with Cutout.",
)
FIGURE2 = dataclasses.replace(
    TABLE2,
    name="figure2",
    title="Table 2 as a figure: certified against clean accuracy",
    note="By the authors' guide it plots a part of Table 2; which part is not at hand. "
    + TABLE2.note,
    axis=CLEAN,
)
TABLE3 = Table(
    "table3",
    "clean accuracy without a defense",
    tuple(
        Row(
            label.replace("PC-", ""), "", data, "--patch 2%", model,
            _UNDEFENDED[label] if data == "ImageNet" else None, None,
            LEADERBOARD if data == "ImageNet" else "",
        )
        for label, (model, _) in _MODELS.items()
        for data in ("ImageNette", "ImageNet", "CIFAR-10")
    ),
)  # fmt: skip
FIGURE4 = Table(
    "figure4",
    "the number of masks an axis",
    tuple(
        Row(
            f"PC-ViT, k = {masks}", f"double_masking:masks_per_axis={masks}", "ImageNet",
            "--patch 2%", "ViT-B/16", figures and figures[0], figures and figures[1],
            LEADERBOARD if figures else "", masks,
        )
        for masks, figures in _VIT_BY_MASKS.items()
    ),
    "The paper takes 5,000 images at random.",
    axis="masks an axis",
)  # fmt: skip
FIGURE5 = Table(
    "figure5",
    "how long an answer takes, by the number of masks an axis",
    (
        Row("no defense", "", "ImageNet", "--patch 2%", "ViT-B/16"),
        *(
            Row(
                f"PC-ViT, k = {masks}", f"double_masking:masks_per_axis={masks}", "ImageNet",
                "--patch 2%", "ViT-B/16", x=masks,
            )
            for masks in _VIT_BY_MASKS
        ),
    ),
    "The paper takes 5,000 images at random.",
    Shows.TIMES,
)  # fmt: skip


def _percent(side: int) -> str:
    """A percent that is a square of so many pixels of 224, and as much of other images.

    Printed percents are taken as rounded by up to 2.5% of them (``patch_size_from_percent``).
    """
    return f"{100 * ((side - 0.5) / 224) ** 2 / 0.975:.4f}%"


_SIDES = (32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 128, 144, 160, 176)  # of 224
FIGURES6TO8 = Table(
    "figures6to8",
    "larger patches, and masks for a larger patch than there is",
    tuple(
        Row(
            f"PC-ViT, {side} px of 224", _SIX, "ImageNet",
            f"--patch {_percent(side)}", "ViT-B/16", x=side,
        )
        for side in _SIDES
    ),
    "The authors' guide runs these sizes for the three figures together. An estimate that is too "
    "large costs what a patch of that size costs, since two-mask correctness does not ask for the "
    "patch.",
    axis="side of the patch, pixels of 224",
)  # fmt: skip
TABLE4 = Table(
    "table4",
    "patches of any shape, and two patches",
    tuple(
        row
        for data in ("ImageNette", "ImageNet", "CIFAR-10")
        for row in (
            Row(
                "any rectangle of 1%", "double_masking:mask_stride=32", data, "--patch-area 1%",
                "ViT-B/16",
            ),
            Row(
                "two squares of 1%", "double_masking:masks_per_axis=5", data,
                "--patch 1% --patches 2", "ViT-B/16",
            ),
        )
    ),
    "Two patches take 15,275 masked images of each image. On images of 32 pixels take a smaller "
    "stride: PatchCleanser sees CIFAR-10 at 224.",
)  # fmt: skip
FIGURE9 = Table(
    "figure9",
    "Minority Reports with these masks, which detects",
    tuple(
        Row(
            f"{words} tau", f"minority_reports:masks_per_axis=6,tau={tau}", "ImageNet",
            "--patch 2%", "ViT-B/16", clean, certified, LEADERBOARD,
        )
        for words, tau, clean, certified in _MR
    ),
    "The list of defenses gives three points of the curve and not their tau: those here are 0, "
    "and 0.6 and 0.9 of our own choice.",
    axis=CLEAN,
)  # fmt: skip
TABLE5 = Table(
    "table5",
    "the other data sets of the abstract",
    tuple(
        Row(f"PC-ViT, {patch}", _SIX, data, f"--patch {patch}", "ViT-B/16")
        for data, patches in (
            ("CIFAR-100", ("0.4%", "2.4%")),
            ("SVHN", ("0.4%", "2.4%")),
            ("Flowers-102", ("1%", "2%", "3%")),
        )
        for patch in patches
    ),
    "The abstract names CIFAR-100, SVHN and Flowers-102, and no table of the main part has them, "
    "so this is the table of the appendix; its rows and patches are not at hand, and those here "
    "are the usual ones.",
)
_ONE_A_DATA_SET = tuple(
    Row("PC-ViT", _SIX, data, f"--patch {patch}", "ViT-B/16")
    for data, patch in (("ImageNet", "2%"), ("ImageNette", "2%"), ("CIFAR-10", "2.4%"))
)
FIGURE11 = Table(
    "figure11",
    "certified accuracy against the size of the object",
    _ONE_A_DATA_SET,
    "Its bins are not at hand: these are tenths of what the model sees.",
    Shows.OBJECTS,
)
FIGURE13 = Table(
    "figure13",
    "clean and certified accuracy of each class",
    _ONE_A_DATA_SET,
    "",
    Shows.CLASSES,
)

PAPER = Paper(
    "patchcleanser",
    "PatchCleanser (Xiang, Mahloujifar and Mittal, USENIX Security 2022)",
    "arXiv 2108.09135",
    (
        *(TABLE2, FIGURE2, TABLE3, FIGURE4, FIGURE5, FIGURES6TO8, TABLE4, FIGURE9, TABLE5),
        *(FIGURE11, FIGURE13),
    ),
    "what Figures 10 and 12 show is not at hand, so they have no recipe.",
    {
        **{
            f"figure{n}": "what that figure of the appendix shows is not at hand, so there is no "
            "recipe; figure4 (masks an axis), figure5 (time), figures6to8 (patch sizes), "
            "figure11 (objects) and figure13 (classes) ask the questions that are known"
            for n in (10, 12)
        },
    },
    {f"figure{n}": "figures6to8" for n in (6, 7, 8)},
)

if __name__ == "__main__":
    main(PAPER)
