"""Weights for a model, from the files that people have.

``.npz`` (PyTorch's names, Google's ViT, Google's BiT), ``.safetensors`` (timm's), Orbax folders,
and PyTorch's files where PyTorch is installed; from here, an installed package, the Hugging Face
Hub, or timm. Strict: a file either is the model, entry by entry, or one error lists what is
missing, unexpected and misshapen, with the likely cause.
"""

from certmask_jax._settings import Naming, SettingError
from certmask_jax.weights.addresses import Address, address, card_of
from certmask_jax.weights.cards import Card
from certmask_jax.weights.loading import digest, load, num_classes, read, save, taken
from certmask_jax.weights.names import torch_name
from certmask_jax.weights.places import Taken
from certmask_jax.weights.stored import WeightsFile
from certmask_jax.weights.writing import check_writable

__all__ = [
    "Address",
    "Card",
    "Naming",
    "SettingError",
    "Taken",
    "WeightsFile",
    "address",
    "card_of",
    "check_writable",
    "digest",
    "load",
    "num_classes",
    "read",
    "save",
    "taken",
    "torch_name",
]
