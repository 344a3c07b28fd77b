"""PatchCleanser's loop in PyTorch: as shipped, and tuned by hand. A program of its own.

    python -m certmask_jax.programs.measurements.pytorch_loops FILE LOOP

It imports neither JAX nor certmask_jax, so that its speed is what a PyTorch program has: another
history of the heap changes it by up to a factor of two. FILE (.npz) holds the weights of a CIFAR
ResNet, normalised images and masks; ``pytorch.py`` writes it.

Both loops mask with ``where`` and take the argmax, one mask after the other on a batch of images,
as the published program does; the tuned one folds the batch norms, uses channels-last memory and
inference mode. A third loop searches for a patch by signs of gradients, as one writes it plainly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

BATCHES = {"pytorch_as_shipped": 16, "pytorch_tuned": 64}
ATTACK = "pytorch_attack"


def loop(arrays: Mapping[str, Any], name: str) -> Callable[[], list[Any]]:
    """A loop over all masks: gives the labels ``int64[batch]`` under each.

    Args:
      arrays: ``images float32[B, 3, h, w]``, repeated up to the batch; ``hidden bool[V, 1, h, w]``;
        and the weights.
      name: of ``BATCHES``.
    """
    import torch

    batch, tuned = BATCHES[name], name == "pytorch_tuned"
    model = network(arrays)
    if tuned:
        fold(model)
        model = model.to(memory_format=torch.channels_last)
    images = torch.from_numpy(arrays["images"])
    images = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
    images = images.contiguous(
        memory_format=torch.channels_last if tuned else torch.contiguous_format
    )
    hidden = torch.from_numpy(arrays["hidden"])

    def run() -> list[Any]:
        with torch.inference_mode() if tuned else torch.no_grad():
            return [model(torch.where(mask, 0.0, images)).argmax(dim=1).numpy() for mask in hidden]

    return run


def attack(arrays: Mapping[str, Any]) -> Callable[[], Any]:
    """Steps of a search on each image: gives the patched images, ``float32[B, 3, h, w]``.

    Args:
      arrays: as of ``loop``; ``low, high, step float32[3, 1, 1]`` of a pixel, normalised; ``labels
        int64[B]``; ``patch``, ``masks_a_step`` and ``steps``.
    """
    import torch

    model = network(arrays).requires_grad_(False)
    images, hidden, labels, low, high, step = (
        torch.from_numpy(arrays[name])
        for name in ("images", "hidden", "labels", "low", "high", "step")
    )
    searches, many = len(images), int(min(arrays["masks_a_step"], len(hidden)))
    height, width = (int(side) for side in arrays["patch"])
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    random = torch.Generator().manual_seed(0)

    def run() -> Any:
        free = images.clone()
        for _ in range(int(arrays["steps"])):
            free = free.detach().requires_grad_(True)
            patched = torch.where(inside, free, images)
            chosen = torch.stack(
                [torch.randperm(len(hidden), generator=random)[:many] for _ in range(searches)]
            )
            masked = torch.where(hidden[chosen], 0.0, patched[:, None]).flatten(0, 1)
            logits = model(masked).unflatten(0, (searches, many))
            wanted = ((labels + 1) % logits.shape[2])[:, None, None].expand(-1, many, 1)
            named = logits.gather(2, wanted)
            best = logits.scatter(2, wanted, -torch.inf).amax(dim=2)
            loss = (best - named[..., 0]).mean(dim=1).sum()
            (slope,) = torch.autograd.grad(loss, free)
            free = torch.clamp(free.detach() - step * slope.sign(), low, high)
        return torch.where(inside, free, images)

    return run


def network(arrays: Mapping[str, Any]) -> Any:
    """A ``torch.nn.Module`` with these weights: He et al. (2016), 4.2, option-A shortcuts.

    ``arrays`` are Flax's, by names such as ``params/layer1_0/conv1/kernel``.
    """
    import torch

    nn, functional = torch.nn, torch.nn.functional
    params, statistics = _tree(arrays, "params"), _tree(arrays, "batch_stats")

    def conv(kernel: Any, stride: int) -> Any:
        array = np.ascontiguousarray(np.asarray(kernel).transpose(3, 2, 0, 1))
        layer = nn.Conv2d(array.shape[1], array.shape[0], 3, stride, padding=1, bias=False)
        layer.weight.data = torch.from_numpy(array)
        return layer

    def norm(values: Any, running: Any) -> Any:
        layer = nn.BatchNorm2d(len(values["scale"]))
        layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var = (
            torch.from_numpy(np.array(a))
            for a in (values["scale"], values["bias"], running["mean"], running["var"])
        )
        return layer

    class Block(nn.Module):
        def __init__(self, name: str, stride: int) -> None:
            super().__init__()
            own, running = params[name], statistics[name]
            self.conv1 = conv(own["conv1"]["kernel"], stride)
            self.conv2 = conv(own["conv2"]["kernel"], 1)
            self.bn1, self.bn2 = norm(own["bn1"], running["bn1"]), norm(own["bn2"], running["bn2"])
            self.stride = stride
            self.grown = self.conv1.out_channels - self.conv1.in_channels

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.grown or self.stride > 1:
                x = x[:, :, :: self.stride, :: self.stride]
                x = functional.pad(x, (0, 0, 0, 0, self.grown // 2, self.grown - self.grown // 2))
            return functional.relu(x + y)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = conv(params["conv1"]["kernel"], 1)
            self.bn1 = norm(params["bn1"], statistics["bn1"])
            names = sorted(name for name in params if name.startswith("layer"))
            self.blocks = nn.ModuleList(
                Block(name, 2 if name.endswith("_0") and name[5] != "1" else 1) for name in names
            )
            head = params["linear"]
            self.linear = nn.Linear(*np.shape(head["kernel"]))
            self.linear.weight.data = torch.from_numpy(np.array(head["kernel"]).T.copy())
            self.linear.bias.data = torch.from_numpy(np.array(head["bias"]))

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.bn1(self.conv1(x)))
            for block in self.blocks:
                x = block(x)
            return self.linear(x.mean(dim=(2, 3)))

    return Network().eval()


def fold(model: Any) -> None:
    """Folds every batch norm into the convolution before it."""
    import torch

    fuse = torch.nn.utils.fusion.fuse_conv_bn_eval
    for module in [model, *model.blocks]:
        for number in ("1", "2"):
            if hasattr(module, f"conv{number}"):
                fused = fuse(getattr(module, f"conv{number}"), getattr(module, f"bn{number}"))
                setattr(module, f"conv{number}", fused)
                setattr(module, f"bn{number}", torch.nn.Identity())


def _tree(arrays: Mapping[str, Any], root: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        first, *path = name.split("/")
        if first == root:
            inner = tree
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = array
    return tree


def main() -> None:
    """Prints the seconds of a loop, after one that is not counted."""
    file, name = sys.argv[1:]
    with np.load(file) as arrays:
        run = attack(dict(arrays)) if name == ATTACK else loop(dict(arrays), name)
    run()
    started = time.perf_counter()
    run()
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
