"""The same model in PyTorch, as PatchCleanser's program runs it and tuned by hand.

Only CIFAR ResNets, and where torch is installed. The loops mask with ``where`` and take the argmax,
one mask after the other on a batch of images, as the published program does; the tuned one folds
the batch norms, uses channels-last memory and inference mode.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax.masked_images import MaskedImages
from certmask_jax.preprocessing import hidden_pixels
from experiments.measurements.subjects import Subject

_ITEMS = 8192  # masked images of one call: some seconds
_BATCHES = {"pytorch_as_shipped": 16, "pytorch_tuned": 64}


def counts(subject: Subject, masks: MaskedImages) -> dict[str, int]:
    """Loop -> how many masked images it evaluates; none where torch or a model of it is missing."""
    variables = subject.params
    if not isinstance(variables, dict) or "layer1_0" not in variables.get("params", {}):
        return {}
    if importlib.util.find_spec("torch") is None:
        return {}
    return {name: batch * min(len(masks), _ITEMS // batch) for name, batch in _BATCHES.items()}


def seconds(subject: Subject, name: str) -> float:
    """What a loop takes, after one that is not counted."""
    count = min(max(_BATCHES.values()), len(subject.test_set))
    images = subject.test_set.read(0, count).images
    loop = loops(subject, images, subject.defenses[0].masked_images)[name]
    loop()
    started = time.perf_counter()
    loop()
    return time.perf_counter() - started


def loops(
    subject: Subject, images: NDArray[np.uint8], masks: MaskedImages
) -> dict[str, Callable[[], None]]:
    """The loops of :func:`counts`."""
    import torch

    variables = subject.params
    shipped, tuned = _network(torch, variables), _network(torch, variables)
    _fold(torch, tuned)
    tuned = tuned.to(memory_format=torch.channels_last)
    pixels = _normalised(torch, subject, images)

    def run(network: Any, batch: int, layout: Any, context: Any) -> Callable[[], None]:
        some = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
        some = some.contiguous(memory_format=layout)
        hidden = torch.from_numpy(_hidden(masks, _ITEMS // batch))

        def loop() -> None:
            with context():
                for mask in hidden:
                    network(torch.where(mask, 0.0, some)).argmax(dim=1).numpy()

        return loop

    contexts = (torch.no_grad, torch.inference_mode)
    layouts = (torch.contiguous_format, torch.channels_last)
    return {
        name: run(network, batch, layout, context)
        for (name, batch), network, layout, context in zip(
            _BATCHES.items(), (shipped, tuned), layouts, contexts, strict=True
        )
    }


def labels(
    subject: Subject, images: NDArray[np.uint8], masks: MaskedImages, *, tuned: bool
) -> NDArray[np.int64]:
    """``int64[B, V]``: what the PyTorch model says of all masked images; to check that it is it."""
    import torch

    network = _network(torch, subject.params)
    if tuned:
        _fold(torch, network)
    pixels = _normalised(torch, subject, images)
    hidden = torch.from_numpy(_hidden(masks, len(masks)))
    with torch.inference_mode():
        found = [network(torch.where(mask, 0.0, pixels)).argmax(1) for mask in hidden]
    return np.asarray(torch.stack(found, dim=1).numpy())


def _hidden(masks: MaskedImages, count: int) -> NDArray[np.bool_]:
    """``bool[V, 1, h, w]``: the pixels that masks hide, of some masks from all over."""
    chosen = np.linspace(0, len(masks) - 1, min(count, len(masks))).astype(int)
    found = [hidden_pixels(jnp.asarray(masks.boxes[i]), masks.image_size) for i in chosen]
    return np.stack([np.asarray(hidden) for hidden in found])[:, None]


def _normalised(torch: Any, subject: Subject, images: NDArray[np.uint8]) -> Any:
    mean, std = (
        np.asarray(v, np.float32) for v in (subject.preprocessing.mean, subject.preprocessing.std)
    )
    pixels = (images.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _network(torch: Any, variables: dict[str, Any]) -> Any:
    """A ``torch.nn.Module`` with these weights: He et al. (2016), 4.2, option-A shortcuts."""
    nn, functional = torch.nn, torch.nn.functional
    params, statistics = variables["params"], variables["batch_stats"]

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

    class Block(nn.Module):  # type: ignore[misc, name-defined]
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

    class Network(nn.Module):  # type: ignore[misc, name-defined]
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


def _fold(torch: Any, network: Any) -> None:
    """Folds every batch norm into the convolution before it."""
    fuse = torch.nn.utils.fusion.fuse_conv_bn_eval
    for module in [network, *network.blocks]:
        for number in ("1", "2"):
            if hasattr(module, f"conv{number}"):
                fused = fuse(getattr(module, f"conv{number}"), getattr(module, f"bn{number}"))
                setattr(module, f"conv{number}", fused)
                setattr(module, f"bn{number}", torch.nn.Identity())
