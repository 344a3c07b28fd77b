"""DINOv2's ViT in plain NumPy, one step of its paper and of its published code after another.

In float64, with loops where these are plainer. Nothing of the package is imported.
"""

from __future__ import annotations

import math

import numpy as np

_ERF = np.vectorize(math.erf)


def cubic(x: float) -> float:
    """PyTorch's kernel of bicubic interpolation: Keys with a = -0.75."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def resized(grid: np.ndarray, rows: int, columns: int, offset: float) -> np.ndarray:
    """``[s, s, D]`` -> ``[rows, columns, D]``: scale factors (n + offset) / s, borders repeated."""
    side = len(grid)
    values = np.zeros((rows, columns, grid.shape[2]))
    for row in range(rows):
        for column in range(columns):
            y = (row + 0.5) * side / (rows + offset) - 0.5
            x = (column + 0.5) * side / (columns + offset) - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    share = cubic(y - i) * cubic(x - j)
                    at = min(max(i, 0), side - 1), min(max(j, 0), side - 1)
                    values[row, column] += share * grid[at]
    return values


def features(weights: dict[str, np.ndarray], image: np.ndarray, heads: int) -> np.ndarray:
    """The normalised class token ``[D]`` of an image ``[h, w, 3]``; positions resized as DINOv2."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    kernel = w["patch_embed.proj.weight"]
    width, _, patch, _ = kernel.shape
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    tokens = [w["cls_token"][0, 0]]
    for row in range(rows):
        for column in range(columns):
            part = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            seen = np.einsum("dchw,hwc->d", kernel, part)
            tokens.append(seen + w["patch_embed.proj.bias"])
    side = math.isqrt(w["pos_embed"].shape[1] - 1)
    positions = resized(w["pos_embed"][0, 1:].reshape(side, side, width), rows, columns, 0.1)
    x = np.stack(tokens)
    x = x + np.concatenate([w["pos_embed"][0, :1], positions.reshape(-1, width)])
    for block in range(1 + max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))):
        of = {n.split(".", 2)[2]: a for n, a in w.items() if n.startswith(f"blocks.{block}.")}
        y = _norm(x, of["norm1.weight"], of["norm1.bias"])
        qkv = y @ of["attn.qkv.weight"].T + of["attn.qkv.bias"]
        each = width // heads
        mixed = np.empty_like(x)
        for head in range(heads):
            q, k, v = (qkv[:, n * width + head * each :][:, :each] for n in range(3))
            scores = q @ k.T / math.sqrt(each)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, head * each : (head + 1) * each] = shares / shares.sum(1, keepdims=True) @ v
        x = x + of["ls1.gamma"] * (mixed @ of["attn.proj.weight"].T + of["attn.proj.bias"])
        y = _norm(x, of["norm2.weight"], of["norm2.bias"])
        y = y @ of["mlp.fc1.weight"].T + of["mlp.fc1.bias"]
        y = y * (1 + _ERF(y / math.sqrt(2))) / 2
        x = x + of["ls2.gamma"] * (y @ of["mlp.fc2.weight"].T + of["mlp.fc2.bias"])
    return _norm(x[0], w["norm.weight"], w["norm.bias"])


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weight + bias
