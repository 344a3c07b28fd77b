"""What a run does once and what for every block."""

from __future__ import annotations

import json

import pytest
from small_runs import BLOCKS, SmallTestSet, contents, evaluate

from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.inference import chunk_sizes
from certmask_jax.masks import distinct_unions
from certmask_jax.tables import saved_table


@pytest.mark.parametrize("decide", [False, True])
def test_masked_images_are_told_apart_once_and_not_for_every_block(tmp_path, monkeypatch, decide):
    """Their places among the merged ones are carried: of many masks, finding them takes seconds."""
    painted, before, real = [], [], distinct_unions.distinct

    def noted(*given):
        painted.append(given)
        return real(*given)

    monkeypatch.setattr(distinct_unions, "distinct", noted)
    hooks = Hooks(stop=lambda: before.append(len(painted)))  # asked before each block
    evaluate(tmp_path, decide=decide, hooks=hooks)
    assert before == [1] * len(BLOCKS)
    assert len(painted) == 1


@pytest.mark.parametrize("typed", [16, None])
def test_a_run_of_an_older_version_goes_on_with_its_one_chunk_and_its_blocks(
    tmp_path, monkeypatch, typed
):
    """Versions before chunks had several sizes: the same bits, whether --chunk is given or not."""
    monkeypatch.setattr(chunk_sizes, "ladder", lambda chunk, **given: (chunk,))
    evaluate(tmp_path / "alone", chunk=16)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "run", SmallTestSet(stop_before=1), chunk=16)
    facts = json.loads((tmp_path / "run" / saved_table.ABOUT).read_text())["fingerprint"]
    assert "chunk_sizes" not in facts
    monkeypatch.setattr(chunk_sizes, "ladder", lambda chunk, **given: (chunk // 2, chunk))
    evaluate(tmp_path / "run", chunk=typed, block_sizes=BlockSizes(chunks=99, least_blocks=1))
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "alone").keys()
    for name, content in contents(tmp_path / "alone").items():
        if not name.startswith(saved_table.ABOUT):
            assert contents(tmp_path / "run")[name] == content, name
    with pytest.raises(FileExistsError, match="chunk"):
        evaluate(tmp_path / "run", chunk=24)
    new = evaluate(tmp_path / "new", chunk=16)
    assert new.about["fingerprint"]["chunk_sizes"] == [8, 16]
