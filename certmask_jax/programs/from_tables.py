"""Earlier runs, printed again from what their folders hold, or certified for other defenses."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax._text import some
from certmask_jax.certification import report, verdicts
from certmask_jax.files import storage
from certmask_jax.files.storage import AnyPath
from certmask_jax.programs import evidence_entries, parts_options, printing, program
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.evidence_of_folder import from_folder, specs_in
from certmask_jax.programs.run_defenses import build_defenses, over_sizes, specs_over_sizes
from certmask_jax.programs.run_folder import write_report
from certmask_jax.programs.threat_options import ThreatOptions, recorded, threats
from certmask_jax.tables import saved_table


def run_from_tables(config: Config, folder: AnyPath, saved: saved_table.SavedTable | None) -> None:
    """Prints the defenses of an earlier run again, or others that its tables suffice for."""
    result = certify_folder(
        folder, saved, config.defenses, threat=config.threat, margin_guard=config.margin_guard
    )
    print(printing.text_of(result, config.format))
    if config.out is not None:
        storage.check_no_file(config.out, f"--out {config.out}")
        if config.out.exists() and any(config.out.iterdir()):
            raise FileExistsError(
                f"--out {config.out}: expected a new or empty folder, but it holds files; choose "
                "another name"
            )
        config.out.mkdir(parents=True, exist_ok=True)
        write_report(result, config.out, program.say)


def certify_folder(
    folder: AnyPath,
    saved: saved_table.SavedTable | None,
    specs: Sequence[str] = (),
    *,
    threat: ThreatOptions | None = None,
    margin_guard: float = 0.0,
) -> report.Report:
    """What the folder of a run proves, by its evidence and its table, ``saved`` where it is open.

    ``specs`` and ``threat`` are those of the run by default.
    """
    there = from_folder(folder, specs, threat=threat, margin_guard=margin_guard)
    if there.report is not None and not there.others:
        return there.joined(None)
    if saved is None:
        _check_has_table(folder, there.others)
    of_table = certify_saved(
        table_of(folder) if saved is None else saved,
        folder,
        threat=threat,
        specs=there.others,
        margin_guard=margin_guard,
        alone=there.report is None,
    )
    return of_table if there.report is None else there.joined(of_table)


def _check_has_table(folder: AnyPath, specs: Sequence[str]) -> None:
    """``ValueError`` for defenses that mask images, of a run all of whose are on evidence."""
    held = specs_in(folder)
    if held and all(map(evidence_entries.is_on_evidence, held)):
        raise ValueError(
            f"--defense {specs[0]}: expected none that masks images, as {folder} has no table of "
            f"these, but defenses on evidence alone ({some(held)}); leave --defense out to print "
            f"them again, or run {program.command('certify')} with {specs[0]} into another folder"
        )


def table_of(folder: AnyPath) -> saved_table.SavedTable:
    """The table in the folder of a run, or in the folder itself."""
    return saved_table.load(folder / "tables" if (folder / "tables").is_dir() else folder)


def certify_saved(
    saved: saved_table.SavedTable,
    folder: AnyPath,
    *,
    threat: ThreatOptions | None = None,
    specs: Sequence[str] = (),
    margin_guard: float = 0.0,
    alone: bool = True,
) -> report.Report:
    """What a table proves about defenses, by default those that it was made for.

    Unless it is ``alone`` in its report, what is said over patch sizes is left to that.
    """
    known = saved.about.get("provenance", {})
    if threat is None or threat == ThreatOptions():
        threat = recorded(known)
    specs = specs or tuple(known.get("defense", ()))
    if threat is None or not specs:
        raise ValueError(f"{folder}: its tables name no defenses; give --patch and --defense")
    masked_size = saved.table.masked_images.image_size
    attacks = threats(threat, parts_options.image_size_of(known, masked_size))
    if "two_parts" in known:
        attacks = parts_options.recorded_on_cells(known, attacks)
    if threat.sizes:
        specs = specs_over_sizes(specs, attacks)
    defenses = build_defenses(specs, attacks)
    result = verdicts.certify(saved, defenses, margin_guard=margin_guard)
    return over_sizes(result, specs) if threat.sizes and alone else result
