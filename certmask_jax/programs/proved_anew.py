"""What the files of a run give, whatever its ``results.json`` says: for a leaderboard.

A defense is built anew of its spec, which gives its name, promise, masks and passes. Accuracies and
intervals come from the rows of images, and these from the tables or the evidence where they are in
the folder. Whatever was written otherwise is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.defense_results import conditions_of, result_of
from certmask_jax.certification.report import DefenseResult, Report
from certmask_jax.defenses import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files import fingerprint
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference.views import passes_each
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs, evidence_entries, evidence_of_folder, from_tables
from certmask_jax.programs import parts_options as parts
from certmask_jax.programs.threat_options import is_native, recorded, threats

_CLOSE = 1e-6  # results and rows are of the same counts
_OF_SPEC = ("name", "guarantee", "masks", "masked_images", "worst_case_exact")
_OF_ROWS = ("worst_case_accuracy", "clean_accuracy", "certified_accuracy", "false_alert_rate")
_IDENTITY = (
    "dataset", "split", "classes", "only_classes", "model", "weights_sha256", "precision", "fill",
    "patch", "patch_area", "sizes", "defense", "patched_with_noise_of_seed",
)  # fmt: skip


class ContradictedError(ValueError):
    """A run that can be read, and of which two files say different things."""


def of_run(folder: AnyPath, said: Report) -> tuple[Report, bool]:
    """The report that the files of a run give, and whether its verdicts came from its tables.

    Args:
      folder: of the run.
      said: read back from its files, with rows of images.

    Raises:
      ContradictedError: where ``results.json`` or the rows say otherwise; a sentence.
      ValueError, OSError: for tables or evidence that cannot be read.
    """
    kept, recomputed = _kept(folder, said)
    proved = _of_rows(said) if kept is None else kept
    if kept is not None:
        _check_run(said, kept)
    there = {(one.spec, one.threat): one for one in proved.defenses}
    defenses = []
    for result in said.defenses:
        given = there.get((result.spec, result.threat))
        if given is None:
            what = f"{result.spec} against {result.threat}"
            raise ContradictedError(f"its tables are not of {what}, which it prints")
        _check_rows(result, given)
        _check_numbers(result, given)
        # Margins as they were printed, which are the same where no table is.
        defenses.append(dataclasses.replace(given, per_image=result.per_image))
    each = said.forward_passes.get("a_masked_image", 1)
    wanted = passes_each(proved.provenance)
    if each != wanted:
        what = counted(wanted, "pass", "passes")
        raise ContradictedError(f"its views give {what} a masked image, and it prints {each}")
    _check(proved.undefended_accuracy, said.undefended_accuracy, "undefended_accuracy", "the run")
    return dataclasses.replace(proved, defenses=tuple(defenses)), recomputed


def _kept(folder: AnyPath, said: Report) -> tuple[Report | None, bool]:
    """The report of tables and evidence in the folder, and whether all of it is of tables."""
    there = evidence_of_folder.from_folder(folder, (), threat=None, margin_guard=said.margin_guard)
    if there.report is not None and not there.others:
        return there.joined(None), False
    if not (folder / "tables").is_dir():
        return None, False
    try:
        saved = from_tables.table_of(folder)
    except FileNotFoundError:
        return None, False
    result = from_tables.certify_saved(
        saved,
        folder,
        specs=there.others,
        margin_guard=said.margin_guard,
        alone=there.report is None,
    )
    of_table = saved.about.get("fingerprint", {})
    for name in _IDENTITY:
        if name in of_table and of_table[name] != result.provenance.get(name):
            raise ContradictedError(f"its table is of another {name} than it says itself")
    return (result, True) if there.report is None else (there.joined(result), False)


def _of_rows(said: Report) -> Report:
    """As its specs and its rows of images give it."""
    local = evidence_of_folder.recorded_local(said.provenance)
    defenses = []
    for result in said.defenses:
        _check_threat(said.provenance, result.threat)
        built: Defense | EvidenceDefense
        try:
            if not evidence_entries.is_on_evidence(result.spec):
                size = result.threat.image_size
                built = defense_specs.build(result.spec, size, result.threat)
            elif evidence_entries.is_local(result.spec) and local is None:
                raise ValueError("the cells of its model (local_logits) are not recorded")
            else:
                seen = evidence_of_folder.recorded_seen_size(said.provenance)
                built = evidence_entries.build(result.spec, result.threat, local, seen)
        except (ValueError, ImportError) as error:
            what = f"{result.spec} against {result.threat}"
            raise ContradictedError(f"{what} cannot be built anew: {error}") from error
        defenses.append(_result(result, built, said))
    right = said.per_image["undefended"] == said.per_image["label"]
    return dataclasses.replace(
        said, undefended_accuracy=float(right.mean()), defenses=tuple(defenses)
    )


def _result(result: DefenseResult, built: Defense | EvidenceDefense, said: Report) -> DefenseResult:
    rows = result.per_image
    conditions = conditions_of(built)
    if {*conditions} != {*result.conditions}:
        raise ContradictedError(
            f"its spec gives conditions {', '.join(conditions) or 'none'} of {result.spec}, and it "
            f"prints {', '.join(result.conditions) or 'none'}"
        )
    low = rows["worst_case"] & ~(rows["smallest_margin"] * (1 + 1e-5) > said.margin_guard)
    if said.margin_guard and low.any() and not isinstance(built, EvidenceDefense):
        raise ContradictedError(
            f"it prints a margin guard of {said.margin_guard:g}, and certifies images of "
            f"{result.spec} with smaller margins"
        )
    proved = result_of(built, rows, said.per_image["label"])
    return dataclasses.replace(proved, spec=result.spec, threat=result.threat)


def _check_threat(known: Mapping[str, Any], threat: Threat) -> None:
    """``ContradictedError`` for a threat that is not one of those that the run says it is about."""
    options = recorded(known)
    size = (known.get("data_config") or {}).get("input_size")
    if options is None or size is None:
        return  # said to be missing elsewhere
    try:
        if "two_parts" in known:
            pixels = parts.image_size_of(known, threat.image_size)
            about = parts.recorded_on_cells(known, threats(options, pixels))
        else:
            about = threats(options, threat.image_size if is_native(known) else tuple(size))
    except (ValueError, KeyError, TypeError) as error:
        raise ContradictedError(f"its patch cannot be read: {error}") from error
    if threat not in about:
        raise ContradictedError(
            f"it says that it is against {'; '.join(map(str, about))}, and prints {threat}"
        )


def _check_run(said: Report, kept: Report) -> None:
    """What is said of the whole run has to be what its tables say."""
    for name, there in fingerprint.plain(dict(kept.provenance)).items():
        if name not in said.provenance or said.provenance[name] != there:
            here = said.provenance.get(name, "nothing")
            raise ContradictedError(
                f"its tables were made with {name} {there}, and its results.json says {here}"
            )
    if tuple(said.ids) != tuple(kept.ids) or {*said.left_out} != {*kept.left_out}:
        raise ContradictedError("its tables are of other images than its rows of images")
    for name, rows in kept.per_image.items():
        if not _same(said.per_image.get(name), rows):
            raise ContradictedError(f"its tables give others than column {name} of per_image.csv")


def _check_rows(result: DefenseResult, given: DefenseResult) -> None:
    for name, rows in given.per_image.items():
        if not _same(result.per_image.get(name), rows):
            raise ContradictedError(
                f"expected the verdicts that its tables give, but per_image.csv has others for "
                f"{result.spec}, {name}; take the file as the run wrote it, or run it anew"
            )


def _same(printed: NDArray[Any] | None, rows: NDArray[Any]) -> bool:
    """Whether a column is that of the tables, to the six digits in which margins are printed."""
    if printed is None or rows.dtype.kind != "f":
        return printed is not None and np.array_equal(printed, rows)
    return np.allclose(printed, rows, rtol=1e-4, atol=1e-9, equal_nan=True)


def _check_numbers(result: DefenseResult, given: DefenseResult) -> None:
    for name in _OF_SPEC:
        wanted, printed = getattr(given, name), getattr(result, name)
        if wanted != printed:
            what = f"{name} {wanted} of {result.spec}"
            raise ContradictedError(f"its spec gives {what}, and it prints {printed}")
    for name in _OF_ROWS:
        _check(getattr(given, name), getattr(result, name), name, result.spec)
    for name in {*given.conditions, *result.conditions}:
        _check(given.conditions.get(name), result.conditions.get(name), name, result.spec)
    for name in {*given.intervals, *result.intervals}:
        ends = [one.get(name, (None, None)) for one in (given.intervals, result.intervals)]
        for wanted, printed in zip(*ends, strict=True):
            _check(wanted, printed, f"an interval of {name} that ends at", result.spec)


def _check(wanted: float | None, printed: float | None, name: str, of: str) -> None:
    if wanted is None or printed is None:
        same = wanted is printed
    else:
        same = abs(wanted - printed) <= _CLOSE
    if not same:
        words = ["nothing" if one is None else f"{one:.4f}" for one in (wanted, printed)]
        raise ContradictedError(
            f"its rows of images give {name} {words[0]} of {of}, and it prints {words[1]}"
        )
