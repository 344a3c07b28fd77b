"""Trains a small network with checkpoints; run as a program of its own, to be killed.

Prints each step after its checkpoint is written, if it has one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from small_models import first_params, small_resnet

from certmask_jax import data, training
from certmask_jax.inference.devices import device_mesh
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
    model = small_resnet()
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
        params=first_params(model),
        held_out=held_out,
        mesh=device_mesh(jax.devices()[:1]),
        saved=saved,
        checkpoint_every=EVERY,
        progress=lambda now: print(now.step, flush=True),
    )
    saved.close()
    rows = [row._replace(images_per_second=0) for row in trained.rows]
    (folder / "rows.json").write_text(json.dumps(rows))
    np.savez(folder / "final.npz", **named_arrays(trained.params))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
