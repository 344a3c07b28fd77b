"""What attacks in the folder of a run came to, counted from their lines.

``attack.json`` is a summary that can be edited, and lines can be lost: what is told of an attack
comes from ``attacks.jsonl`` and the rows of the run, and the summary has to say the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax._text import json_of, words_of
from certmask_jax.certification.report import DefenseResult, Report, wilson_interval
from certmask_jax.data.attacked_sets import LINES, Line, read_lines
from certmask_jax.files.storage import AnyPath
from certmask_jax.pages.leaderboard import Attacked
from certmask_jax.programs.attacking.attack_folder import SUMMARY
from certmask_jax.programs.proved_anew import ContradictedError

_ATTACKS = ("attack", "audit", "patches", "universal")
"""Folders of attacks in that of a run, as programs name them where nothing else is said."""

_OF_RUN = ("dataset", "split", "model", "weights_sha256", "patch", "patch_area", "patch_lives")


def counted_from_lines(folder: AnyPath, report: Report) -> dict[str, Attacked]:
    """What attacks in the folder of a run came to, for each defense that they were aimed at.

    A patch for many images, or one that was given, is aimed at none of them: it may contradict a
    certificate, and what it leaves right says nothing beside patches that were searched for.

    Args:
      folder: of the run.
      report: with rows of images.

    Raises:
      ContradictedError: for lines of another run, or a summary that says otherwise than the lines.
      ValueError: for lines or a summary that are damaged; names the file.
    """
    by_spec: dict[str, Attacked] = {}
    against: dict[str, set[str]] = {}
    for name in _ATTACKS:
        summary = _summary(folder / name / SUMMARY)
        told = read_lines(folder / name)
        if told is None:
            if summary is None:
                continue
            raise ContradictedError(f"its {name}/{SUMMARY} has no {LINES} beside it to count from")
        for key in _OF_RUN:
            if key in told.settings and told.settings[key] != report.provenance.get(key):
                raise ContradictedError(f"its {name}/{LINES} is of a run of another {key}")
        for result in report.defenses:
            lines = [line for line in told.lines if line["defense"] == result.spec]
            said = [one for one in summary or () if one.get("defense") == result.spec]
            try:
                one, broken = _counted(lines, result, report, is_audit=_is_audit(said))
                _check(said, one, broken, f"{name}/{SUMMARY}")
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{folder / name}: is damaged ({words_of(error)})") from error
            against.setdefault(result.spec, set()).update(broken)
            if one is not None:
                by_spec.setdefault(result.spec, one)
    nothing = Attacked(0, 0, 0)
    return {
        spec: by_spec.get(spec, nothing)._replace(contradictions=len(images))
        for spec, images in against.items()
        if spec in by_spec or images
    }


def _summary(file: AnyPath) -> list[dict[str, Any]] | None:
    """The results of ``attack.json``, of a patch for many images those of both halves."""
    try:
        results = json_of(file.read_bytes())["results"]
        # Of a patch for many images each half has its own.
        lines = [*itertools.chain(*results.values())] if isinstance(results, dict) else results
        return [dict(one) for one in lines]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: is damaged ({words_of(error)})") from error


def _is_audit(said: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a summary is an audit's, which is told of all images of a run."""
    return any("certificates" in one for one in said)


def _counted(
    lines: Sequence[Line], result: DefenseResult, report: Report, *, is_audit: bool
) -> tuple[Attacked | None, set[str]]:
    """What the lines of a defense give, None where no image was attacked; what they contradict."""
    row_of = {one: row for row, one in enumerate(report.ids)}
    label, answer = report.per_image["label"], result.per_image["answer"]
    for line in lines:
        row = row_of.get(line["image"])
        if row is None or label[row] != line["label"]:
            raise ContradictedError(
                f"its attack is of image {line['image']} of class {line['label']}, which its rows "
                "of images have not"
            )
    broken = {
        line["image"]
        for line in lines
        if line["broken"]
        and (line.get("certified") or result.per_image["worst_case"][row_of[line["image"]]])
    }
    aimed = {
        line["image"]: line for line in lines if "patch" not in line and not line.get("otherwise")
    }
    tried = [line for line in aimed.values() if line["broken"] is not None]
    if not tried:
        return None, broken
    images = report.ids if is_audit else tuple(aimed)
    right = sum(bool(answer[row_of[one]] == label[row_of[one]]) for one in images)
    left_right = None
    # An audit counts what it did not attack as right.
    if len(tried) >= right:
        share = (right - sum(bool(line["broken"]) for line in tried)) / len(images)
        left_right = share, wilson_interval(share, len(images))
    return Attacked(len(images), len(tried), 0, left_right), broken


def _check(
    said: Sequence[Mapping[str, Any]], from_lines: Attacked | None, broken: set[str], file: str
) -> None:
    """``ContradictedError`` for a summary that says otherwise than the lines."""
    if not said:
        return
    named = {str(image) for one in said for image in _contradicted(one)}
    attacked = sum(int(one.get("attacked") or 0) for one in said)
    lines = 0 if from_lines is None else from_lines.attacked
    for what, wanted, printed in (
        ("images attacked", lines, attacked),
        ("contradicted certificates", len(broken), len(named)),
    ):
        if wanted != printed:
            raise ContradictedError(
                f"its {file} says {printed} {what} of {said[0]['defense']}, and the lines of "
                f"{LINES} give {wanted}"
            )


def _contradicted(line: Mapping[str, Any]) -> list[str]:
    """Images whose certificate an attack contradicts; an audit has them beside the certificates."""
    if "contradictions" in line:
        return list(map(str, line["contradictions"]))
    certificates = line["certificates"]  # None of the plain model
    return [] if certificates is None else list(map(str, certificates["contradicted"]))
