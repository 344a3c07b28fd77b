"""Trains the digits ViT with checkpoints; run as a program of its own, to be killed.

Prints each step after its checkpoint is written, if it has one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from certmask_jax import data, models, training, weights
from certmask_jax.training import input_pipeline
from certmask_jax.training.checkpoints import Checkpoints, named_arrays
from certmask_jax.training.recipes import Recipe

EVERY = 3
STEPS = 24
RECIPE = Recipe(
    epochs=4, batch_size=64, optimizer="adamw", learning_rate=1e-3, schedule="cosine", ema=0.9
)
RUN = {"recipe": "the digits, killed"}


def main(folder: Path) -> None:
    model = models.create("vit_digits")
    shipped = models.default_weights("vit_digits")
    assert shipped is not None
    images, labels = data.digits_arrays("train")
    source, held_out = input_pipeline.split_off(
        input_pipeline.InMemory(images[:448], labels[:448]), 64, seed=0
    )
    saved = Checkpoints(folder / "checkpoints", run=RUN, keep_best=1, resume=True)
    print("ready", flush=True)
    trained = training.train(
        model,
        source,
        recipe=RECIPE,
        params=weights.load(shipped, model),
        held_out=held_out,
        saved=saved,
        checkpoint_every=EVERY,
        progress=lambda now: print(now.step, flush=True),
    )
    rows = [row._replace(images_per_second=0) for row in trained.rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    np.savez(folder / "final.npz", **named_arrays(trained.params))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
