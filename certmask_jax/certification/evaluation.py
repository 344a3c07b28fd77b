"""The long part: a model on the masked images of a test set, onto the disk, block by block.

It may be stopped at any moment, killed too, and goes on from the last whole block. The blocks can
be shared out: among jobs (``share``), and among the processes of ``jax.distributed``. Nobody waits
for anybody meanwhile: each process feeds its own devices, as what early exit evaluates next depends
on what it found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.block_work import BlockWork
from certmask_jax.certification.finished_blocks import says_left_out, still_of_use
from certmask_jax.certification.opened_run import OpenedRun, open_run
from certmask_jax.certification.reading_ahead import ahead
from certmask_jax.certification.run_facts import facts_of_run, provenance_of_run
from certmask_jax.defenses.defense import Defense
from certmask_jax.files import processes, storage
from certmask_jax.inference import early_exit
from certmask_jax.inference.cell_fields import MIXES
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.image_sets import TestSet
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable
from certmask_jax.tables.table_writer import TableWriter


class Step(NamedTuple):
    """What was done since the last call of ``progress``, in masked images."""

    settled: int  # evaluated, or found needless
    evaluated: int
    slots: int  # of chunks, which hold those evaluated and what was left empty
    total: int  # all that this call of ``evaluate`` is about
    is_new: bool  # whether it was done now, or in an earlier session
    stems: int = 0  # passes of a stem that were made beside these
    stem_slots: int = 0  # and with those left empty


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a program wants to hear of, and when it wants to stop.

    Attributes:
      progress: called some times a second or more.
      block: called with the images of each block that count, from the disk or new: a table, and
        labels ``int32[b]``.
      warn: told in a line of what happened to damaged blocks, or to the chunk.
      stop: asked before each block; true ends the evaluation there.
    """

    progress: Callable[[Step], None] = lambda step: None
    block: Callable[[PredictionTable, NDArray[np.int32]], None] = lambda table, labels: None
    warn: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False


def evaluate(
    test_set: TestSet,
    apply_fn: ApplyFn,
    params: Any,
    defenses: Sequence[Defense],
    folder: str | storage.AnyPath,
    *,
    preprocessing: Preprocessing,
    decide: bool = False,
    local: LocalLogits | None = None,
    dropping: TokenDropping | None = None,
    share: tuple[int, int] = (0, 1),
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    unreadable: Mapping[str, str] | None = None,
    skip_unreadable: bool = False,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    block_sizes: BlockSizes | None = None,
    hooks: Hooks | None = None,
) -> saved_table.SavedTable | None:
    """Runs the model on every masked image that some defense asks for, once, onto the disk.

    It may be stopped at any moment, killed too: called again it goes on from the last whole block
    and ends in the same table. Of several processes (``jax.distributed``) each evaluates its part
    of the blocks, on its own devices; all have to see ``folder``.

    Args:
      test_set: T images of one size, T >= 1.
      apply_fn, params, preprocessing, chunk, mesh: see ``predict``. A model in two parts is looked
        at before any work, see ``Engine.checked_cells``.
      defenses: their masked images are merged; equal ones are evaluated once.
      folder: where the table goes; local or in a bucket (``any_path``).
        One of the same fingerprint that it holds is resumed, after its checksums were
        verified.
      decide: evaluate of each image only what can still change an answer or a verdict of these
        defenses (``early_exit``); the verdicts are those of the whole table.
      local: the model's local logits, if it has any: all masked images from their distinct fields
        (``local_forward``), where that is less work than ``decide`` would leave.
      dropping: how a ViT drops tokens, if it is to be given those alone that a mask leaves
        (``dropped_forward``).
      share: ``(i, n)``: only every n-th block, from block i on. Tables of the n shares make up one
        (``merging``).
      identity: JSON-able facts that decide the numbers and that only the caller knows (data set,
        model); in the fingerprint. With ``weights_sha256``, ``params`` is not hashed again.
      provenance: JSON-able facts about the run, kept with the table.
      unreadable: id of an image -> why it cannot be read, where that is known before (of a test
        set with a listing); such images are left out, named, and count nowhere.
      skip_unreadable: leave those out too that turn out not to be readable.
      block_sizes: how many images are evaluated, written and resumed together.
      hooks: see ``Hooks``.

    Returns:
      The whole table; None where blocks are missing, which are others' share, or were not begun.

    Raises:
      ValueError: for an empty test set, images of another size than the masks, labels outside the
        model's classes, or logits of the first images that are all NaN or infinite; before any
        long work where that can be known before; for a table of another format.
      UnreadableImage: for an image that cannot be read, unless they are skipped; what was finished
        before stays. (An image that is gone since the run began is left out.)
      FileExistsError: for a folder that holds other files, or another run: names what differs.
      OSError: for a disk without room, or one that cannot be written to; for a bucket that does
        not answer, or refuses.
    """
    hooks = Hooks() if hooks is None else hooks
    sizes = BlockSizes() if block_sizes is None else block_sizes
    columns, questions = merged(defenses)
    run = open_run(
        test_set,
        folder,
        kind_of(apply_fn).image_size(columns.image_size),
        unreadable=unreadable or {},
        skip_unreadable=skip_unreadable,
    )
    num_images = len(run.run_images)
    engine = engine_for(
        apply_fn,
        params,
        run.first.shape[1:],
        columns,
        preprocessing=preprocessing,
        local=local,
        dropping=dropping,
        chunk=run.chunk_sizes if chunk is None or run.began_with(chunk, mesh) else chunk,
        mesh=mesh,
        asked_bit_by_bit=num_images * len(columns) if decide else 0,
    )
    images_per_block = run.images_per_block or sizes.images_per_block(
        num_images, engine, decide=decide
    )
    engine = engine.for_blocks(images_per_block)
    guarded = Guarded(engine, hooks.warn)
    tried = _tried(run, engine, guarded, params) if run.is_new else {}
    if tried.get("cells_keep_bits") is False:
        hooks.warn(MIXES)
    facts = facts_of_run(
        run.run_images,
        run.first,
        engine,
        params,
        decided=defenses if decide else (),
        identity=identity or {},
    )
    writer = TableWriter(
        run.folder,
        num_images=num_images,
        masked_images=columns,
        num_classes=engine.num_classes,
        images_per_block=images_per_block,
        share=processes.share_of_this(share),
        run=facts,
        about={
            "provenance": provenance_of_run(num_images, engine, {**(provenance or {}), **tried})
        },
        began=run.run_images.began,
        damaged=hooks.warn,
    )
    work = BlockWork(run.run_images, engine, guarded, questions if decide else None)
    with processes.first_alone(writer):
        _finish(work, writer, hooks)
        processes.wait_for_all("table")
    return saved_table.load(run.folder) if saved_table.is_complete(run.folder) else None


def _finish(work: BlockWork, writer: TableWriter, hooks: Hooks) -> None:
    """Computes and writes the blocks that are not there yet, until all are or it is stopped."""
    images = sum(after - before for before, after in writer.spans().values())
    heard = _Heard(hooks, work, len(work.engine.masked_images) * images)
    missing = _go_on(writer, heard)
    batches = ahead(work.read, list(missing.values()))
    for number in missing:
        if hooks.stop():
            batches.close()
            break
        read, part = next(batches)
        heard.stem(read)
        block = work.computed(read, part, heard.tell)
        heard.left_out(block)
        writer.write(number, block)
        heard.block(block)


def merged(defenses: Sequence[Defense]) -> tuple[MaskedImages, list[early_exit.Question]]:
    """What is evaluated: the image itself first, then all masked images of all defenses, once.

    Raises:
      ValueError: for no defense, or for defenses of several image sizes.
    """
    if not defenses:
        raise ValueError("expected at least 1 defense, got none")
    parts = [distinct_unions.unmasked(defenses[0].mask_set.image_size)]
    parts += [defense.masked_images for defense in defenses]
    columns, places = distinct_unions.merge(parts)
    questions = [early_exit.Question(*pair) for pair in zip(defenses, places[1:], strict=True)]
    return columns, questions


@dataclasses.dataclass(frozen=True, eq=False)
class _Heard:
    """What the hooks hear of blocks, those of ``total`` masked images."""

    hooks: Hooks
    work: BlockWork
    total: int

    def tell(self, settled: int, evaluated: int, slots: int, is_new: bool = True) -> None:
        self.hooks.progress(Step(settled, evaluated, slots, self.total, is_new))

    def stem(self, images: Any) -> None:
        """Tells of the passes of a stem that ``images``, as uploaded, took."""
        if slots := getattr(images, "stem_slots", 0):
            self.hooks.progress(Step(0, 0, 0, self.total, True, len(images), slots))

    def left_out(self, block: Block) -> None:
        if block.rows.left_out:
            self.hooks.warn(says_left_out(block.rows))

    def block(self, block: Block) -> None:
        table, labels = self.work.table_of(block)
        if len(labels):
            self.hooks.block(table, labels)

    def finished(self, block: Block) -> None:
        """Tells of a block that an earlier session finished."""
        predictions = np.asarray(block.outputs.predictions)
        evaluated = int((predictions != UNKNOWN).sum())
        self.tell(predictions.size, evaluated, 0, is_new=False)
        self.block(block)


def _go_on(writer: TableWriter, heard: _Heard) -> dict[int, tuple[int, int]]:
    """Counts the blocks that are there already; the others, with their images."""
    missing = {}
    for number, span in writer.spans().items():
        block = still_of_use(writer, number, heard.work.run_images, heard.hooks.warn)
        if block is None:
            missing[number] = span
        else:
            heard.finished(block)
    return missing


def _tried(run: OpenedRun, engine: Engine, guarded: Guarded, params: Any) -> dict[str, bool]:
    """What is found out of the model before any long work, and kept with the table.

    Raises:
      ValueError: for a first image whose logits are all NaN or infinite.
    """
    keep_bits = engine.checked_cells(params)
    outputs = guarded.run(lambda itself: itself.tried(run.first))
    if (np.asarray(outputs.predictions) < 0).all():
        raise ValueError(
            "expected finite logits, but the model gives NaN or infinite ones for the first image "
            "without any mask; check the weights and the preprocessing"
        )
    return {} if keep_bits is None else {"cells_keep_bits": keep_bits}
