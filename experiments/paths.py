"""Paths of the command line: absolute, normal and local, once, where they enter."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from certmask_jax import storage


def local_path(text: str) -> Path:
    """argparse's type of an option that takes a local file or folder; ``~`` is expanded.

    Raises:
      argparse.ArgumentTypeError: for the address of something elsewhere, or no path.
    """
    try:
        return storage.local_path(_expanded(text))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_path(text: str) -> storage.AnyPath:
    """The same for the folder of a run, which may lie in a bucket (gs://, s3://)."""
    try:
        return storage.any_path(_expanded(text))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _expanded(text: str) -> str:
    if not text.startswith("~"):
        return text
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ValueError(
            f"{text}: expected a home folder for {text.split('/')[0]}, found none; give the whole "
            "path"
        )
    return found
