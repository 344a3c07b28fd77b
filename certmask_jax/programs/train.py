"""Trains a model with Cutout, or fine-tunes one, and writes its weights.

    certmask train

remakes the checkpoint that ships with the package (digits, a small ViT) in a few minutes on two
cores, as runs/vit_digits.npz. Fine-tuning that can be killed and resumed:

    certmask train --dataset cifar10 --data-dir DIR --model cifar_resnet20 \
        --weights FILE --epochs 2 --run-folder runs/x --checkpoint-every 200 --resume

Masked features of a model in two parts, as PatchCURE's are trained:

    certmask train --weights FILE --two-parts windows=4x1,depth=3 --cutout two_masks \
        --cutout-patch 1
"""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax.programs import own_process, program
from certmask_jax.programs.training_options import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input, 143 after SIGTERM)."""
    return program.run(
        lambda: _run(argv),
        interrupted="interrupted; with a --run-folder, --resume goes on from its last checkpoint",
    )


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    with own_process.without_collections():  # what trains, which help and mistakes do without
        from certmask_jax.programs import training_job
    return training_job.run(arguments)
