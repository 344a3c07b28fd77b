"""A defense on evidence of a user's own, which says nothing within a margin guard."""

from __future__ import annotations

import dataclasses

from certmask_jax.defenses.patchguard_defense import PatchGuard


@dataclasses.dataclass(frozen=True, repr=False)
class Unguarded(PatchGuard):
    """PatchGuard, perhaps with another rule."""
