"""Small blocks are evaluated together: the same bits, however they are cut up."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import BLOCKS, COUNT, DEFENSE, PARAMS, SmallTestSet, contents, linear

from certmask_jax.certification import evaluation
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.inference.chunk_flight import ChunkFlight
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables import merging, saved_table
from certmask_jax.tables.table_writer import TableWriter

STRETCHES = [(0, 6), (6, 10)]  # two blocks each
WIDTH = 11


class TwoBlocks(BlockSizes):
    """Three images in a block, of which two are evaluated together."""

    def images_in_a_stretch(self, engine, *, decide):
        return 8  # not quite three blocks


def swayed(params, x):
    """Says something else of an image beside other images of its chunk."""
    return linear(params, x) + jnp.outer(jnp.sin(1e3 * x.mean()) + x[:, 0, 0, 0], params[0])


def run(folder, test_set=None, *, sizes=TwoBlocks, model=swayed, **options):
    return evaluation.evaluate(
        SmallTestSet() if test_set is None else test_set, model, PARAMS, [DEFENSE], folder,
        preprocessing=Preprocessing(), chunk=8, block_sizes=sizes(chunks=5, least_blocks=1),
        **options,
    )  # fmt: skip


def single_blocks(**how):
    return BlockSizes(stretch=0, **how)


def bits(folder):
    files = contents(folder)
    return files, json.loads(files.pop(saved_table.ABOUT))["fingerprint"]


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "decide"])
def alone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "t"
    test_set = SmallTestSet()
    run(folder, test_set, decide=request.param)
    assert test_set.blocks == STRETCHES
    return request.param, folder


def test_the_model_sways_with_its_chunk(alone, tmp_path):
    """Else these tests would show nothing: each block by itself has other numbers."""
    decide, folder = alone
    apart = SmallTestSet()
    run(tmp_path / "t", apart, sizes=single_blocks, decide=decide)
    assert apart.blocks == BLOCKS
    (there, facts), (other, same_facts) = bits(folder), bits(tmp_path / "t")
    assert there.keys() == other.keys()
    assert there != other
    assert facts == {**same_facts, "images_together": 6}


@pytest.mark.parametrize(
    ("first", "then"), [(TwoBlocks, single_blocks), (single_blocks, TwoBlocks)]
)
def test_a_run_goes_on_with_the_stretches_that_it_was_begun_with(tmp_path, first, then):
    """Today others may be chosen, as of a run of an older version, which had none."""
    run(tmp_path / "alone", sizes=first)
    run(tmp_path / "t", sizes=first, share=(0, 2))
    run(tmp_path / "t", sizes=then)
    assert bits(tmp_path / "t") == bits(tmp_path / "alone")


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_shares_are_the_table_of_one_run_to_the_bit(alone, tmp_path, parts):
    decide, folder = alone
    shares = [tmp_path / f"share {i}" for i in range(parts)]
    for i, share in enumerate(shares):
        assert run(share, decide=decide, share=(i, parts)) is None
        own = sum(stop - start for start, stop in BLOCKS[i::parts])
        assert saved_table.images_done(share) == (own, COUNT)
    merging.merge(shares, tmp_path / "merged")
    assert bits(tmp_path / "merged") == bits(folder)


@pytest.mark.parametrize("written", range(len(BLOCKS)))
def test_a_run_that_ends_between_two_blocks_goes_on_to_the_same_bits(
    alone, tmp_path, monkeypatch, written
):
    decide, folder = alone
    real, numbers = TableWriter.write, []

    def write(writer, number, block):
        if len(numbers) == written:
            raise KeyboardInterrupt
        numbers.append(number)
        real(writer, number, block)

    monkeypatch.setattr(TableWriter, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t", decide=decide)
    monkeypatch.setattr(TableWriter, "write", real)
    rest, steps, told = SmallTestSet(), [], []
    run(
        tmp_path / "t", rest, decide=decide,
        hooks=Hooks(progress=steps.append, block=lambda table, labels: told.extend(labels)),
    )  # fmt: skip
    assert rest.blocks == STRETCHES[written // 2 :]  # of one that lacks a block, all
    assert bits(tmp_path / "t") == bits(folder)
    assert {s.total for s in steps} == {COUNT * WIDTH}
    assert sum(s.settled for s in steps) == COUNT * WIDTH
    assert sorted(told) == sorted(rest.labels)  # each image once


def test_what_a_share_is_told(tmp_path):
    """It evaluates both stretches for two blocks, and finds them done the next time."""
    steps, told = [], []
    hooks = Hooks(progress=steps.append, block=lambda table, labels: told.append(len(labels)))
    for is_new in (True, False):
        run(tmp_path / "t", share=(1, 2), hooks=hooks)
        assert {s.total for s in steps} == {COUNT * WIDTH}
        assert sum(s.settled for s in steps) == COUNT * WIDTH
        assert {s.is_new for s in steps} == {is_new}
        assert told == [3, 1]
        steps.clear()
        told.clear()


def test_a_moment_is_its_own_trial(tmp_path, monkeypatch):
    """No pass is made twice: all items that are sent are told."""
    sent, steps, real = [], [], ChunkFlight.send

    def send(flight, image_of, columns):
        sent.append(len(columns))
        return real(flight, image_of, columns)

    monkeypatch.setattr(ChunkFlight, "send", send)
    run(tmp_path / "t", model=linear, hooks=Hooks(progress=steps.append))
    assert sum(sent) == sum(s.evaluated for s in steps) == COUNT * WIDTH


@pytest.mark.parametrize("decide", [False, True])
def test_a_moment_without_finite_logits_leaves_nothing(tmp_path, decide):
    def silent(params, x):
        return linear(params, x) * np.nan

    with pytest.raises(ValueError, match="expected finite logits"):
        run(tmp_path / "t", model=silent, decide=decide)
    assert not (tmp_path / "t").exists()
