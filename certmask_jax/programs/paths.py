"""Paths of the command line: absolute, normal and local, once, where they enter."""

from __future__ import annotations

import argparse
from pathlib import Path

from certmask_jax import weights
from certmask_jax.files import storage
from certmask_jax.programs.program import message


def local_path(text: str) -> Path:
    """argparse's type of an option that takes a local file or folder; ``~`` is expanded.

    Raises:
      argparse.ArgumentTypeError: for the address of something elsewhere, or no path.
    """
    try:
        return storage.local_path(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(message(error)) from error


def local_output(text: str) -> Path:
    """argparse's type of an option whose file or folder is written; raises as ``local_path``."""
    try:
        return storage.local_path(text, is_written=True)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(message(error)) from error


def weights_address(text: str) -> weights.Address:
    """argparse's type of an option that takes weights: a path, ``pip:``, ``hf:`` or ``timm:``."""
    try:
        return weights.address(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(message(error)) from error


def run_path(text: str) -> storage.AnyPath:
    """Reads the folder of a run, which may lie in a bucket (gs://, s3://)."""
    try:
        return storage.any_path(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(message(error)) from error
