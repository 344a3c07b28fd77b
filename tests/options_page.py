"""The page of options, made from the tables that ``--help`` and ``--list`` are made from.

``PYTHONPATH=. python tests/options_page.py`` writes it anew; ``tests/test_docs.py`` compares.
"""

from __future__ import annotations

from pathlib import Path

from certmask_jax.programs import (
    attack,
    audit,
    benchmark,
    certification_options,
    choose,
    compare,
    convert_weights,
    export,
    leaderboard,
    listings,
    merge,
    report,
    training_options,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "options.md"

_PARSERS = {
    "certify": certification_options.parser,
    "choose": choose.parser,
    "report": report.parser,
    "compare": compare.parser,
    "leaderboard": leaderboard.parser,
    "attack": attack.parser,
    "audit": audit.parser,
    "merge": merge.parser,
    "train": training_options.parser,
    "export": export.parser,
    "convert-weights": convert_weights.parser,
    "benchmark": benchmark.parser,
}


def text() -> str:
    """The page as it has to be."""
    parts = [
        "# All options",
        "This page is made from the tables that `--help` and `--list` are made from.",
        "## Defenses",
        "A defense is named as `--defense NAME:key=value,key=value`.",
        listings.defenses_as_markdown(),
        "## Threats",
        "What may attack is said by options, which go together.",
        listings.threats_as_markdown(),
        "## Masks",
        "Every defense takes any of these masks.",
        listings.masks_as_markdown(),
        "## Keys",
        listings.keys_as_markdown(),
    ]
    for name, parser in _PARSERS.items():
        made = parser()
        made.prog = f"certmask {name}"
        parts += [f"## certmask {name}", listings.options_as_markdown(made)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
