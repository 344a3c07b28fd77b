"""Devices that run out of memory: the chunk is halved and the work done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import jax

from certmask_jax.inference.field_tables import AnyForward
from certmask_jax.tables.outputs import Outputs

_Forward = TypeVar("_Forward", bound=AnyForward)


class Guarded(Generic[_Forward]):
    """A forward pass that goes on with half the chunk when the devices run out of memory."""

    def __init__(self, forward: _Forward, warn: Callable[[str], None]) -> None:
        self._forward = forward
        self._warn = warn

    def run(self, work: Callable[[_Forward], Outputs]) -> Outputs:
        """What ``work`` gives, done again with a smaller chunk where there is no memory for it."""
        return self.run_told(lambda forward, _: work(forward), lambda settled, evaluated: None)

    def run_told(
        self,
        work: Callable[[_Forward, Callable[[int, int], None]], Outputs],
        tell: Callable[[int, int], None],
    ) -> Outputs:
        """The same for work that tells of (settled, evaluated) masked images as it goes on.

        What was told of work that is done again is taken back.
        """
        told = [0, 0]

        def advance(settled: int, evaluated: int) -> None:
            told[0] += settled
            told[1] += evaluated
            tell(settled, evaluated)

        while True:
            try:
                return work(self._forward, advance)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                begun = self._forward.chunk
                self._forward = self._forward.halved()  # type: ignore[assignment]  # of its own kind
            tell(-told[0], -told[1])
            told = [0, 0]
            self._warn(
                f"the devices ran out of memory with {begun} masked images at once; going on with "
                f"{self._forward.chunk} (--chunk chooses from the start)"
            )
