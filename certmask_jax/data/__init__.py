"""Data sets by name, as uint8 images of the size that a model sees, a few at a time.

Preprocessing (resize, crop; Pillow, on uint8) is the model's data config; normalisation happens on
the device, after masking's place has been decided.
"""

from certmask_jax.data.dataset import Batch, Dataset
from certmask_jax.data.embedded_digits import digits_arrays
from certmask_jax.data.images import preprocess
from certmask_jax.data.images_in_memory import from_arrays
from certmask_jax.data.listing import Listing
from certmask_jax.data.named_datasets import check_name, load, named_folder, names
from certmask_jax.data.subsets import Subset

__all__ = [
    "Batch",
    "Dataset",
    "Listing",
    "Subset",
    "check_name",
    "digits_arrays",
    "from_arrays",
    "load",
    "named_folder",
    "names",
    "preprocess",
]
