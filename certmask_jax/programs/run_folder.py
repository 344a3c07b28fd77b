"""What the folder of a run holds: tables, the shares of other jobs, and the files of the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from certmask_jax._text import json_of
from certmask_jax.certification import certified_size, report
from certmask_jax.files import processes, storage
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables import evidence_merging, evidence_store, merging, saved_table


def share_folder(run_folder: AnyPath, shard: tuple[int, int]) -> AnyPath:
    """Where a share of a run goes."""
    return run_folder if shard[1] == 1 else run_folder / f"shard-{shard[0]}-of-{shard[1]}"


def shares_in(run_folder: AnyPath) -> list[AnyPath]:
    """The shares in the folder of a run that were begun."""
    if not run_folder.is_dir():
        return []
    shares = [folder for folder in run_folder.iterdir() if _is_share(folder)]
    shares.sort(key=lambda folder: folder.name)
    return [share for share in shares if tables_of([share]) or evidence_of([share])]


def tables_of(shares: Sequence[AnyPath]) -> list[AnyPath]:
    """The tables of those shares that have one, which was begun."""
    return [f / "tables" for f in shares if (f / "tables" / saved_table.ABOUT).is_file()]


def evidence_of(shares: Sequence[AnyPath]) -> list[AnyPath]:
    """What those shares found on evidence that have begun with it."""
    folders = [share / evidence_store.FOLDER for share in shares]
    return [folder for folder in folders if (folder / evidence_store.RECORD).is_file()]


def _is_share(folder: AnyPath) -> bool:
    return re.fullmatch(r"shard-\d+-of-\d+", folder.name) is not None


def check_out(out: AnyPath) -> None:
    """Refuses a folder with files and without a table; whose table it is, ``evaluate`` checks."""
    storage.check_no_file(out, f"--out {out}")
    if not out.exists() or any((out / name).is_dir() for name in ("tables", "evidence")):
        return
    if not all(map(_is_share, out.iterdir())):
        raise FileExistsError(
            f"--out {out}: expected a new or empty folder, or this same run to go on with, but it "
            "holds files, perhaps of another run; choose another name"
        )


def take_shares(run_folder: AnyPath, out: AnyPath, warn: Callable[[str], None]) -> None:
    """Puts what shares have done into the whole table and evidence that are not complete."""
    shares = shares_in(run_folder)
    if out != run_folder or not shares or not processes.is_first():
        return
    tables, evidence = out / "tables", out / evidence_store.FOLDER
    missing: list[Callable[[], None]] = []
    if evidence_of(shares) and not evidence_merging.is_complete(evidence):
        missing.append(
            lambda: evidence_merging.merge(evidence_of(shares), evidence, partial=True, warn=warn)
        )
    if tables_of(shares) and not _is_complete(tables):
        missing.append(lambda: merging.merge(tables_of(shares), tables, partial=True, warn=warn))
    if missing:
        warn(f"going on with what {len(shares)} shares have done")
    for take in missing:
        take()


def _is_complete(tables: AnyPath) -> bool:
    return saved_table.recorded(tables) is not None and saved_table.is_complete(tables)


def write_report(
    result: report.Report, out: AnyPath, warn: Callable[[str], None]
) -> tuple[str, ...]:
    """Writes the files of a report, and says so if they replace those of another margin guard.

    Returns their names.
    """
    before = written(out)
    if before is not None and before.get("margin_guard", 0) != result.margin_guard:
        warn(
            f"{out}: the results are now those of --margin-guard "
            f"{result.margin_guard:g}, before of {before.get('margin_guard', 0):g}"
        )
    files = files_of(result)
    if result.certified_size:  # results.json, which says that all are there, is written last
        certified_size.write_curve(result, out)
        try:
            certified_size.write_figure(result, out)
            files = (*files, certified_size.FIGURE)
        except ImportError as error:
            warn(f"no {certified_size.FIGURE} ({error}); pip install 'certmask_jax[plots]'")
    report.write(result, out)
    return files


def files_of(result: report.Report) -> tuple[str, ...]:
    """The files of a report that must be there (a figure needs matplotlib)."""
    return (*report.FILES, certified_size.CURVE) if result.certified_size else report.FILES


def written(out: AnyPath) -> dict[str, Any] | None:
    """What ``results.json`` says, if it can be read."""
    try:
        return dict(json_of((out / report.RESULTS).read_bytes()))
    except (OSError, ValueError):
        return None


def is_written(result: report.Report, out: AnyPath, precision: str) -> bool:
    """Whether the files of a report are there, with the same margin guard and all that it says."""
    before = written(out)
    if before is None or not all((out / name).is_file() for name in files_of(result)):
        return False
    if bool(before.get("certified_size")) != bool(result.certified_size):
        return False
    # merge has no model to count label flips with.
    is_whole = precision == "highest" or "label_flips_against_float32" in before.get(
        "provenance", {}
    )
    return is_whole and before.get("margin_guard") == result.margin_guard
