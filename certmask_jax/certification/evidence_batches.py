"""What evidence a run needs, and how much of it is evaluated at once on each device.

Of local logits a pass is a whole image. Of bands each is a masked image, of which an image has many
more than a device may take at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.chunk_sizes import default_items
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import results_program
from certmask_jax.inference.evidence_sources import BandSource, LocalSource, Source
from certmask_jax.inference.model_function import ApplyFn, flops
from certmask_jax.inference.out_of_memory import is_of_memory
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.distinct_unions import MaskedImages

_CPU_PIXELS = 1 << 19  # at once, on a device
_MOST_AT_ONCE = 64  # images, on a device

FEWEST_BLOCKS = 4
"""That any test set has, so that it can be shared out, as that of a table has."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """How a run evaluates its evidence.

    Attributes:
      sources: one for each defense, equal ones once.
      images: at once over all devices, a multiple of their number.
      devices: how many there are.
      is_guess: whether the devices may have no memory for that; see ``fitted``.
    """

    sources: tuple[Source, ...]
    images: int
    devices: int
    is_guess: bool = False

    @property
    def passes(self) -> int:
        """Passes that an image takes."""
        return passes_of(self.sources)

    def slots(self, images: int) -> int:
        """Places for passes that so many images take, with those that stay empty."""
        rounds = -(-images // self.images) * self.devices
        each = self.images // self.devices
        return rounds * sum(source.slots(each) for source in dict.fromkeys(self.sources))

    def facts(self) -> dict[str, Any]:
        """What may change last bits: how many bands a device evaluates at once, and of what."""
        bands = [one for one in self.sources if isinstance(one, BandSource)]
        tokens = {count for one in bands for count in one.tokens()}
        return {
            **({"bands_at_once": bands[0].at_once} if bands else {}),
            **({"hidden_tokens": "dropped", "kept_tokens": sorted(tokens)} if tokens else {}),
        }


def sources_of(
    defenses: Sequence[EvidenceDefense],
    local: LocalLogits | None,
    apply_fn: ApplyFn | None,
    *,
    dropping: TokenDropping | None = None,
    bands_at_once: int = 1,
    seen_size: tuple[int, int] | None = None,
) -> tuple[Source, ...]:
    """What gives the evidence of each defense; equal where defenses share it.

    Where none is on local logits, the first bands also say what the model makes of the image.

    Raises:
      ValueError: for a defense whose model is not given.
    """
    sources: list[Source] = []
    first: MaskedImages | None = None
    on_bands = all(one.of_bands is not None for one in defenses)
    for defense in defenses:
        masks = defense.of_bands
        if masks is None:
            if local is None:
                raise ValueError(f"local: expected a model with local logits for {defense.name}")
            sources.append(LocalSource(local))
            continue
        if apply_fn is None:
            raise ValueError(f"apply_fn: expected a model that sees bands for {defense.name}")
        bands = MaskedImages(masks.boxes, masks.image_size)
        first = bands if first is None else first
        whole = on_bands and bands == first
        source = BandSource(apply_fn, bands, whole, bands_at_once, dropping, seen_size)
        sources.append(source)
    return tuple(sources)


def passes_of(sources: Sequence[Source]) -> int:
    """Passes that an image takes for all of them, equal ones once."""
    return sum(source.passes() for source in dict.fromkeys(sources))


def planned(
    defenses: Sequence[EvidenceDefense],
    local: LocalLogits | None,
    apply_fn: ApplyFn | None,
    held: Any,
    *,
    dropping: TokenDropping | None,
    num_images: int,
    image_shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    mesh: Mesh,
    chunk: int | None,
    known: int | None,
) -> Batches:
    """How much at once; nothing is evaluated.

    Args:
      defenses, local, apply_fn, dropping: as of ``evaluate_evidence``.
      held: the parameters, as they are on the devices.
      num_images: of the run; so few at once that they can be shared out, unless ``chunk`` says it.
      image_shape: ``(h, w, c)`` of the images.
      preprocessing, mesh: of the run.
      chunk: as of ``evaluate_evidence``.
      known: bands at once of this run, when it began.

    Raises:
      ValueError: for a chunk below 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1 image, got {chunk}")
    platform = mesh.devices.flat[0].platform
    if all(one.of_bands is None for one in defenses):
        sources = sources_of(defenses, local, apply_fn)
        return _with(sources, num_images, image_shape, mesh, chunk)
    if chunk is not None:
        each = -(-chunk // mesh.size)
    elif known is not None:
        each = known
    else:
        assert apply_fn is not None
        seen = preprocessing.model_shape(image_shape)
        each = default_items(platform, flops(apply_fn, held, seen, preprocessing.model_dtype))
    sources = sources_of(
        defenses,
        local,
        apply_fn,
        dropping=dropping,
        bands_at_once=each,
        seen_size=preprocessing.resize_to,
    )
    work = _with(sources, num_images, image_shape, mesh, chunk)
    is_guess = platform != "cpu" and chunk is None and known is None and each > 1
    return dataclasses.replace(work, is_guess=is_guess)


def fitted(
    work: Batches,
    defenses: Sequence[EvidenceDefense],
    held: Any,
    *,
    num_images: int,
    image_shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    mesh: Mesh,
    margin_guard: float,
    warn: Callable[[str], None],
) -> Batches:
    """What was planned, or as many bands fewer as the devices have memory for, by trying it.

    Args:
      work: what ``planned`` gave; tried where that was a guess.
      defenses, held, num_images, image_shape, preprocessing, mesh: as of ``planned``.
      margin_guard: as of ``evaluate_evidence``.
      warn: told in a line when there was no memory for as many as are usual.
    """
    while work.is_guess:
        program = results_program(
            work.sources,
            preprocessing,
            tuple(defenses),
            mesh,
            places=True,
            margin_guard=margin_guard,
        )
        images = jnp.zeros((work.images, *image_shape), jnp.uint8)
        try:
            with unguarded():
                jax.block_until_ready(program(held, images, jnp.zeros(work.images, jnp.int32)))
            return work
        except jax.errors.JaxRuntimeError as error:
            if not is_of_memory(error):
                raise
        each = max(one.at_once for one in work.sources if isinstance(one, BandSource))
        warn(f"the devices ran out of memory with {each} bands at once; going on with {each // 2}")
        sources = tuple(
            dataclasses.replace(one, at_once=each // 2) if isinstance(one, BandSource) else one
            for one in work.sources
        )
        fewer = _with(sources, num_images, image_shape, mesh, None)
        work = dataclasses.replace(fewer, is_guess=each // 2 > 1)
    return work


def _with(
    sources: tuple[Source, ...],
    num_images: int,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    chunk: int | None,
) -> Batches:
    """As many images at once as take what a device may take, one at least.

    So few that ``num_images`` can be shared out, unless ``chunk`` says how many.
    """
    most = max(1, num_images // (FEWEST_BLOCKS * mesh.size))  # on a device
    each = _images_each(image_shape[0] * image_shape[1], mesh, chunk)
    bands = [one for one in sources if isinstance(one, BandSource)]
    if bands:
        of_bands = max(1, bands[0].at_once // max(one.masked for one in bands))
        each = of_bands if len(bands) == len(sources) else min(each, of_bands)
    each = each if chunk is not None else min(each, most)
    return Batches(sources, each * mesh.size, mesh.size)


def _images_each(pixels: int, mesh: Mesh, chunk: int | None) -> int:
    """Images at once on a device, where each is a pass."""
    if chunk is not None:
        return -(-chunk // mesh.size)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return max(1, min(_MOST_AT_ONCE, _CPU_PIXELS // pixels) if is_cpu else _MOST_AT_ONCE)
