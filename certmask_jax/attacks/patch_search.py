"""The search for a patch by gradients: projected gradient descent (Madry et al., ICLR 2018).

Steps go by the sign of the gradient, as LaVAN's do (Karmon et al., ICML 2018), with momentum if it
is asked for (MI-FGSM, Dong et al., CVPR 2018), or by Adam (Kingma and Ba, ICLR 2015). Pixels stay
in their range, and those outside the patch are never touched.

Many searches run at once, each of one image at one place with one goal. What they lower is an
objective of ``search_objectives``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from certmask_jax._later import Later
from certmask_jax._own_settings import usual_promotion
from certmask_jax.attacks.patched_pixels import with_patches
from certmask_jax.attacks.search_objectives import Goals, LookedAt, Objective
from certmask_jax.inference.devices import AXIS

if TYPE_CHECKING:
    import optax
else:
    optax = Later("optax")

Optimizer = Literal["sign", "adam"]
Schedule = Literal["linear", "constant"]

_LEVELS = 255.0


@dataclasses.dataclass(frozen=True)
class PatchSearch:
    """How a patch is searched for.

    Attributes:
      steps: of one search.
      step_size: how far a pixel moves in the first step, as a share of its range.
      schedule: ``"linear"``: steps get smaller, to nothing at the end; ``"constant"``: they do not,
        as MRCert and De-randomized Smoothing have it with 150 steps of 0.05.
      optimizer: ``"sign"`` of the gradient, or ``"adam"``.
      momentum: of the sign steps, in [0, 1): what is kept of the direction before, each gradient
        being divided by its mean size.
      masks_a_step: how many masked images a search looks at in a step, at most.
      surplus: a masked image whose wanted label leads by so much is no loss any more.
    """

    steps: int = 100
    step_size: float = 0.1
    schedule: Schedule = "linear"
    optimizer: Optimizer = "sign"
    momentum: float = 0.0
    masks_a_step: int = 16
    surplus: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "masks_a_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size: expected a share in (0, 1], got {self.step_size}")
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"schedule: expected linear or constant, got {self.schedule!r}")
        if self.optimizer not in ("sign", "adam"):
            raise ValueError(f"optimizer: expected sign or adam, got {self.optimizer!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}")
        if not self.surplus >= 0:
            raise ValueError(f"surplus: expected a number of at least 0, got {self.surplus}")


class Searches(NamedTuple):
    """B searches under way; a pytree.

    Attributes:
      free: ``float32[B, h, w, c]``, what the attacker would have everywhere, in levels.
      motion: what the optimizer remembers.
      loss: ``float32[B]``, of the last step; 0 where all that was looked at leads by the surplus.
      done: ``int32[B]``, how many steps there were.
    """

    free: Array
    motion: Any
    loss: Array
    done: Array


@functools.partial(jax.jit, static_argnames="search")
def begun(images: Array, keys: Array, search: PatchSearch, *, from_image: Array) -> Searches:
    """Searches that begin: at random pixels, or at those of the image itself.

    Args:
      images: ``uint8[B, h, w, c]``, without patches.
      keys: ``[B]`` keys, one a search.
      search: how.
      from_image: ``bool[B]``.
    """
    shape = images.shape[1:]
    noise = jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32, 0.0, _LEVELS))(keys)
    free = jnp.where(from_image[:, None, None, None], images.astype(jnp.float32), noise)
    motion = jax.vmap(steps_of(search).init)(free)
    many = len(free)
    loss = jnp.full(many, jnp.inf, jnp.float32)  # of the type of all losses, for one program
    return Searches(free, motion, loss, jnp.zeros(many, jnp.int32))


def steps_program(
    objective: Objective, search: PatchSearch, count: int, mesh: Mesh
) -> Callable[[Any, Array, Goals, Searches, Array], Searches]:
    """``(params, boxes int32[V, R, 4], goals, searches, keys[B]) -> searches``, ``count`` steps on.

    B is a multiple of the devices, each of which has its own share. One program for all steps, or
    on CPUs, where XLA runs convolutions inside a loop many times slower, one that is called again
    and again. There what a step looks at is drawn by a program of its own, so that the one with the
    model in it is compiled once for all defenses.
    """
    how = dataclasses.replace(search, steps=1, masks_a_step=1, surplus=0.0)  # all that decides
    steps = jnp.int32(search.steps)
    if mesh.devices.flat[0].platform != "cpu":
        return functools.partial(_program(objective, how, count, mesh), steps)
    drawn, once = _drawing_program(objective, mesh), _step_program(objective, how, mesh)

    def again(params: Any, boxes: Array, goals: Goals, searches: Searches, keys: Array) -> Searches:
        for number in range(count):
            looked_at = drawn(boxes, goals, keys, number)
            searches = once(steps, params, goals.images, goals.corners, looked_at, searches)
        return searches

    return again


def _drawn(
    objective: Objective, boxes: Array, goals: Goals, keys: Array, number: Array
) -> LookedAt:
    folded = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    return objective.looked_at(boxes, goals, folded)


def _moved(
    objective: Objective,
    search: PatchSearch,
    steps: Array,
    params: Any,
    images: Array,
    corners: Array,
    looked_at: LookedAt,
    now: Searches,
) -> Searches:
    """One step on, of so many in all: a number and no part of the program."""

    def loss_of(free: Array) -> tuple[Array, Array]:
        patched = jax.vmap(with_patches)(images, free, corners)
        each = objective.losses(params, looked_at, patched)
        return each.sum(), each

    (_, each), slope = jax.value_and_grad(loss_of, has_aux=True)(now.free)
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    with usual_promotion():
        step, motion = jax.vmap(steps_of(search).update)(slope, now.motion)
    step = share_of_step(search, now.done, steps)[:, None, None, None] * step
    return Searches(jnp.clip(now.free + step, 0, _LEVELS), motion, each, now.done + 1)


@functools.lru_cache(maxsize=16)
def _drawing_program(objective: Objective, mesh: Mesh) -> Any:
    def looked_at(boxes: Array, goals: Goals, keys: Array, number: Array) -> LookedAt:
        return _drawn(objective, boxes, goals, keys, number)

    return _on_all(looked_at, mesh, "nssn")


@functools.lru_cache(maxsize=16)
def _step_program(objective: Objective, search: PatchSearch, mesh: Mesh) -> Any:
    return _on_all(functools.partial(_moved, objective, search), mesh, "nnssss")


@functools.lru_cache(maxsize=16)
def _program(objective: Objective, search: PatchSearch, count: int, mesh: Mesh) -> Any:
    def moved(
        steps: Array, params: Any, boxes: Array, goals: Goals, searches: Searches, keys: Array
    ) -> Searches:
        def one(now: Searches, number: Array) -> tuple[Searches, None]:
            looked_at = _drawn(objective, boxes, goals, keys, number)
            own = (params, goals.images, goals.corners, looked_at, now)
            return _moved(objective, search, steps, *own), None

        return jax.lax.scan(one, searches, jnp.arange(count, dtype=jnp.int32))[0]

    return _on_all(moved, mesh, "nnnsss")


def _on_all(function: Callable[..., Any], mesh: Mesh, given: str) -> Any:
    """Compiled for all devices; ``s`` for each argument that is split among them, ``n`` if not."""
    split = PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(split if one == "s" else PartitionSpec() for one in given),
            out_specs=split,
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )


def share_of_step(search: PatchSearch, done: Array, steps: Array) -> Array:
    """How long a step is after ``done`` of so many, as a share of the first: ``float32``."""
    if search.schedule == "constant":
        return jnp.ones(done.shape, jnp.float32)
    return jnp.maximum(1 - done.astype(jnp.float32) / steps.astype(jnp.float32), 0)


def steps_of(search: PatchSearch) -> optax.GradientTransformation:
    """From gradients of one search to steps in levels."""
    import optax  # here, as options of attacks have their defaults of this module

    size = search.step_size * _LEVELS
    if search.optimizer == "adam":
        return optax.adam(size)
    signs = optax.stateless(lambda updates, _: jnp.sign(updates))
    first: list[optax.GradientTransformation] = []
    if search.momentum:
        first = [optax.stateless(lambda updates, _: _of_mean_size(updates)),
                 optax.trace(decay=search.momentum)]  # fmt: skip
    return optax.chain(*first, signs, optax.scale(-size))


def _of_mean_size(slope: Array) -> Array:
    return slope / jnp.maximum(jnp.abs(slope).mean(), 1e-30)
