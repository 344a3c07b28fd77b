"""Steps of the search for a patch: beside PyTorch's, and with few masked images."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax.attacks.patch_search import PatchSearch, Searches, begun, steps_program
from certmask_jax.attacks.patched_pixels import corners_of
from certmask_jax.attacks.search_objectives import Goals, LabelsWanted
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.programs.measurements import pytorch, timing
from certmask_jax.programs.measurements.pytorch_loops import ATTACK
from certmask_jax.programs.measurements.subjects import Subject

_SEARCHES = 4  # at once on a device
_STEPS = 10  # of one call, after which an attack asks the rule
_MASKS_A_STEP = 16
_FEWER = 16  # of this many masked images, once every one is looked at in each step


class Searching(NamedTuple):
    """One search an image, begun at its own pixels, for a patch in its middle.

    Under every mask the label after the true one is wanted.

    Attributes:
      subject: the model.
      images, labels: ``uint8[B, h, w, c]`` and ``int32[B]``, B a multiple of the devices.
      size: ``(height, width)`` of the patch.
      boxes: ``int32[V, R, 4]``, the masked images.
      search: how, and for how many steps.
    """

    subject: Subject
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    size: tuple[int, int]
    boxes: NDArray[np.int32]
    search: PatchSearch


def measure(
    subject: Subject, repeat: int, *, steps: int = _STEPS, searches_a_device: int = _SEARCHES
) -> dict[str, Any]:
    """Steps a second of searches that run at once, each on as many masked images a step.

    PyTorch takes the same steps of the same images, masks and places: gradients of margin losses
    of the masked images that are drawn, their signs, and a clip. "Of few masks" is the same search
    of a defense with sixteen masked images.
    """
    defense = subject.defenses[0]
    mesh = device_mesh()
    searches = searches_a_device * mesh.size
    some = subject.test_set.read(0, min(searches, len(subject.test_set)))
    again = np.arange(searches) % len(some.images)
    images = some.images[again]
    labels = np.asarray(some.labels, np.int32)[again]
    boxes = defense.masked_images.boxes
    search = PatchSearch(
        masks_a_step=_MASKS_A_STEP, steps=steps, step_size=0.05, schedule="constant"
    )
    every = Searching(subject, images, labels, defense.threat.shapes[0], boxes, search)
    few = every._replace(boxes=boxes[:: max(1, len(boxes) // _FEWER)][:_FEWER])
    runs: dict[str, Callable[[], Any]] = {
        "all masks": _run_of(every, mesh),
        "few masks": _run_of(few, mesh),
    }
    with tempfile.TemporaryDirectory() as folder:
        if pytorch.counts(subject, defense.masked_images):
            file = Path(folder) / "attack.npz"
            np.savez(file, **arrays_of(every))  # type: ignore[arg-type]
            runs["pytorch"] = functools.partial(pytorch.seconds, file, ATTACK)
        seconds = timing.in_turn(runs, repeat)
    record: dict[str, Any] = {
        "subject": subject.name,
        "defense": str(defense),
        "searches_at_once": searches,
        "masked_images_a_step": searches * min(_MASKS_A_STEP, len(boxes)),
        "steps_per_second_of_a_search": {
            name: timing.spread([steps * searches / s for s in of]) for name, of in seconds.items()
        },
        "all_masks_over_few": timing.ratio(seconds["few masks"], seconds["all masks"]),
    }
    if "pytorch" in seconds:
        record["over_pytorch"] = timing.ratio(seconds["pytorch"], seconds["all masks"])
    return record


def arrays_of(searching: Searching) -> dict[str, NDArray[Any]]:
    """What ``pytorch_loops.attack`` needs for the same steps."""
    subject, images, labels, size, boxes, search = searching
    mean, std = (
        np.asarray(values, np.float32).reshape(-1, 1, 1)
        for values in (subject.preprocessing.mean, subject.preprocessing.std)
    )
    return {
        **pytorch.arrays(subject, images, boxes),
        "low": -mean / std,
        "high": (1 - mean) / std,
        "step": np.float32(search.step_size) / std,
        "labels": labels.astype(np.int64),
        "patch": np.array(size),
        "masks_a_step": np.array(search.masks_a_step),
        "steps": np.array(search.steps),
    }


def _run_of(searching: Searching, mesh: Mesh) -> Callable[[], None]:
    program, arguments = begun_searches(searching, mesh)

    def run() -> None:
        jax.block_until_ready(program(*arguments))

    return run


def begun_searches(
    searching: Searching, mesh: Mesh
) -> tuple[Callable[..., Searches], tuple[Any, ...]]:
    """The program that takes all steps, and its arguments on the devices."""
    subject, images, labels, size, boxes, search = searching
    many, (height, width) = len(images), images.shape[1:3]
    place = np.array([[*size, (height - size[0]) // 2, (width - size[1]) // 2]], np.int64)
    target = (labels + 1) % subject.num_classes
    shape = (many, len(boxes))
    given = (
        images,
        np.tile(corners_of(place)[None], (many, 1, 1)),
        np.broadcast_to(target[:, None], shape).astype(np.int32),
        np.ones(shape, np.bool_),
        np.ones(shape, np.float32),
        np.zeros(many, np.bool_),
        labels,
        target.astype(np.int32),
    )
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    everywhere = NamedSharding(mesh, PartitionSpec())
    goals, keys = jax.device_put(
        (Goals(*map(jnp.asarray, given)), jax.random.split(jax.random.key(0), many)), split
    )
    params = jax.device_put(computed_with(subject.params, subject.preprocessing), everywhere)
    held = jax.device_put(jnp.asarray(boxes), everywhere)
    objective = LabelsWanted(
        subject.apply_fn, subject.preprocessing, search.masks_a_step, search.surplus
    )
    first = begun(goals.images, keys, search, from_image=jnp.ones(many, jnp.bool_))
    return steps_program(objective, search, search.steps, mesh), (params, held, goals, first, keys)
