"""Modules that take long to import, for the annotations that name something of them."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a module, which is imported when something of it is asked for.

    A type checker reads an import in its place; ``typing.get_type_hints`` finds this here.

    Args:
      name: of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
