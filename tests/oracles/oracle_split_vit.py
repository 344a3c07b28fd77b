"""PatchCURE's split ViT in plain NumPy, one window after another. Imports nothing of the package.

Float64, parameters by the names that Flax gives them. Hidden windows are left out, not masked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_ERF = np.vectorize(math.erf)


def logits(
    params: dict[str, Any],
    image: np.ndarray,
    hidden: np.ndarray,
    *,
    heads: int,
    windows: tuple[int, int],
    split: int,
    pooling: str = "token",
) -> np.ndarray:
    """Logits ``[K]`` of an image ``[h, w, c]`` of which windows ``hidden bool[H, W]`` are not seen.

    At least one is.
    """
    kernel = np.asarray(params["patch_embed_proj"]["kernel"], np.float64)
    side = kernel.shape[0]
    rows, columns = image.shape[0] // side, image.shape[1] // side
    positions = np.asarray(params["pos_embed"], np.float64)[0]
    prefix = [np.asarray(params["cls_token"], np.float64)[0]]
    if "reg_token" in params:
        prefix.append(np.asarray(params["reg_token"], np.float64)[0])
    own = np.concatenate(prefix)
    if len(positions) > rows * columns:  # the class token has one
        own[0] = own[0] + positions[0]
        positions = positions[1:]
    depth = sum(name.startswith("blocks_") for name in params)
    classes, tokens = [], []
    for window_row in range(rows // windows[0]):
        for window_column in range(columns // windows[1]):
            if hidden[window_row, window_column]:
                continue
            seen = []
            for i in range(windows[0]):
                for j in range(windows[1]):
                    row, column = window_row * windows[0] + i, window_column * windows[1] + j
                    part = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
                    token = np.einsum("hwc,hwcd->d", part.astype(np.float64), kernel)
                    token = token + params["patch_embed_proj"]["bias"]
                    seen.append(token + positions[row * columns + column])
            x = np.concatenate([own, np.stack(seen)])
            for block in range(split):
                x = _block(x, params[f"blocks_{block}"], heads)
            classes.append(x[: len(own)])
            tokens.append(x[len(own) :])
    x = np.concatenate([np.mean(classes, axis=0), *tokens])
    for block in range(split, depth):
        x = _block(x, params[f"blocks_{block}"], heads)
    if pooling == "token":
        x = _norm(x[0], params["norm"])
    else:
        x = _norm(x[len(own) :].mean(axis=0), params["fc_norm"])
    return x @ np.asarray(params["head"]["kernel"], np.float64) + params["head"]["bias"]


def _block(x: np.ndarray, of: dict[str, Any], heads: int) -> np.ndarray:
    y = _norm(x, of["norm1"])
    q, k, v = np.split(_dense(y, of["attn"]["qkv"]), 3, axis=1)
    each = x.shape[1] // heads
    mixed = np.empty_like(x)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        scores = q[:, part] @ k[:, part].T / math.sqrt(each)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, part] = shares / shares.sum(axis=1, keepdims=True) @ v[:, part]
    x = x + _scaled(_dense(mixed, of["attn"]["proj"]), of, "ls1")
    y = _dense(_norm(x, of["norm2"]), of["mlp_fc1"])
    y = y * (1 + _ERF(y / math.sqrt(2))) / 2
    return x + _scaled(_dense(y, of["mlp_fc2"]), of, "ls2")


def _dense(x: np.ndarray, of: dict[str, Any]) -> np.ndarray:
    return x @ np.asarray(of["kernel"], np.float64) + np.asarray(of["bias"], np.float64)


def _scaled(x: np.ndarray, of: dict[str, Any], name: str) -> np.ndarray:
    return x * of[name]["gamma"] if name in of else x


def _norm(x: np.ndarray, of: dict[str, Any]) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * of["scale"] + of["bias"]
