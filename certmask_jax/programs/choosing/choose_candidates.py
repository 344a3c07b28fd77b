"""The candidates of ``certmask choose``: defenses with their masks, each for one model variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.answer_passes import first_wave
from certmask_jax.defenses import Defense
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs
from certmask_jax.programs.choosing.choose_options import ChooseOptions, Variant
from certmask_jax.programs.choosing.wave_times import WaveTimes

USUAL = (
    *(f"pair_cover:partition={blocks}" for blocks in ("2/3", "2x3", "3x2", "3/4", "3x3", "4x4")),
    *(
        f"{name}:masks_per_axis={masks}{split}"
        for name in ("challenger_masking", "double_masking")
        for masks in (2, 3, 4, 5, 6)
        for split in ("", ",split=even")
    ),
)
"""What is tried where nobody names candidates; of equal ones the first counts."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One defense of one model variant.

    Attributes:
      spec: as certify takes it.
      defenses: the same classifier against each threat, smallest patch first.
      passes_each: forward passes of a masked image.
    """

    spec: str
    variant: Variant
    defenses: tuple[Defense, ...]
    passes_each: int

    @property
    def first(self) -> int:
        """Masked images that every answer asks for, whatever the image."""
        return first_wave(self.defenses[0])

    def costs(
        self, answers: Sequence[Sequence[int]], budget_of: str, times: WaveTimes | None
    ) -> NDArray[np.float64]:
        """What images cost, ``[T]``: passes, or milliseconds where there are times.

        Args:
          answers: of each image the waves of its answer, in masked images.
          budget_of: ``"answer"``, or ``"table"``, which is all masked images at once.
          times: of chunks of the model variant.
        """
        if budget_of == "table":
            answers = [[len(self.defenses[0].masked_images)]] * len(answers)
        if times is None:
            return np.array([self.passes_each * sum(waves) for waves in answers], np.float64)
        return np.array([times.of_answer(waves, self.first) for waves in answers], np.float64)

    def least(self, budget_of: str, times: WaveTimes | None = None) -> float:
        """What any image costs at least."""
        return float(self.costs([[self.first]], budget_of, times)[0])


def candidates(
    options: ChooseOptions, threats: Sequence[Threat], passes_each: Sequence[int]
) -> list[Candidate]:
    """All candidates that can be built, of equal ones the first.

    Args:
      options: what to choose.
      threats: one, or one for each patch size, the largest last.
      passes_each: of each variant.

    Raises:
      ValueError: for a named one that cannot be built, or that promises something else than the
        others; where none of the usual ones can be.
    """
    specs = options.defenses or USUAL
    built: dict[Any, tuple[str, tuple[Defense, ...]]] = {}
    failed = ""
    for spec in specs:
        try:
            defenses = _built(spec, threats)
        except ValueError as error:
            if options.defenses:
                raise
            failed = failed or str(error)
            continue
        built.setdefault(tuple(map(_content, defenses)), (spec, defenses))
    if not built:
        raise ValueError(f"none of the usual defenses fits, give some (the first says: {failed})")
    promised = {defenses[0].guarantee.value for _, defenses in built.values()}
    if len(promised) > 1:
        raise ValueError(
            f"--defense: expected candidates of one guarantee, got {' and '.join(sorted(promised))}"
            ", which no number compares; choose among each apart"
        )
    return [
        Candidate(spec, variant, defenses, each)
        for variant, each in zip(options.variants, passes_each, strict=True)
        for spec, defenses in built.values()
    ]


def _content(defense: Defense) -> tuple[Any, ...]:
    """What it does, whatever its masks are called."""
    sets = [defense.masks, *([defense.second_set] if defense.second_set else [])]
    masks = tuple((one.boxes.shape, one.boxes.tobytes()) for one in sets)
    return type(defense), masks, str(sorted(defense.options.items())), defense.threat


def _built(spec: str, threats: Sequence[Threat]) -> tuple[Defense, ...]:
    """One classifier against each threat: with several its masks are for the largest patch."""
    if len(threats) > 1 and defense_specs.without_built_for(spec)[1] is None:
        spec = defense_specs.with_built_for(spec, threats[-1].shapes[0])
    return tuple(defense_specs.build(spec, threat.image_size, threat) for threat in threats)
