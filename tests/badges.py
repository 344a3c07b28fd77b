"""The badges that open the notebooks on Colab and Kaggle, made from one address.

``examples/address.txt`` holds it, ``OWNER/NAME`` on GitHub. ``PYTHONPATH=. python tests/badges.py``
writes the guide and the notebooks anew; ``tests/test_notebooks.py`` compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
ADDRESS = _ROOT / "examples" / "address.txt"
PAGE = _ROOT / "docs" / "guides" / "notebooks.md"
NOTEBOOKS = sorted((_ROOT / "examples").glob("*.ipynb"))
PLACEHOLDER = "OWNER"
"""The owner where a repository has no public address yet."""

_HEADING = "## On Colab and Kaggle\n"
_END = "\nThe first cell says what to install there."
_CLONED = re.compile(r"git\+https://github\.com/[^/\s]+/[^/\s\"\\]+")
_SITES = {
    "Colab": (
        "https://colab.research.google.com/github/{address}/blob/main/examples/{file}",
        "https://colab.research.google.com/assets/colab-badge.svg",
    ),
    "Kaggle": (
        "https://kaggle.com/kernels/welcome?src=https://github.com/{address}/blob/main/examples/"
        "{file}",
        "https://kaggle.com/static/images/open-in-kaggle.svg",
    ),
}


def address() -> str:
    """``OWNER/NAME`` of the repository."""
    text = ADDRESS.read_text().strip()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise ValueError(f"{ADDRESS}: expected OWNER/NAME of a repository on GitHub, got {text!r}")
    return text


def page(text: str, at: str) -> str:
    """The guide with the badges of an address: none that leads nowhere can be clicked on."""
    before, _, rest = text.partition(_HEADING)
    _, _, after = rest.partition(_END)
    addresses = [
        (site, file.stem.replace("_", " "), link.format(address=at, file=file.name), image)
        for site, (link, image) in _SITES.items()
        for file in NOTEBOOKS
    ]
    if at.startswith(f"{PLACEHOLDER}/"):
        said = (
            "This repository has no public address yet, so no badge would lead anywhere. Whoever "
            f"publishes it writes its own in place of `{at}` into `examples/address.txt`, and then "
            "`PYTHONPATH=. python tests/badges.py` makes the badges here and the line of each "
            "notebook that installs the package. They will open:"
        )
        lines = [f"- {site}, {name}: `{link}`" for site, name, link, _ in addresses]
    else:
        said = "These open the notebooks:"
        lines = [
            f"- {name}: [![Open in {site}]({image})]({link})"
            for site, name, link, image in addresses
        ]
    return "\n".join([before + _HEADING, said, "", *lines]) + "\n" + _END + after


def notebook(text: str, at: str) -> str:
    """A notebook that installs from an address."""
    return _CLONED.sub(f"git+https://github.com/{at}", text)


if __name__ == "__main__":
    now = address()
    PAGE.write_text(page(PAGE.read_text(), now))
    for one in NOTEBOOKS:
        changed = notebook(one.read_text(), now)
        json.loads(changed)
        one.write_text(changed)
