"""A table of run times: guards and the plain model in turn, one image at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certmask_jax._text import counted
from certmask_jax.files import fingerprint
from certmask_jax.programs.measurements import answer_times
from certmask_jax.programs.measurements.subjects import of_job
from experiments.papers.recipes import Job, Row, Table
from experiments.papers.sheets import NOT_AT_HAND, Sheet

MOST_IMAGES = 100
_TRIED = 3  # images that tell how long all would take
_PLAIN = Row("", "", "", "")


def sheet_of(table: Table, jobs: Mapping[str, Job]) -> Sheet:
    """Measures every row.

    Args:
      table: the rows that are shown.
      jobs: for each ``Row.patch``: model, images, threat and defenses.

    Raises:
      ValueError, OSError: as certify, for what cannot be opened or run.
    """
    times, names, count, _ = _measured(table, jobs, MOST_IMAGES)
    devices = fingerprint.environment()["devices"]
    numbers = [{"label": row.label, "defense": row.defense, **times[row]} for row in table.rows]
    return Sheet(
        measured=f"Measured here: {counted(count, 'image')} one at a time, {names[0]}, "
        f"{devices['count']} x {devices['kind']}.",
        titles=("", "`--defense`", "the paper's", "milliseconds", "passes", "over no defense"),
        rows=[
            [
                row.label,
                f"`{row.defense}`" if row.defense else "none",
                NOT_AT_HAND,
                f"{one['milliseconds']:.1f} [{one['least']:.1f}, {one['most']:.1f}]",
                f"{one['passes']:.1f}",
                f"{one['over_first']:.1f}",
            ]
            for row, one in zip(table.rows, numbers, strict=True)
        ],
        numbers=numbers,
        record={"subject": names, "images": count, "devices": devices, "rows": numbers},
        below=[
            "Milliseconds are the median [least, most] over the images, on a machine that may have "
            "other work. Passes are the mean. The last column is the median over images of the "
            "time over that of the model without a defense, on the same image in the same run."
        ],
    )


def plan_of(table: Table, jobs: Mapping[str, Job]) -> str:
    """What ``sheet_of`` would take, in a line, from the first few images."""
    times, _, _, whole = _measured(table, jobs, _TRIED)
    seconds = whole * sum(one["mean"] for one in times.values()) / 1e3
    return (
        f"answers of {counted(whole, 'image')}, one at a time, of {counted(len(times), 'row')} in "
        f"turn: {seconds:,.0f} s expected, and start-up; nothing is certified"
    )


def _measured(
    table: Table, jobs: Mapping[str, Job], most: int
) -> tuple[dict[Row, dict[str, float]], list[str], int, int]:
    """What is measured of each row, the names of the models, and on how many images of how many."""
    times: dict[Row, dict[str, float]] = {}
    names: list[str] = []
    count = whole = 0
    for patch, job in jobs.items():
        subject = of_job(job.options)
        defenses = dict(zip(job.specs, subject.defenses, strict=True))
        how: dict[str, Any] = {"preprocessing": subject.preprocessing, "local": subject.local}
        model = subject.apply_fn, subject.params
        rows = [row for row in table.rows if row.patch == patch]
        first = next((row for row in rows if not row.defense), _PLAIN)
        answers = {first: answer_times.plain(*model, subject.image_shape, **how)}
        for row in rows:
            if row.defense:
                defense, channels = defenses[row.defense], subject.image_shape[2]
                answers[row] = answer_times.guard(*model, defense, channels, **how)
        whole = min(MOST_IMAGES, len(subject.test_set))
        count = min(most, whole)
        times |= answer_times.measured(answers, subject.test_set.read(0, count).images)
        names.append(subject.name)
    return times, names, count, whole
