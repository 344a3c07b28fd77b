"""Which views and checkpoints certify more for the same passes, on CIFAR-10: tables and a figure.

    python experiments/views_front.py --data-dir DIR --weights FILE --cache FOLDER

The logits of every masked image are kept in the cache, a file for each checkpoint, view and set of
masks, so that a mean of any of them takes no model. Differences are paired, of the same images.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import certmask_jax as cm
from certmask_jax._text import counted
from certmask_jax.certification.report import wilson_interval
from certmask_jax.inference.masked_pass import outputs_of
from certmask_jax.inference.viewed_model import View, all_views
from certmask_jax.inference.views import read
from certmask_jax.programs import data_options, defense_specs

MODEL, PATCH, SIZE = "cifar_resnet20", (5, 5), (32, 32)
AT_ONCE = 128  # masked images
VIEWS = {view.name: view for view in read("mirror+shift")}
MASKS = {
    "pairs 2/3": "pair_cover:partition=2/3",
    "pairs 2x3": "pair_cover:partition=2x3",
    "pairs 3x3": "pair_cover:partition=3x3",
    "double 3x3 even": "double_masking:masks_per_axis=3,split=even",
    "double 4x4": "double_masking:masks_per_axis=4",
}
PLAIN, MIRROR = ("itself",), ("itself", "mirror")
SHIFT = tuple(view.name for view in read("shift"))
FOUR = ("itself", "right", "mirror", "mirror+left")  # an image and one moved, and their mirrors
# Of docs/results.md: double masking 3x3, 4x4, 6x6 as printed, and 4x4, 5x5, 6x6 with even masks.
PATCHCLEANSER = [(45.0, 32.1), (136.0, 39.6), (666.0, 38.8)]
EVEN = [(136.0, 39.6), (325.0, 39.9), (666.0, 41.4)]


class Row(NamedTuple):
    """A classifier: masks, and what its logits are means over."""

    masks: str
    views: tuple[str, ...]
    others: bool = False  # of two checkpoints
    images: int = 1000

    def __str__(self) -> str:
        named = {PLAIN: "plain", MIRROR: "mirror", SHIFT: "shift", FOUR: "four views"}
        views = named.get(self.views, f"{counted(len(self.views), 'view')}")
        few = "" if self.images == 1000 else f" ({counted(self.images, 'image')})"
        return f"{self.masks}, {views}{', two checkpoints' if self.others else ''}{few}"


ROWS = [
    *(Row(masks, views) for masks in list(MASKS)[:4] for views in (PLAIN, MIRROR)),
    *(Row("double 4x4", views, images=500) for views in (PLAIN, MIRROR)),
    *(Row("pairs 2x3", views) for views in (FOUR, SHIFT, tuple(VIEWS))),
    *(Row(m, v, True) for m in ("pairs 2x3", "double 3x3 even") for v in (PLAIN, MIRROR)),
]
PAIRS = [
    (Row("pairs 2x3", MIRROR), Row("pairs 2x3", PLAIN)),
    (Row("pairs 2x3", MIRROR), Row("pairs 3x3", PLAIN)),
    (Row("pairs 2x3", MIRROR), Row("double 3x3 even", PLAIN)),
    (Row("pairs 2x3", MIRROR), Row("pairs 2x3", PLAIN, True)),
    (Row("pairs 2x3", FOUR), Row("pairs 2x3", MIRROR)),
    (Row("pairs 2x3", tuple(VIEWS)), Row("pairs 2x3", MIRROR)),
    (Row("pairs 3x3", MIRROR), Row("pairs 2x3", SHIFT)),
    (Row("double 3x3 even", MIRROR), Row("double 3x3 even", PLAIN)),
    (Row("double 3x3 even", MIRROR), Row("pairs 3x3", MIRROR)),
    (Row("double 3x3 even", MIRROR), Row("double 3x3 even", PLAIN, True)),
    (Row("double 4x4", MIRROR, images=500), Row("double 4x4", PLAIN, images=500)),
    (Row("double 3x3 even", MIRROR, images=500), Row("double 4x4", PLAIN, images=500)),
    (Row("double 4x4", MIRROR, images=500), Row("double 3x3 even", MIRROR, images=500)),
]


@functools.cache
def defense_of(masks: str) -> cm.Defense:
    """The defense of a row."""
    return defense_specs.build(MASKS[masks], SIZE, cm.Threat.of(SIZE, PATCH))


class Cache:
    """Logits on the disk, by checkpoint, view and masks; what is not there is computed."""

    def __init__(self, folder: Path, data_dir: Path, weights: dict[str, Path]) -> None:
        self.folder = folder
        self.models = {name: cm.load_model(MODEL, file) for name, file in weights.items()}
        some = next(iter(self.models.values()))
        test_set = data_options.named_data(
            "cifar10",
            data_config=some.data_config,
            split="test",
            data_dir=data_dir,
            num_outputs=10,
            class_index=None,
        )
        self.images, self.labels, _ = test_set.read(0, 1000)
        folder.mkdir(parents=True, exist_ok=True)

    def logits(self, checkpoint: str, view: str, masks: str, count: int) -> NDArray[np.float32]:
        """``float32[count, V, 10]``."""
        file = self.folder / f"{checkpoint}-{view}-{masks.replace('/', ' over ')}.npy"
        known = np.load(file) if file.exists() else np.zeros((0, 0, 10), np.float32)
        if len(known) < count:
            known = self._computed(self.models[checkpoint], VIEWS[view], masks, count)
            np.save(file, known)
        stored: NDArray[np.float32] = known[:count]
        return stored

    def _computed(
        self, model: cm.LoadedModel, view: View, masks: str, count: int
    ) -> NDArray[np.float32]:
        boxes = jnp.asarray(defense_of(masks).masked_images.boxes)
        step = max(1, AT_ONCE // len(boxes))

        def seen(params: Any, images: jax.Array) -> jax.Array:
            return model.apply_fn(params, all_views(images, (view,))[0])

        @jax.jit
        def run(images: jax.Array) -> jax.Array:
            return cm.masked_logits(
                seen,
                model.params,
                images,
                jnp.tile(boxes, (step, 1, 1)),
                preprocessing=model.preprocessing,
                image_of=jnp.repeat(jnp.arange(step, dtype=jnp.int32), len(boxes)),
            ).reshape(step, len(boxes), -1)

        padded = np.concatenate([self.images[:count], self.images[: -count % step]])
        parts = [run(padded[start : start + step]) for start in range(0, count, step)]
        return np.concatenate([np.asarray(part) for part in parts])[:count]


def verdicts(row: Row, cache: Cache) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Which images are answered right, which are certified, and the passes of a whole table."""
    defense = defense_of(row.masks)
    checkpoints = list(cache.models)[: 2 if row.others else 1]
    members = [(one, view) for one in checkpoints for view in row.views]
    logits = np.mean([cache.logits(*one, row.masks, row.images) for one in members], axis=0)
    outputs = outputs_of(jnp.asarray(logits.reshape(-1, logits.shape[-1])))
    shaped = outputs.map(lambda array: np.asarray(array).reshape(logits.shape[:2]))
    table = cm.PredictionTable.of(shaped, defense.masked_images, logits.shape[-1])
    labels = cache.labels[: row.images]
    passes = len(members) * len(defense.masked_images)
    return defense.rule(table) == labels, defense.worst_case(table, labels), passes


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> str:
    """The difference in points with its 95% interval, and McNemar's exact p."""
    count, won, lost = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    change = (won - lost) / count
    half = 1.96 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / count)) / count
    tails = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    p = min(1.0, 2 * tails / 2 ** (won + lost))
    return (
        f"{100 * change:+.1f} [{100 * (change - half):+.1f}, {100 * (change + half):+.1f}] "
        f"| {won}, {lost} | {p:.2g}"
    )


def figure(points: Sequence[tuple[Row, int, float]]) -> str:
    """Certified accuracy against passes as SVG."""

    def at(passes: float, certified: float) -> tuple[float, float]:
        return 60 + 340 * math.log10(passes / 8), 300 - 20 * (certified - 30)

    def dots(kind: str, values: Sequence[tuple[float, float]]) -> str:
        places = [at(*one) for one in values]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
        return f'<polyline class="{kind}" points="{line}"/>' + "".join(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>' for x, y in places
        )

    def of(views: tuple[str, ...]) -> list[tuple[float, float]]:
        rows = [point for point in points if point[0].views == views and not point[0].others]
        return [(passes, certified) for row, passes, certified in rows if row.images == 1000]

    parts = []
    for certified in range(30, 44, 2):
        x, y = at(8, certified)
        parts.append(f'<line class="grid" x1="{x}" y1="{y}" x2="740" y2="{y}"/>')
        parts.append(
            f'<text class="s" text-anchor="end" x="{x - 8}" y="{y + 4}">{certified}</text>'
        )
    parts.append(dots("own", [*of(PLAIN), *EVEN]))
    parts += [dots("two", of(MIRROR)), dots("pub", PATCHCLEANSER)]
    for passes in (10, 20, 50, 100, 200, 500):
        x, _ = at(passes, 30)
        parts.append(f'<text class="s" text-anchor="middle" x="{x:.1f}" y="320">{passes}</text>')
    parts.append('<text class="s" text-anchor="middle" x="400" y="345">passes of an image</text>')
    parts.append('<text class="s" x="16" y="30">certified, %</text>')
    keys = (("own", "plain"), ("two", "with the mirror view"), ("pub", "PatchCleanser, as printed"))
    for number, (kind, words) in enumerate(keys):
        x = 170 + 150 * number + (40 if number == 2 else 0)
        parts.append(f'<circle class="{kind}" cx="{x}" cy="26" r="5"/>')
        parts.append(f'<text class="s" x="{x + 10}" y="30">{words}</text>')
    return _SVG.replace("PARTS", "\n".join(parts))


_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 360" role="img"
  aria-labelledby="t">
<title id="t">Certified accuracy against forward passes, plain and with the mirror view</title>
<style>
.card { fill: #ffffff; stroke: #c8d0d8; } .grid { stroke: #e3e8ec; }
polyline { fill: none; stroke-width: 2; }
polyline.own { stroke: #78909c; } circle.own { fill: #78909c; }
polyline.two { stroke: #00897b; } circle.two { fill: #00897b; }
polyline.pub { stroke: #d84315; stroke-dasharray: 5 4; } circle.pub { fill: #d84315; }
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
text { fill: #263238; }
.s { font-size: 12.5px; }
@media (prefers-color-scheme: dark) {
.card { fill: #1e2429; stroke: #46535c; } .grid { stroke: #37424a; } text { fill: #eceff1; }
}
</style>
<rect class="card" x="1" y="1" width="758" height="358" rx="10"/>
PARTS
</svg>
"""


def main() -> None:
    """Prints both tables, and writes the figure where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where CIFAR-10 is prepared")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20")
    parser.add_argument("--others", type=Path, required=True, help="of a second one")
    parser.add_argument("--cache", type=Path, required=True, help="folder for logits")
    parser.add_argument("--figure", type=Path, help="SVG to write")
    given = parser.parse_args()
    cache = Cache(given.cache, given.data_dir, {"first": given.weights, "second": given.others})
    print("| masks and views | passes | clean | certified |\n|---|---|---|---|")
    points = []
    for row in ROWS:
        right, certified, passes = verdicts(row, cache)
        points.append((row, passes, 100 * float(certified.mean())))
        low, high = wilson_interval(float(certified.mean()), len(certified))
        print(
            f"| {row} | {passes} | {100 * right.mean():.1f} | {100 * certified.mean():.1f} "
            f"[{100 * low:.1f}, {100 * high:.1f}] |"
        )
    print("\n| certified, the one less the other | points | only one, only other | p |")
    print("|---|---|---|---|")
    for one, other in PAIRS:
        print(f"| {one} - {other} | {paired(verdicts(one, cache)[1], verdicts(other, cache)[1])} |")
    if given.figure is not None:
        given.figure.write_text(figure(points))


if __name__ == "__main__":
    main()
