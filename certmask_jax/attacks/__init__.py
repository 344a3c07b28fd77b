"""Attacks: patches of real pixels that are aimed at a defense, where a proof says what they cannot.

A certificate needs no attack. An attack shows the other side: what a patch can really do where
nothing is certified, and, where something is, that nothing contradicts it.
"""

from certmask_jax.attacks.attacked_defenses import attacked
from certmask_jax.attacks.attacked_images import AttackedImages, attack_images
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.black_box import BlackBoxSearch, search_without_gradients
from certmask_jax.attacks.goal_choice import promising_goals
from certmask_jax.attacks.patch_places import (
    places_by_gradient,
    places_on_grid,
    random_places,
    weakest_places,
)
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import with_patches
from certmask_jax.attacks.stuck_patches import Transformations, pasted
from certmask_jax.attacks.table_goals import Goal, goals_at, undefended_goals
from certmask_jax.attacks.universal_patches import UniversalPatch, universal_patch

__all__ = [
    "Attacked",
    "AttackedImages",
    "BlackBoxSearch",
    "Goal",
    "PatchSearch",
    "Transformations",
    "UniversalPatch",
    "attack_images",
    "attacked",
    "goals_at",
    "pasted",
    "places_by_gradient",
    "places_on_grid",
    "promising_goals",
    "random_places",
    "search_without_gradients",
    "undefended_goals",
    "universal_patch",
    "weakest_places",
    "with_patches",
]
