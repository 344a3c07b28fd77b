"""What a certification shows while it runs, and when it has to stop."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from certmask_jax.certification import verdicts
from certmask_jax.certification.report.labels import in_a_line
from certmask_jax.certification.run_hooks import Hooks, Step
from certmask_jax.defenses import Defense
from certmask_jax.programs.printing import width_of
from certmask_jax.tables.prediction_table import PredictionTable

_SHOWN = 3  # defenses
_RECENT = 60.0  # seconds, whose speed is what the time left is of
_BAR = 12  # the least columns that are worth a bar


class Progress:
    """A line with images decided, time left, speed and running accuracies; a context manager.

    In a terminal it is one line, cut to its width; elsewhere a line every ten seconds. The last one
    says what the table of the report says.

    Args:
      defenses: of the first few the accuracies are shown.
      margin_guard: as for the report: images with a smaller margin are not certified.
      deadline: in seconds of ``time.monotonic``; no block is begun that would end after it.
      quiet: show nothing.
      passes_each: forward passes that a masked image takes.
    """

    def __init__(
        self,
        defenses: Sequence[Defense],
        *,
        margin_guard: float = 0.0,
        deadline: float | None = None,
        quiet: bool = False,
        passes_each: int = 1,
    ) -> None:
        self.settled_now = 0
        self.passes_now = 0
        self.slots_now = 0  # places of chunks that the passes took, with those left empty
        self.stem_now = 0  # passes of a stem, and their places
        self.stem_slots_now = 0
        self.stopped = False
        self._defenses = list(defenses)[:_SHOWN]
        self._names = in_a_line(defenses)[:_SHOWN]
        self._margin_guard = margin_guard
        self._settled = 0  # masked images, in earlier sessions too
        self._total = 0
        self._width = 0  # masked images of an image, once known
        self._deadline = deadline
        self._images = 0
        self._right = np.zeros((len(self._defenses), 2), np.int64)  # clean, certified
        self._block_began: float | None = None
        self._longest = 0.0
        self._quiet = quiet
        self._passes_each = passes_each
        self._in_place = not quiet and sys.stderr.isatty()
        self._every = 0.5 if self._in_place else 10.0  # seconds; a log wants fewer lines
        self._began = self._shown_at = time.monotonic()
        self._recent = collections.deque([(self._began, 0)])  # when, and settled by then
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._total and not self._quiet:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def hooks(self) -> Hooks:
        """What the evaluation calls."""
        return Hooks(progress=self._advance, block=self._block, warn=self.warn, stop=self._stop)

    def warn(self, line: str) -> None:
        """Prints a line between those of the progress."""
        tqdm.write(f"warning: {line}", file=sys.stderr)

    def line(self, width: int | None = None) -> str:
        """Where the run is, in at most ``width`` columns (None: however many it takes).

        The time left is that of the masked images that are not settled, at the speed of the last
        minute. Accuracies are of the images decided, in percent: clean and certified.
        """
        done = f"{self._images:,}"
        if self._width:
            done += f"/{self._total // self._width:,}"
        percent = 100 * self._settled // max(self._total, 1)
        now = time.monotonic()
        passes = self.passes_now / max(now - self._began, 1e-9)
        elapsed, left = tqdm.format_interval(now - self._began), self._time_left()
        whose = "" if jax.process_count() == 1 else " of this process"
        begin = f"images{whose} {done} {percent}% {elapsed}<{left}, {passes:,.0f} passes/s"
        if self._had_nothing_to_do():  # a speed, a share and a time of nothing say nothing
            begin = f"images{whose} {done}, nothing was left to do"
        parts, padding = self._accuracies(), self._padding()
        for words, more in (("clean/certified ", padding), ("clean/certified ", ""), ("", "")):
            for count in range(len(parts), 0, -1):
                text = f"{begin}{more}, {words}{', '.join(parts[:count])}"
                if width is None or len(text) <= width:
                    return text
        return begin if width is None else begin[:width]

    def _advance(self, step: Step) -> None:
        now = time.monotonic()
        self._settled += step.settled
        self._total = step.total
        if step.is_new:
            self.settled_now += step.settled
            self.passes_now += self._passes_each * step.evaluated
            self.slots_now += self._passes_each * step.slots
            self.stem_now += step.stems
            self.stem_slots_now += step.stem_slots
            self._recent.append((now, self.settled_now))
            while len(self._recent) > 2 and self._recent[1][0] <= now - _RECENT:
                self._recent.popleft()
        if not self._quiet and now - self._shown_at >= self._every:
            self._show()

    def _block(self, table: PredictionTable, labels: NDArray[np.int32]) -> None:
        if self._block_began is not None:
            taken = time.monotonic() - self._block_began
            self._longest = max(self._longest, taken)
        if self._quiet:
            return
        self._images += len(labels)
        self._width = table.predictions.shape[1]
        for number, defense in enumerate(self._defenses):
            own = table.select(defense.masked_images)
            certified = defense.worst_case(own, labels)
            certified &= verdicts.passes_guard(own, self._margin_guard)
            self._right[number, 0] += int((defense.rule(own) == labels).sum())
            self._right[number, 1] += int(certified.sum())

    def _stop(self) -> bool:
        now = time.monotonic()
        self._block_began = now
        self.stopped = self._deadline is not None and now + self._longest > self._deadline
        return self.stopped

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if not self._in_place:
            print(self.line(), file=sys.stderr, flush=True)
            return
        columns = width_of(sys.stderr) - 1  # a full line would begin the next one
        line = self.line(columns)
        room = columns - len(line) > _BAR
        facts = {
            "desc": line,
            "bar_format": "{desc} |{bar}|" if room else "{desc}",
            "ncols": columns,
            "total": self._total,
        }
        if self._bar is None:
            if not self._had_nothing_to_do():
                said = "below: images decided, time taken<left, clean/certified accuracy in %"
                tqdm.write(said, file=sys.stderr)
            self._bar = tqdm(**facts, initial=self._settled, file=sys.stderr)
            return
        vars(self._bar).update(facts, n=self._settled)
        self._bar.refresh()

    def _had_nothing_to_do(self) -> bool:
        """Whether all of the run was there from earlier sessions."""
        return 0 < self._total <= self._settled and not self.settled_now

    def _padding(self) -> str:
        """The share of the places of chunks that were left empty, where any were taken."""
        if not self.slots_now:
            return ""
        empty = 1 - self.passes_now / max(self.slots_now, self.passes_now)
        return f" ({empty:.0%} padding)" if empty >= 0.01 else ""

    def _time_left(self) -> str:
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        if self._settled >= self._total:
            return tqdm.format_interval(0)
        if after <= before:
            return "?"
        return tqdm.format_interval(
            (self._total - self._settled) * (end - begin) / (after - before)
        )

    def _accuracies(self) -> list[str]:
        if not self._images:
            return []
        shares = 100 * (self._right / self._images)  # as the table has them, to the last bit
        return [
            f"{name} {clean:.1f}/{certified:.1f}"
            for name, (clean, certified) in zip(self._names, shares, strict=True)
        ]
