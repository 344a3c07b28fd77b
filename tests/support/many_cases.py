"""How many random cases a test tries: few in the suite, and as many times more as one likes.

``CERTMASK_JAX_CASES=13 python -m pytest tests/defenses`` tries more than 10,000 a defense on local
logits or bands, and 42 times as many do so of CrossCert.
"""

from __future__ import annotations

import os

TIMES = int(os.environ.get("CERTMASK_JAX_CASES", "1"))


def cases(count: int) -> int:
    """So many cases, times ``CERTMASK_JAX_CASES``."""
    return count * TIMES
