"""Devices that run out of memory: the chunk is halved and the work done again."""

from __future__ import annotations

from collections.abc import Callable

import jax

from certmask_jax.inference.engine import Engine
from certmask_jax.tables.outputs import Outputs


def is_of_memory(error: Exception) -> bool:
    """Whether an error of JAX says that there is no memory, when it compiled or when it ran."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


class Guarded:
    """An engine that goes on with half the chunk when the devices run out of memory.

    Args:
      engine: the one to begin with.
      warn: told in a line when the chunk was halved.
    """

    def __init__(self, engine: Engine, warn: Callable[[str], None]) -> None:
        self._engine = engine
        self._warn = warn

    def run(self, work: Callable[[Engine], Outputs]) -> Outputs:
        """What ``work`` gives, done again with a smaller chunk where there is no memory for it."""
        return self.run_told(lambda engine, _: work(engine), lambda *counts: None)

    def run_told(
        self,
        work: Callable[[Engine, Callable[[int, int, int], None]], Outputs],
        tell: Callable[[int, int, int], None],
    ) -> Outputs:
        """Does work as ``run`` does that tells of masked images as it goes on.

        It tells how many are settled and evaluated, and the slots that these took. What was told of
        work that is done again is taken back, but for the slots, which were taken.
        """
        told = [0, 0]

        def advance(settled: int, evaluated: int, slots: int) -> None:
            told[0] += settled
            told[1] += evaluated
            tell(settled, evaluated, slots)

        while True:
            try:
                return work(self._engine, advance)
            except jax.errors.JaxRuntimeError as error:
                if not is_of_memory(error):
                    raise
                begun = self._engine.chunk
                self._engine = self._engine.halved()
            tell(-told[0], -told[1], 0)
            told = [0, 0]
            self._warn(
                f"the devices ran out of memory with {begun} masked images at once; going on with "
                f"{self._engine.chunk} (a smaller chunk can be chosen from the start)"
            )
