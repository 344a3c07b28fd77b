"""``python -m experiments.papers.certmask TABLE``: what CertMask's tables compare.

No figure of its tables is at hand, only what its abstract says: up to 13.4 points more than
PatchCleanser. So the paper's cells are empty, and the recipes are what its text describes: masks
of 1.5 patches a side, k = 6, one round. Its "certified" is k-fold correctness, which proves no
recovery: the worst case stands beside it.
"""

from experiments.papers.recipes import PATCHES, Paper, Row, Table, main_rows
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
        Row(f"k = {k}", f"certmask:tiling={tiling},coverage={k}", data, f"--patch {patch}")
        for data in PATCHES
        for patch in PATCHES[data][-2:]
        for tiling, k in (("replicated", 1), ("replicated", 6), ("exact", "3x2"))
    ),
    "Replicated masks say the same for every k, as each is only listed more often.",
)
PAPER = Paper(
    "certmask",
    "CertMask (Lyu, Lin, Al Arafat, von der Brüggen, Chen and Guo, AAAI 2026)",
    "arXiv 2511.09834",
    (TABLE1, COVERAGE),
    "Tables 2 to 4, Figures 6 to 8 and Appendix D are not at hand, so nothing here claims to be "
    "them; `coverage` is a table of our own.",
)

if __name__ == "__main__":
    main(PAPER)
