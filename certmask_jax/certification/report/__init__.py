"""Reports: records of what was measured and proved, as files, a table to read, and one to print."""

from certmask_jax.certification.report.files import FILES, RESULTS, results_csv, write
from certmask_jax.certification.report.markup import as_latex, as_markdown
from certmask_jax.certification.report.notes import warnings
from certmask_jax.certification.report.notices import Notice
from certmask_jax.certification.report.records import (
    MARGINS,
    Classifiers,
    DefenseResult,
    Interval,
    Report,
    SizeCurve,
    to_json,
    wilson_interval,
)
from certmask_jax.certification.report.screen import as_text
from certmask_jax.certification.report.stored import read, schema

__all__ = [
    "FILES",
    "MARGINS",
    "RESULTS",
    "Classifiers",
    "DefenseResult",
    "Interval",
    "Notice",
    "Report",
    "SizeCurve",
    "as_latex",
    "as_markdown",
    "as_text",
    "read",
    "results_csv",
    "schema",
    "to_json",
    "warnings",
    "wilson_interval",
    "write",
]
