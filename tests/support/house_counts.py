"""Counts the rooms of the package, their floors, and the arrows between them.

``python tests/support/house_counts.py`` prints them. An arrow goes from a room to one that it
imports; the floor of a room is the longest way down from it, counted in rooms.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "certmask_jax"


def rooms_above(package: Path = PACKAGE) -> dict[str, set[str]]:
    """What each room (a folder with modules) imports of the others."""
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    above: dict[str, set[str]] = {room: set() for room in rooms}
    for room in rooms:
        for file in (package / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
                elif isinstance(node, ast.Import):
                    names = [one.name for one in node.names]
                parts = [name.split(".") for name in names if name.startswith("certmask_jax.")]
                above[room] |= {part[1] for part in parts if part[1] in rooms and part[1] != room}
    return above


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room; those that import no other are on the first."""
    known: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"expected imports that point down, got {' -> '.join((*above, room))}")
        if room not in known:
            below = (floor(other, (*above, room)) for other in arrows[room])
            known[room] = 1 + max(below, default=0)
        return known[room]

    return {room: floor(room) for room in sorted(arrows)}


if __name__ == "__main__":
    there = rooms_above()
    on = floors(there)
    print(f"{len(there)} rooms, {max(on.values())} floors, {sum(map(len, there.values()))} arrows")
    for number in range(max(on.values()), 0, -1):
        print(number, *(room for room in on if on[room] == number))
