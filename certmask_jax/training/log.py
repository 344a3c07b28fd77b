"""What a training run says of itself: rows of a CSV, and a picture of the curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class LogRow(NamedTuple):
    """The run since the row before. ``images_per_second`` is a measurement, all else is exact."""

    step: int  # steps done
    epoch: float  # passes done
    loss: float  # mean over the images since the last row
    accuracy: float  # on the training images as they were trained on, masked and moved
    held_out_accuracy: float | None  # on the images kept out, unmasked
    learning_rate: float  # of the last step
    images_per_second: float


def write_csv(path: Path, rows: Sequence[LogRow]) -> None:
    """Replaces the CSV by these rows, whole or not at all; an empty field is a missing value."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LogRow._fields)
        writer.writerows(rows)
    os.replace(unfinished, path)


def write_picture(path: Path, rows: Sequence[LogRow], *, title: str) -> None:
    """Draws loss, accuracies and learning rate over the epochs.

    Raises:
      ImportError: without matplotlib (extra: plots).
    """
    from matplotlib.figure import Figure

    epochs = [row.epoch for row in rows]
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(epochs, [row.loss for row in rows], marker=".")
    left.set_title("loss")
    middle.plot(epochs, [100 * row.accuracy for row in rows], marker=".", label="training, masked")
    held_out = [
        (row.epoch, 100 * row.held_out_accuracy)
        for row in rows
        if row.held_out_accuracy is not None
    ]
    if held_out:
        middle.plot(*zip(*held_out, strict=True), marker=".", label="held out, unmasked")
    middle.legend()
    middle.set_title("accuracy, %")
    right.plot(epochs, [row.learning_rate for row in rows], marker=".")
    right.set_title("learning rate")
    for axes in (left, middle, right):
        axes.set_xlabel("epochs")
    figure.suptitle(title)
    figure.savefig(path)
