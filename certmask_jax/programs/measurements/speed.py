"""How fast: the plain forward pass, the masked one, the whole job, and the device's own peak."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from certmask_jax.certification import evaluation, verdicts
from certmask_jax.inference.devices import AXIS
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import flops
from certmask_jax.inference.whole_images import WholeImages
from certmask_jax.programs.measurements import pytorch
from certmask_jax.programs.measurements.subjects import Subject
from certmask_jax.programs.measurements.timing import in_turn, ratio, spread
from certmask_jax.tables.image_sets import FirstImages

# Rows and columns of the matrices whose product is the measure of the device. On an accelerator
# smaller ones measure how long it takes to begin: with 2,048 an H200 did 205 of 989 TFLOP/s.
_PRODUCT = {"cpu": 2048}
_PRODUCT_OF_ACCELERATORS = 8192
_PRODUCTS = 8
_MORE = 4  # times as many images with early exit


def measure(
    subject: Subject, images: int, repeat: int, chunk: int | None, *, side: int | None = None
) -> dict[str, Any]:
    """Masked images a second of each way to run the model, paired; the defense is the first.

    ``side`` is that of the matrices that are multiplied on every device, by default as large as
    it takes to keep the device busy.
    """
    defense = subject.defenses[0]
    forward = subject.forward(chunk=chunk).for_masks(defense.masked_images)
    batch = subject.test_set.read(0, min(images, len(subject.test_set), forward.images_at_once()))
    pixels = batch.images
    items = len(pixels) * len(defense.masked_images)
    plain = _plain(subject, forward)
    product, product_flops = _matrix_product(subject, forward, side)
    full = FirstImages(subject.test_set, len(pixels))
    # Early exit packs the work of the images of a block: it takes more of them to be itself.
    more = FirstImages(subject.test_set, min(_MORE * len(pixels), len(subject.test_set)))

    def whole_job(part: FirstImages, *, decide: bool) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                saved = evaluation.evaluate(
                    part,
                    subject.apply_fn,
                    subject.params,
                    [defense],
                    Path(folder) / "tables",
                    preprocessing=subject.preprocessing,
                    decide=decide,
                    chunk=forward.chunk,
                )
                assert saved is not None
                verdicts.certify(saved, [defense])

        return run

    def masked() -> None:
        forward.table(pixels)

    runs: dict[str, Callable[[], float | None]] = {
        "plain": lambda: plain(items),
        "masked": masked,
        "whole job, full table": whole_job(full, decide=False),
        "whole job, early exit": whole_job(more, decide=True),
        "matrix product": product,
    }
    # PyTorch has processes of its own: this one's use of the heap would change its speed.
    theirs = pytorch.counts(subject, defense.masked_images)
    with tempfile.TemporaryDirectory() as folder:
        for name in theirs:
            file = Path(folder) / f"{name}.npz"
            pytorch.write(file, subject, pixels, defense.masked_images, name)
            runs[name] = functools.partial(pytorch.seconds, file, name)
        seconds = in_turn(runs, repeat)
    done = {"plain": items, "masked": items, "whole job, full table": items + len(pixels)}
    done |= theirs
    how = subject.preprocessing
    each = flops(
        subject.apply_fn,
        computed_with(subject.params, how),
        how.model_shape(subject.image_shape),
        how.model_dtype,
    )
    record: dict[str, Any] = {
        "subject": subject.name,
        "defense": str(defense),
        "precision": subject.preprocessing.precision,
        "chunk": forward.chunk,
        "masked_images": items,
        "masked_images_per_second": {
            name: spread([count / s for s in seconds[name]]) for name, count in done.items()
        },
        "images_per_second_with_early_exit": spread(
            [len(more) / s for s in seconds["whole job, early exit"]]
        ),
        "masked_over_plain": ratio(seconds["plain"], seconds["masked"]),
        "share_outside_model": spread(
            [
                1 - m * (1 + len(pixels) / items) / w
                for m, w in zip(seconds["masked"], seconds["whole job, full table"], strict=True)
            ]
        ),
        "peak_flops_per_second": spread([product_flops / s for s in seconds["matrix product"]]),
    }
    if each is not None:
        record["flops_per_masked_image"] = each
        record["share_of_peak"] = spread(
            [
                (items * each / m) / (product_flops / p)
                for m, p in zip(seconds["masked"], seconds["matrix product"], strict=True)
            ]
        )
    for name, count in theirs.items():
        record[f"masked_over_{name}"] = spread(
            [
                (items / m) / (count / t)
                for m, t in zip(seconds["masked"], seconds[name], strict=True)
            ]
        )
        record[f"early_exit_images_over_{name}"] = spread(
            [
                (len(more) / j) / (count / len(defense.masked_images) / t)
                for j, t in zip(seconds["whole job, early exit"], seconds[name], strict=True)
            ]
        )
    return record


def _plain(subject: Subject, forward: WholeImages) -> Callable[[int], None]:
    """Runs the model on ordinary images, with the chunk and precision of masked ones."""
    preprocessing = subject.preprocessing
    mean, std = (
        np.asarray(v, np.float32).reshape(1, 1, 1, -1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    if preprocessing.encoding != "fill":  # of channels that the images do not have
        mean, std = np.zeros_like(mean[..., :1]), np.ones_like(std[..., :1])
    shape = preprocessing.model_shape(subject.image_shape)

    def classify(params: Any, images: jax.Array) -> jax.Array:
        pixels = (images.astype(jnp.float32) / 255 - mean) / std
        with preprocessing.products():
            seen = pixels.astype(preprocessing.model_dtype)
            return subject.apply_fn(computed_with(params, preprocessing), seen).argmax(axis=1)

    split = NamedSharding(forward.mesh, PartitionSpec(AXIS))
    everywhere = NamedSharding(forward.mesh, PartitionSpec())
    mapped = jax.shard_map(
        classify,
        mesh=forward.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    step = jax.jit(mapped, in_shardings=(everywhere, split), out_shardings=split)
    images = np.random.default_rng(0).integers(0, 256, (forward.chunk, *shape), dtype=np.uint8)
    params = jax.device_put(subject.params, everywhere)

    def classify_all(items: int) -> None:
        waiting = None
        for _ in range(0, items, forward.chunk):
            labels = step(params, jax.device_put(images, split))
            if waiting is not None:
                np.asarray(waiting)
            waiting = labels
        np.asarray(waiting)

    return classify_all


def _matrix_product(
    subject: Subject, forward: WholeImages, side: int | None
) -> tuple[Callable[[], None], float]:
    """Products of large matrices on every device, in the model's precision, and their FLOP."""
    dtype = subject.preprocessing.model_dtype

    def products(a: jax.Array) -> jax.Array:
        with subject.preprocessing.products():
            return jax.lax.fori_loop(0, _PRODUCTS, lambda _, x: (a @ x).astype(dtype), a)

    # Nothing to communicate: each device has matrices of its own.
    step = jax.jit(
        jax.shard_map(
            lambda a: products(a[0])[None],
            mesh=forward.mesh,
            in_specs=PartitionSpec(AXIS),
            out_specs=PartitionSpec(AXIS),
        )
    )
    if side is None:
        side = _PRODUCT.get(jax.default_backend(), _PRODUCT_OF_ACCELERATORS)
    # Noise, since a device runs faster on zeros; of a size that products keep.
    one = np.random.default_rng(0).standard_normal((1, side, side), np.float32) / side**0.5
    sharding = NamedSharding(forward.mesh, PartitionSpec(AXIS))
    matrices = jax.device_put(
        jnp.asarray(np.repeat(one, forward.mesh.size, axis=0), dtype), sharding
    )
    flops = 2.0 * side**3 * _PRODUCTS * forward.mesh.size

    def run() -> None:
        jax.block_until_ready(step(matrices))

    return run, flops
