"""The defenses of a run: each spec against each threat, and one classifier for all patch sizes."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax.certification import certified_size
from certmask_jax.certification.report import Report
from certmask_jax.defenses import Defense
from certmask_jax.masks.edge_grids import hides_all
from certmask_jax.masks.geometry import as_size
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs, spec_keys


def build_defenses(specs: Sequence[str], attacks: Sequence[Threat]) -> list[Defense]:
    """Every defense for every threat; an error names the threat that one cannot be built for."""

    def built(threat: Threat) -> list[Defense]:
        try:
            return [defense_specs.build(spec, threat.image_size, threat) for spec in specs]
        except ValueError as error:
            at = f" ({threat}, one of {len(attacks)} threats)" if len(attacks) > 1 else ""
            raise ValueError(f"{error}{at}") from error

    # The last first: over sizes it is what masks of all the others are built for.
    by_threat = [built(threat) for threat in reversed(attacks)]
    return [defense for each in reversed(by_threat) for defense in each]


def without_a_view(defenses: Sequence[Defense]) -> list[str]:
    """What to say, a line for each threat, of defenses whose masks can hide all of an image."""
    blind: dict[Threat, list[str]] = {}
    for defense in defenses:
        images = defense.masked_images
        if hides_all(images.boxes, images.image_size).any():
            blind.setdefault(defense.threat, []).append(defense.name)
    return [
        f"{', '.join(dict.fromkeys(names))}: masks against {threat} hide all of an image, each or "
        "together, and the model says the same of every image then, so that little or nothing can "
        "be certified; fewer or smaller patches leave more to be seen"
        for threat, names in blind.items()
    ]


def specs_over_sizes(specs: Sequence[str], attacks: Sequence[Threat]) -> tuple[str, ...]:
    """Adds to each defense its one classifier for all sizes, with masks built for the largest.

    Raises:
      ValueError: for sizes that do not fit into each other in turn.
    """
    patches = [threat.shapes[0] for threat in attacks]
    try:
        certified_size.check_sizes(patches)
    except ValueError as error:
        raise ValueError(f"--sizes: {error}") from error
    given = [defense_specs.without_built_for(spec) for spec in specs]
    asked = {base for base, built_for in given if built_for is not None}
    all_specs = []
    for spec, (base, built_for) in zip(specs, given, strict=True):
        all_specs.append(spec)
        if built_for is None and base not in asked:
            all_specs.append(defense_specs.with_built_for(spec, patches[-1]))
    return tuple(dict.fromkeys(all_specs))


def over_sizes(result: Report, specs: Sequence[str]) -> Report:
    """A report of ``build_defenses`` with what it says over patch sizes."""
    families = []
    for number, spec in enumerate(specs):
        base, built_for = defense_specs.without_built_for(spec)
        largest = None if built_for is None else as_size(spec_keys.size(built_for))
        numbers = tuple(range(number, len(result.defenses), len(specs)))
        families.append(certified_size.Family(base, largest, numbers))
    return certified_size.with_curves(result, families)
