"""How many images a block of a run has: what is evaluated, written and resumed together."""

from __future__ import annotations

import dataclasses

from certmask_jax.inference.engine import Engine


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """What bounds a block.

    A block is what a run that is stopped loses. It has many chunks, so that few of them are ragged,
    and a test set has some blocks even if it is small, unless they would take but a moment. Of a
    large model it has fewer chunks, for some seconds of work on each device, but not so few images
    that the last chunks, which nothing more fills, are most of them.

    Attributes:
      chunks: a block has at most so many.
      cpu_flops, accelerator_flops: operations that keep one device busy for some seconds.
      least_images: a block has so many whatever they take, where there are.
      least_blocks: a test set is cut into so many at least, where each then takes a moment, or
        some seconds if that is but ``least_images``.
      fewest_blocks: and into so many whatever they take, so that it can be shared out.
      moment: as a share of the operations above.
      stretch: blocks are evaluated together up to this share of them. They share chunks, of which
        the last, which nothing more fills, are then fewer; whoever stops loses that much.
      chunks_together: and where nobody knows what operations they take, up to so many chunks of
        masked images; blocks of so few images would be evaluated one by one otherwise, and leave
        most of their last chunks empty.
      columns_decided: with early exit an image counts as this many masked images at most: of large
        tables most is left out, and the work of one image alone does not fill a chunk.
    """

    chunks: int = 256
    cpu_flops: float = 2e12
    accelerator_flops: float = 1e15
    least_images: int = 4
    least_blocks: int = 16
    fewest_blocks: int = 4
    moment: float = 1 / 20
    stretch: float = 3 / 20
    chunks_together: int = 32
    columns_decided: int = 2048

    def images_per_block(self, num_images: int, engine: Engine, *, decide: bool) -> int:
        """Images of one block of ``num_images``; ``decide``: with early exit."""
        num_columns = self._columns(engine, decide)
        most = [engine.images_at_once(), self.chunks * engine.masked_at_once() // num_columns]
        cut = -(-num_images // self.least_blocks)
        in_seconds = self.images_in_seconds(num_columns, engine)
        if in_seconds is not None:
            most.append(max(self.least_images, in_seconds))
            fewest = min(self.fewest_blocks, self.least_blocks)
            moment = self.images_in_a_moment(engine, decide=decide)
            some = max(moment, min(self.least_images, in_seconds))
            cut = max(cut, min(some, -(-num_images // fewest)))
        return max(1, min(cut, *most))

    def images_in_a_moment(self, engine: Engine, *, decide: bool) -> int:
        """How many images take the devices but a moment, at most; 0 where nobody knows."""
        return self._images_in(self.moment, engine, decide)

    def images_in_a_stretch(self, engine: Engine, *, decide: bool) -> int:
        """How many images of small blocks are evaluated together, at most."""
        num_columns = self._columns(engine, decide)
        if self.images_in_seconds(num_columns, engine) is None:
            return self.chunks_together * engine.masked_at_once() // num_columns
        return self._images_in(self.stretch, engine, decide)

    def is_short(self, images: int, engine: Engine, *, decide: bool) -> bool:
        """Whether so many images are known to take no longer than a stretch, which is seconds."""
        return images <= self._images_in(self.stretch, engine, decide)

    def images_together(self, images_per_block: int, engine: Engine, *, decide: bool) -> int:
        """Images of the blocks that are evaluated together: as many as a stretch may have.

        One block at least. It does not depend on how blocks are shared out, and so neither do the
        chunks that an image is packed into.
        """
        most = min(self.images_in_a_stretch(engine, decide=decide), engine.images_at_once())
        return images_per_block * max(1, most // images_per_block)

    def _images_in(self, share: float, engine: Engine, decide: bool) -> int:
        in_seconds = self.images_in_seconds(self._columns(engine, decide), engine)
        return 0 if in_seconds is None else int(share * in_seconds)

    def _columns(self, engine: Engine, decide: bool) -> int:
        """As how many masked images an image counts."""
        num_columns = len(engine.masked_images)
        return min(num_columns, self.columns_decided) if decide else num_columns

    def images_in_seconds(self, num_columns: int, engine: Engine) -> int | None:
        """How many images take the devices some seconds, about; None where nobody knows."""
        devices = engine.mesh.devices.flat
        each = self.cpu_flops if devices[0].platform == "cpu" else self.accelerator_flops
        flops = engine.flops_an_image(num_columns)
        return None if not flops else int(each * len(devices) / flops)
