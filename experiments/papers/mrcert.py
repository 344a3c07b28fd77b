"""``python -m experiments.papers.mrcert TABLE``: what MRCert certifies of images as they arrive.

No published table is at hand. The authors' anonymous code (github.com/worksubmission/mrcert,
README, commit 62de92c) names ImageNet, ImageNette and CIFAR-10, and shows patches of 32 pixels and
ViTs of small fields.
"""

from experiments.papers.recipes import PATCHES, Paper, Row, Table
from experiments.papers.runner import main

_MODEL = "ViT of small fields"

MAIN = Table(
    "main",
    "certified as they arrive (c_r), and beside it double masking with the same masks",
    tuple(
        Row(label, defense, data, f"--patch {patch}", _MODEL)
        for data in PATCHES
        for patch in PATCHES[data][1:2]
        for label, defense in (
            ("MRCert, 2x2", "mrcert:masks_per_axis=2"),
            ("MRCert, 3x3", "mrcert:masks_per_axis=3"),
            ("PatchCleanser, 3x3", "double_masking:masks_per_axis=3"),
        )
    ),
    "Masks of 3x3 take 256 masked images, of 4x4 2,517 and of 6x6 66,296: a longer list is a row "
    "more.",
)
PAPER = Paper(
    "mrcert",
    "MRCert (no published version is at hand)",
    "github.com/worksubmission/mrcert",
    (MAIN,),
    "All its tables and figures: none is at hand.",
)

if __name__ == "__main__":
    main(PAPER)
