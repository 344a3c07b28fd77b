"""What a certification shows while it runs, and when it has to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from certmask_jax.defenses import Defense
from certmask_jax.evaluation import Hooks, Step
from certmask_jax.prediction_table import PredictionTable

_SHOWN = 3  # defenses


class Progress:
    """A line with speed, time left, images decided and running accuracies; a context manager.

    Args:
      defenses: whose accuracies are shown.
      deadline: in seconds of ``time.monotonic``; no block is begun that would end after it.
      quiet: show nothing.
    """

    def __init__(
        self,
        defenses: Sequence[Defense],
        *,
        deadline: float | None = None,
        quiet: bool = False,
    ) -> None:
        self.settled_now = 0
        self.passes_now = 0
        self.stopped = False
        self._defenses = list(defenses)[:_SHOWN]
        self._total = 0  # masked images
        self._width = 1  # of them an image
        self._deadline = deadline
        self._images = 0
        self._right = np.zeros((len(self._defenses), 2), np.int64)  # clean, certified
        self._block_began: float | None = None
        self._longest = 0.0
        every = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log wants fewer lines
        self._began = time.monotonic()
        self._bar: Any = tqdm(
            unit="image", unit_scale=True, desc="masked images", mininterval=every, disable=quiet
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def hooks(self) -> Hooks:
        """What the evaluation calls."""
        return Hooks(progress=self._advance, block=self._block, warn=self.warn, stop=self._stop)

    def warn(self, line: str) -> None:
        """Prints a line between those of the progress."""
        self._bar.write(f"warning: {line}", file=sys.stderr)

    def _advance(self, step: Step) -> None:
        if step.is_new:
            self.settled_now += step.settled
            self.passes_now += step.evaluated
        if self._bar.disable:  # it has none of what follows
            return
        self._bar.total = self._total = step.total
        if step.is_new:
            self._bar.set_postfix_str(self._says(), refresh=False)
            self._bar.update(step.settled)
        else:  # counted, but not as speed: the time left is that of what is computed
            self._bar.n += step.settled
            self._bar.initial += step.settled
            self._bar.last_print_n += step.settled

    def _block(self, table: PredictionTable, labels: NDArray[np.int32]) -> None:
        if self._block_began is not None:
            taken = time.monotonic() - self._block_began
            self._longest = max(self._longest, taken)
        self._images += len(labels)
        self._width = table.predictions.shape[1]
        for number, defense in enumerate(self._defenses):
            self._right[number, 0] += int((defense.rule(table) == labels).sum())
            self._right[number, 1] += int(defense.worst_case(table, labels).sum())

    def _stop(self) -> bool:
        now = time.monotonic()
        self._block_began = now
        self.stopped = self._deadline is not None and now + self._longest > self._deadline
        return self.stopped

    def _says(self) -> str:
        passes = self.passes_now / max(time.monotonic() - self._began, 1e-9)
        parts = [f"{passes:,.0f} passes/s"]
        if self._images:
            parts.append(f"{self._images} of {self._total // self._width} images decided")
            shares = 100 * self._right / self._images
            parts += [
                f"{defense.name} clean {clean:.1f} certified {certified:.1f}"
                for defense, (clean, certified) in zip(self._defenses, shares, strict=True)
            ]
        return ", ".join(parts)
