"""Trains a model with Cutout and writes its weights.

    python -m experiments.train

remakes the checkpoint that ships with the package (digits, a small ViT) in a few minutes on two
cores, as runs/vit_digits.npz.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from certmask_jax import data, defenses, mask_sets, models, predict, training, weights
from certmask_jax.preprocessing import Preprocessing


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the training recipe is an option."""
    parse = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Trains a model with Cutout and writes its weights.",
    )
    parse.add_argument("--dataset", default="digits", help="name (default: %(default)s)")
    parse.add_argument("--data-dir", type=Path, help="where the data set was prepared")
    parse.add_argument("--model", default=models.DEFAULT, help="name (default: %(default)s)")
    parse.add_argument("--weights", type=Path, help="start from these (default: random)")
    parse.add_argument("--out", type=Path, help="file to write (default: runs/MODEL.npz)")
    parse.add_argument("--overwrite", action="store_true", help="replace an existing file")
    group = parse.add_argument_group("recipe")
    for field in dataclasses.fields(training.Recipe):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default: %(default)s",
        )
    return parse


def run(arguments: argparse.Namespace) -> None:
    """Trains, evaluates on the test split, writes."""
    out = arguments.out or Path("runs") / f"{arguments.model}.npz"
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"--out {out}: exists already; --overwrite replaces it")
    model = models.create(arguments.model)
    config = model.data_config
    train_set, test_set = (
        data.load(arguments.dataset, data_config=config, split=s, data_dir=arguments.data_dir)
        for s in ("train", "test")
    )
    if train_set.num_classes != model.num_classes:
        model = models.create(arguments.model, num_classes=train_set.num_classes)
    params = None if arguments.weights is None else weights.load(arguments.weights, model)
    recipe = training.Recipe(
        **{f.name: getattr(arguments, f.name) for f in dataclasses.fields(training.Recipe)}
    )
    batch = train_set.read(0, len(train_set))
    with tqdm(total=recipe.epochs, unit="epoch", desc="training", mininterval=1) as bar:

        def advance(done: int, loss: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        params = training.train(
            model, batch.images, batch.labels, recipe=recipe, params=params, progress=advance
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    weights.save(out, params)
    held_out = test_set.read(0, len(test_set))
    patch = max(1, round(config.input_size[0] / 10))
    masks = mask_sets.budgeted_grid(config.input_size, patch, masks_per_axis=4)
    defense = defenses.double_masking(masks)
    table = predict(
        model.apply_fn,
        params,
        held_out.images,
        defense.masked_images,
        preprocessing=Preprocessing(mean=config.mean, std=config.std),
    )
    clean = np.mean(defense.rule(table) == held_out.labels)
    robust = np.mean(defense.worst_case(table, held_out.labels))
    print(
        f"{out}: on {len(held_out.labels)} test images, {patch} px patch, double masking 4x4: "
        f"clean {clean:.3f}, certified {robust:.3f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    try:
        run(parser().parse_args(argv))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
