"""What a model of another framework has in place of a Linen module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


class NoModule(nn.Module):
    """Stands where a Linen module does that there is not."""

    def __call__(self, images: Any) -> Any:
        """Never.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "model: expected a Flax module for this, got a NumPy function, which has no parameters "
            "here; it can be certified and guarded, not trained"
        )
