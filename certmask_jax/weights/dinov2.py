"""DINOv2's own files under timm's names.

Those of github.com/facebookresearch/dinov2 (Oquab et al., 2024) are timm's but for three things: a
token that stands for masked patches in pre-training only, the name of the registers (Darcet et al.,
2024), and a position of the class token beside registers, which timm adds to the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from certmask_jax.weights.stored import Entry

_MARK = "mask_token"
_REGISTERS = "register_tokens"


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries of a DINOv2 file as timm's; others stay as they are.

    Nothing is read before it is asked for. What is missing is left out, so that the check of names
    lists it.
    """
    renamed = dict(entries)
    if renamed.pop(_MARK, None) is None:
        return renamed
    registers = renamed.pop(_REGISTERS, None)
    if registers is None:
        return renamed
    renamed["reg_token"] = registers
    token, positions = renamed.get("cls_token"), renamed.get("pos_embed")
    if token is None or positions is None or len(positions.shape) != 3:
        return renamed
    batch, count, width = positions.shape
    renamed["cls_token"] = Entry(
        token.shape,
        token.kind,
        lambda: (
            np.asarray(token.read(), np.float32) + np.asarray(positions.read(), np.float32)[:, :1]
        ),
    )
    renamed["pos_embed"] = Entry(
        (batch, count - 1, width), positions.kind, lambda: positions.read()[:, 1:]
    )
    return renamed
