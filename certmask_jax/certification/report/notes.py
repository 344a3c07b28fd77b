"""What stands below a table: what its columns mean, what was left out, what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax.certification.report import numbers
from certmask_jax.certification.report.layout import printable
from certmask_jax.certification.report.records import MARGINS, Report

_SHOWN = 5  # images


def heading(report: Report) -> list[str]:
    """How many images there are, and how the model does on them without a defense."""
    count = f"{report.num_images:,}"
    if report.left_out:
        count += f" of {report.num_images + len(report.left_out):,}"
    lines = [f"{count} images, undefended accuracy {numbers.undefended(report)}"]
    if report.left_out:
        named = [f"{printable(one)} ({printable(why)})" for one, why in report.left_out.items()]
        lines.append(f"{len(named):,} left out, which count nowhere: {_some(named)}")
    return lines + _of_choice(report)


def _of_choice(report: Report) -> list[str]:
    """Which images of a data set these are, and among which classes the model chooses."""
    found = []
    subset = report.provenance.get("subset")
    if subset is not None and subset["seed"] is not None:
        found.append(
            f"images drawn at random from {subset['of']:,}, seed {subset['seed']}; intervals are "
            "about all of them"
        )
    elif subset is not None and subset["how"] != "first":
        found.append(
            f"images of {subset['of']:,}, as many of each class as can be; intervals are about "
            "images that are spread so"
        )
    elif subset is not None:
        found.append(f"the first images of {subset['of']:,}")
    missing = report.provenance.get("missing_images")
    if missing:
        found.append(
            f"{len(missing):,} more stand in the list of labels, are not in the folder, and count "
            f"nowhere: {_some(list(map(printable, missing)))}"
        )
    only = report.provenance.get("only_classes")
    if only is not None:
        found.append(f"the model chooses among the {len(only):,} classes of the data set only")
    return found


def of_columns(report: Report, *, short: bool) -> list[str]:
    """What the worst case is, and the two guarantees; in a table of short words also these."""
    usual = all(len(d.threat) == 1 and not d.threat.region for d in report.defenses)
    several = len({d.threat for d in report.defenses}) > 1
    patches = "the patches of its row" if several else "these patches"
    where = "one patch anywhere" if usual else f"{patches} where they may be"
    found = [
        f"worst case: % of images on which no attacker can win who puts {where} and chooses every "
        "prediction that sees a patch pixel. Only this number is a certificate. Brackets: 95% "
        "intervals (Wilson)."
    ]
    words = {
        "recovery": ("rec", "always the true label"),
        "detection": ("det", "the true label or an alert"),
    }
    there = list(dict.fromkeys(d.guarantee for d in report.defenses))
    said = []
    for guarantee in there:
        word, meaning = words.get(guarantee, (guarantee, guarantee))
        said.append(f"{word}, {guarantee}: {meaning}" if short else f"{guarantee}: {meaning}")
    found.append("; ".join(said))
    if not all(d.worst_case_exact for d in report.defenses):
        found.append(">=: a proved lower bound of the worst case")
    return found


def of_conditions(report: Report) -> list[str]:
    """Where the papers' conditions are, and which are the worst case itself."""
    others = any(map(numbers.other_conditions, report.defenses))
    same: dict[str, None] = {}
    for result in report.defenses:
        other = numbers.other_conditions(result)
        same |= dict.fromkeys(name for name in result.conditions if name not in other)
    found = []
    if others:
        found.append(
            "paper's condition: what the defense's paper calls certified, where it is not the "
            "worst case itself"
        )
    if same:
        found.append(
            f"the papers' own {_and(list(same))} {'hold' if len(same) > 1 else 'holds'} on the "
            f"same images as the worst case{', where not shown' if others else ''}"
        )
    return found


def of_work(report: Report) -> list[str]:
    """What was evaluated, and of which images."""
    found = []
    if "patched_with_noise_of_seed" in report.provenance:
        found.append(
            "the images are patched already, each with random noise of the size of the patch; the "
            "worst case is over other contents of it (the clean image too), or one patch more"
        )
    made, whole = report.forward_passes["made"], report.forward_passes["full_table"]
    if made < whole:
        found.append(
            f"forward passes: {made / report.num_images:.1f} an image of "
            f"{whole / report.num_images:.0f}; the others could not change a verdict"
        )
    if "fields" in report.provenance:
        found.append(
            f"local logits: all masked images of an image from {report.provenance['fields']} "
            f"distinct fields, as many as {report.provenance['fields_as_whole_images']:g} whole "
            "images have"
        )
    return found


def of_near_ties(report: Report, names: Sequence[str]) -> list[str]:
    """Certified images with a small margin; ``names`` are those of the report's defenses."""
    near = [
        f"{name} {', '.join(map(str, d.near_ties.values()))}"
        for name, d in zip(names, report.defenses, strict=True)
        if any(d.near_ties.values())
    ]
    if not near:
        return []
    margins = ", ".join(f"{margin:g}" for margin in MARGINS)
    return [
        "near ties, which another device or batch may break otherwise (a margin guard leaves them "
        f"out): certified images with a logit margin below {margins}: {'; '.join(near)}"
    ]


def warnings(report: Report) -> list[str]:
    """What may make certificates differ from those of exact arithmetic, in lines."""
    found = []
    flips = report.provenance.get("label_flips_against_float32")
    if flips:
        found.append(
            f"precision: {flips['flips']} of {flips['compared']} masked images have another label "
            f"in float32 (largest margin {flips['largest_margin']:.3g})"
        )
    if report.margin_guard:
        found.append(
            f"margin guard: no image is certified with a logit margin of {report.margin_guard:g} "
            "or less"
        )
    if report.non_finite_images:
        shown = list(map(printable, report.non_finite_images))
        found.append(
            f"WARNING: NaN or infinite logits on {len(shown)} image(s), never certified: "
            f"{_some(shown)}"
        )
    return found


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
