"""What the line of an image says: what it is without a patch, and what a search made of it."""

from __future__ import annotations

from collections.abc import Sequence

from certmask_jax.attacks.attacked_images import AttackedImages
from certmask_jax.defenses import ALERT
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.clean_verdicts import Before


def line_before(
    before: Before, row: int, label: int, class_names: Sequence[str], *, conditions: bool
) -> Line:
    """What an image is that is not attacked yet, and what is said of it.

    Args:
      before: of some images.
      row: which of them.
      label: the true class.
      class_names: of all classes, as far as they are known.
      conditions: whether there are conditions of a paper.
    """
    name = class_names[label] if label < len(class_names) else ""
    holds = {key: bool(of_all[row]) for key, of_all in before.conditions.items()}
    return {
        "label": label,
        "class": str(name or label),
        "broken": None,
        "before": int(before.answers[row]),
        "certified": bool(before.certified[row]),
        **({"conditions": holds} if conditions else {}),
    }


def line_after(made: AttackedImages, row: int, target: int | None) -> Line:
    """What a search made of an image; ``reached`` where one label is aimed at."""
    after = int(made.answers[row])
    return {
        "after": "alert" if after == ALERT else after,
        "broken": bool(made.broken[row]),
        **({} if target is None else {"reached": after == target}),
        "target": int(made.targets[row]),
        "place": made.places[row].tolist(),
        "steps": int(made.steps[row]),
        **({} if made.objectives is None else {"objective": str(made.objectives[row])}),
    }
