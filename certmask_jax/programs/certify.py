"""Certifies a test set: one command in, one table out.

    certmask certify

runs the embedded default (real handwritten digits, the shipped model, a few defenses) in
seconds on two cores. Everything else is an option; ``--help`` explains them, ``--list`` names what
there is. A run that was stopped, however, goes on when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from certmask_jax.files import processes
from certmask_jax.programs import listings, own_process, program
from certmask_jax.programs.certification_config import check_from_tables, check_modes, read_config
from certmask_jax.programs.certification_options import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status.

    0: done; 2: bad input; 3: stopped by ``--max-minutes``, to be resumed; 130: interrupted.
    """
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    check_modes(arguments)
    if arguments.list:
        print(listings.everything())
        return 0
    config = read_config(arguments)
    with own_process.without_collections():  # what runs, which help, lists and mistakes do without
        from certmask_jax.programs import certification_run, evidence_of_folder, from_tables
    if config.from_tables is not None:
        folder = config.from_tables
        has_tables = (folder / "tables").is_dir()
        on_evidence_alone = not has_tables and evidence_of_folder.holds_evidence(folder)
        saved = None if on_evidence_alone else from_tables.table_of(folder)
        check_from_tables(arguments)
        from_tables.run_from_tables(config, folder, saved)
        return 0
    status = certification_run.run(config, program.typed("certify", words))
    processes.wait_for_all("end")  # the first one is reporting
    return status
