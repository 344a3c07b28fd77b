"""BagNet in torch as bag-of-local-features-models lays it out: the oracle of ours (timm has none).

``python tests/bagnet_oracle.py`` (extra: parity) remakes ``fixtures/bagnet.npz``: what it answers
to weights and an image that are functions of a seed, so that the tests need no torch.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).parents[1] / "fixtures" / "bagnet.npz"
SIDE, CLASSES = 65, 10
# Field -> whether each stage begins with a 3 x 3 convolution.
IS_WIDE = {9: (1, 1, 0, 0), 17: (1, 1, 1, 0), 33: (1, 1, 1, 1)}


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and variance 1 that depend on a name only, float32.

    From the bit stream itself, which NumPy promises never to change.
    """
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    numbers = (np.asarray(bits, np.float64) / 2.0**64 - 0.5) * np.sqrt(12)
    return numbers.astype(np.float32).reshape(shape)


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Every parameter random, also those that start from zero or one: torch name -> float32."""
    arrays = {}
    for name, shape in shapes.items():
        noise, leaf = uniform(name, shape), name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            continue
        if leaf == "weight" and len(shape) > 1:
            arrays[name] = noise / np.float32(np.sqrt(np.prod(shape[1:])))
        elif leaf in ("weight", "alpha", "running_var"):
            arrays[name] = 1 + np.float32(0.2) * noise
        elif leaf in ("ls1", "ls2"):
            arrays[name] = np.float32(0.4) + np.float32(0.1) * noise
        else:
            arrays[name] = np.float32(0.3) * noise
    return arrays


def image() -> np.ndarray:
    """``float32[1, SIDE, SIDE, 3]``."""
    return uniform("image", (1, SIDE, SIDE, 3))


def torch_bagnet(field: int, *, num_classes: int = CLASSES) -> Any:
    """A torch module; ``module(images NCHW)`` -> local logits ``[B, Fh, Fw, K]``."""
    import torch
    from torch import nn

    class Unit(nn.Module):
        def __init__(self, before: int, planes: int, kernel: int, stride: int) -> None:
            super().__init__()
            after = 4 * planes
            self.conv1 = nn.Conv2d(before, planes, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, kernel, stride, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
            self.conv3 = nn.Conv2d(planes, after, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(after)
            if stride > 1 or before != after:
                project = nn.Conv2d(before, after, 1, stride, bias=False)
                self.downsample = nn.Sequential(project, nn.BatchNorm2d(after))
            else:
                self.downsample = nn.Identity()

        def forward(self, x: Any) -> Any:
            y = self.bn1(self.conv1(x)).clamp(min=0)
            y = self.bn2(self.conv2(y)).clamp(min=0)
            y = self.bn3(self.conv3(y))
            kept = self.downsample(x)
            lost = kept.shape[3] - y.shape[3]  # the last rows and columns go
            return (y + kept[:, :, : kept.shape[2] - lost, : kept.shape[3] - lost]).clamp(min=0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
            self.conv2 = nn.Conv2d(64, 64, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            before = 64
            sizes = zip((3, 4, 6, 3), (2, 2, 2, 1), IS_WIDE[field], strict=True)
            for stage, (count, stride, is_wide) in enumerate(sizes):
                planes, units = 64 << stage, []
                for number in range(count):
                    first = number == 0
                    kernel = 3 if first and is_wide else 1
                    units.append(Unit(before, planes, kernel, stride if first else 1))
                    before = 4 * planes
                setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
            self.fc = nn.Linear(before, num_classes)

        def forward(self, x: Any) -> Any:
            x = self.bn1(self.conv2(self.conv1(x))).clamp(min=0)
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(x)
            return self.fc(x.permute(0, 2, 3, 1))

    with torch.no_grad():
        return Net().eval()


def torch_local_logits(field: int) -> np.ndarray:
    """What the torch BagNet answers to the random weights and the image: ``[1, Fh, Fw, K]``."""
    import torch

    net = torch_bagnet(field)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    arrays = {n: torch.from_numpy(a) for n, a in random_weights(shapes).items()}
    net.load_state_dict(arrays, strict=False)
    with torch.no_grad():
        return net(torch.from_numpy(image()).permute(0, 3, 1, 2)).numpy()


def stored() -> dict[str, np.ndarray]:
    """The fixture: ``bagnet17``, ... -> local logits ``float32[1, Fh, Fw, K]``."""
    with np.load(FIXTURE) as file:
        return {name: file[name] for name in file.files}


if __name__ == "__main__":
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **{f"bagnet{f}": torch_local_logits(f) for f in IS_WIDE})
