"""The defenses of a run: each spec against each threat, and one classifier for all patch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from certmask_jax.certification import certified_size
from certmask_jax.certification.report import Classifiers, Report
from certmask_jax.defenses import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.masks.geometry import as_size, hides
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs, evidence_entries, spec_keys

_Built = TypeVar("_Built", Defense, EvidenceDefense)


def build_defenses(specs: Sequence[str], attacks: Sequence[Threat]) -> list[Defense]:
    """Every defense for every threat; an error names the threat that one cannot be built for."""
    return _each(attacks, specs, lambda spec, at: defense_specs.build(spec, at.image_size, at))


def build_on_evidence(
    specs: Sequence[str],
    attacks: Sequence[Threat],
    local: LocalLogits | None,
    seen_size: tuple[int, int] | None,
) -> list[EvidenceDefense]:
    """The same of defenses on evidence; see ``evidence_entries.build``."""
    return _each(
        attacks, specs, lambda spec, at: evidence_entries.build(spec, at, local, seen_size)
    )


def _each(
    attacks: Sequence[Threat], specs: Sequence[str], build: Callable[[str, Threat], _Built]
) -> list[_Built]:
    def built(threat: Threat) -> list[_Built]:
        try:
            return [build(spec, threat) for spec in specs]
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
        if hides(images.boxes, images.image_size, images.image_size).any():
            blind.setdefault(defense.threat, []).append(defense.name)
    return [
        f"{', '.join(dict.fromkeys(names))}: masks against {threat} hide all of an image, each or "
        "together, and the model says the same of every image then, so that little or nothing can "
        "be certified; fewer or smaller patches leave more to be seen"
        for threat, names in blind.items()
    ]


def specs_over_sizes(specs: Sequence[str], attacks: Sequence[Threat]) -> tuple[str, ...]:
    """Adds to each defense on masks its one classifier for all sizes, built for the largest.

    Raises:
      ValueError: for sizes that do not fit into each other in turn.
    """
    patches = [threat.shapes[0] for threat in attacks]
    try:
        certified_size.check_sizes(patches)
    except ValueError as error:
        raise ValueError(f"--sizes: {error}") from error
    given = {
        spec: defense_specs.without_built_for(spec)
        for spec in specs
        if not evidence_entries.is_on_evidence(spec)
    }
    asked = {base for base, built_for in given.values() if built_for is not None}
    all_specs = []
    for spec in specs:
        all_specs.append(spec)
        if spec not in given or defense_specs.is_one_rule(spec):
            continue
        if given[spec][1] is None and given[spec][0] not in asked:
            all_specs.append(defense_specs.with_built_for(spec, patches[-1]))
    return tuple(dict.fromkeys(all_specs))


def over_sizes(result: Report, specs: Sequence[str]) -> Report:
    """A report of every spec for every size in turn, with what it says over patch sizes."""
    families = []
    for number, spec in enumerate(specs):
        numbers = tuple(range(number, len(result.defenses), len(specs)))
        if evidence_entries.is_on_evidence(spec):
            rule: Classifiers = "one rule" if evidence_entries.is_one_rule(spec) else "own rule"
            families.append(certified_size.Family(spec, None, numbers, rule))
            continue
        base, built_for = defense_specs.without_built_for(spec)
        largest = None if built_for is None else as_size(spec_keys.size(built_for))
        is_one = largest is None and defense_specs.is_one_rule(spec)
        families.append(
            certified_size.Family(base, largest, numbers, "one rule" if is_one else None)
        )
    return certified_size.with_curves(result, families)
