"""What a run does once and what for every block."""

from __future__ import annotations

import pytest
from small_runs import BLOCKS, evaluate

from certmask_jax.certification.evaluation import Hooks
from certmask_jax.masks import distinct_unions


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
