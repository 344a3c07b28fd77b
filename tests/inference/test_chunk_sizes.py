"""Which sizes chunks come in, and which of them is taken: pure functions, by hand-made numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from certmask_jax.inference import chunk_sizes, model_function

RESNET_20, VIT_TINY, VIT_BASE = 8.2e7, 2.5e9, 3.5e10  # operations of an image


@pytest.mark.parametrize(
    ("platform", "flops", "expected"),
    [
        ("cpu", None, 64),
        ("cpu", 1e6, 64),
        ("cpu", RESNET_20, 64),
        ("cpu", VIT_TINY, 8),  # 2e10 operations
        ("cpu", VIT_BASE, 1),  # more than half a second, but there is no less
        ("gpu", VIT_BASE, 512),
        ("tpu", None, 512),
        ("tpu", RESNET_20, 512),
        ("tpu", VIT_BASE, 32),
    ],
)
def test_the_largest_chunk_takes_half_a_second_of_a_core(platform, flops, expected):
    assert chunk_sizes.default_items(platform, flops) == expected


@pytest.mark.parametrize(
    ("chunk", "devices", "platform", "flops", "expected"),
    [
        (128, 2, "cpu", None, (128,)),
        (128, 2, "cpu", 1e6, (128,)),  # a moment's work: no other program is worth compiling
        (128, 2, "cpu", RESNET_20, (8, 32, 128)),
        (16, 2, "cpu", VIT_TINY, (2, 4, 16)),
        (2, 2, "cpu", VIT_BASE, (2,)),
        (100, 2, "cpu", VIT_TINY, (2, 6, 24, 100)),
        (512, 1, "gpu", VIT_BASE, (128, 512)),
        (512, 8, "gpu", VIT_BASE, (512,)),
    ],
)
def test_smaller_chunks_are_worth_their_compilation(chunk, devices, platform, flops, expected):
    sizes = chunk_sizes.ladder(chunk, devices=devices, platform=platform, flops=flops)
    assert sizes == expected
    assert all(size % devices == 0 for size in sizes)


@pytest.mark.parametrize(
    ("devices", "platform", "flops", "items", "expected"),
    [
        (1, "gpu", 0.8e9, 629_000, (128, 512)),  # EfficientNet-Lite0 on 1,000 photographs
        (1, "gpu", 0.8e9, 12 * 629, (512,)),  # on a dozen it ends before a program is compiled
        (1, "gpu", 0.8e9, 0, (512,)),
        (8, "gpu", 0.8e9, 629_000, (512,)),
        (2, "tpu", 0.8e9, 629_000, (128, 512)),
        (1, "gpu", VIT_BASE, 10**6, (128, 512)),  # as it has already
        (1, "gpu", None, 10**9, (512,)),
        (2, "cpu", 1e6, 10**12, (512,)),
    ],
)
def test_long_work_that_is_asked_for_bit_by_bit_has_a_smaller_chunk(
    devices, platform, flops, items, expected
):
    sizes = chunk_sizes.ladder(
        512, devices=devices, platform=platform, flops=flops, asked_bit_by_bit=items
    )
    assert sizes == expected


@pytest.mark.parametrize("sizes", [(1,), (2, 8), (8, 32, 128), (3, 10, 11, 50), (7, 64)])
def test_what_waits_goes_into_chunks_with_little_room_left(sizes):
    """All of any number is taken, in an eighth more slots at most than the fewest that hold it."""
    fewest = [0] + [4 * sizes[-1]] * (4 * sizes[-1])
    for waiting in range(1, len(fewest)):
        fewest[waiting] = min(size + fewest[max(0, waiting - size)] for size in sizes)
    for waiting in range(1, 4 * sizes[-1]):
        left, taken = waiting, []
        while left:
            count = chunk_sizes.next_items(left, sizes)
            size = chunk_sizes.slots(count, sizes)
            assert 0 < count <= min(left, size)
            assert size in sizes
            assert count in (size, left)
            if left >= sizes[-1]:
                assert count == sizes[-1]
            taken.append(size)
            left -= count
        assert (np.diff(taken) <= 0).all()  # the larger ones first
        nested = all(size % sizes[0] == 0 for size in sizes)  # else full chunks may not be fewest
        assert sum(taken) <= 9 / 8 * (fewest[waiting] if nested else waiting + sizes[0])


def test_by_hand():
    sizes = (8, 32, 128)
    assert chunk_sizes.next_items(300, sizes) == 128
    assert chunk_sizes.next_items(114, sizes) == 114  # 128 slots and not 3 x 32 + 3 x 8 = 120
    assert chunk_sizes.next_items(104, sizes) == 32  # 104 slots and not 128
    assert chunk_sizes.next_items(31, sizes) == 31
    assert chunk_sizes.next_items(25, sizes) == 25  # 32 slots in one chunk and not in four
    assert chunk_sizes.next_items(24, sizes) == 8
    assert chunk_sizes.next_items(400, (128, 512)) == 400  # as many slots in four chunks
    assert chunk_sizes.next_items(9, sizes) == 8
    assert chunk_sizes.next_items(3, sizes) == 3
    assert [chunk_sizes.slots(n, sizes) for n in (1, 8, 9, 32, 33, 128, 500)] == [
        8, 8, 32, 32, 128, 128, 128,
    ]  # fmt: skip
    assert chunk_sizes.with_size(sizes, 16) == (8, 16, 32, 128)
    assert chunk_sizes.with_size(sizes, 128) == chunk_sizes.with_size(sizes, 999) == sizes


def test_operations_are_counted_for_a_cpu_where_the_device_does_not_count(monkeypatch):
    count = model_function._counted

    def silent(*args):  # as the compilers for GPUs are
        return None if jax.config.jax_default_device is None else count(*args)

    def linear(params, images):
        return images.reshape(len(images), -1) @ params

    monkeypatch.setattr(model_function, "_counted", silent)
    params = np.ones((48, 10), np.float32)
    assert model_function.flops(linear, params, (4, 4, 3)) == 2 * 48 * 10


def test_a_model_is_asked_for_its_classes_once():
    """Tracing takes milliseconds, a good part of a run of four images."""
    traced = []

    def linear(params, images):
        traced.append(images.shape)
        return images.reshape(len(images), -1) @ params

    for weights in (np.ones((48, 10), np.float32), np.zeros((48, 10), np.float32)):
        assert model_function.num_classes(linear, weights, (4, 4, 3)) == 10
    assert traced == [(2, 4, 4, 3)]
    assert model_function.num_classes(linear, np.ones((48, 7), np.float32), (4, 4, 3)) == 7
    with pytest.raises(ValueError, match=r"TypeError: .* do the images have the channels"):
        model_function.num_classes(linear, "weights", (4, 4, 3))
