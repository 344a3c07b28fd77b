"""The long part: a model on the masked images of a test set, onto the disk, block by block.

It may be stopped at any moment, killed too, and goes on from the last whole block. The blocks can
be shared out: among jobs (``share``), and among the processes of ``jax.distributed``. Nobody waits
for anybody meanwhile: each process feeds its own devices, as what early exit evaluates next depends
on what it found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.block_work import BlockWork
from certmask_jax.certification.opened_run import open_run
from certmask_jax.certification.reading_ahead import ahead
from certmask_jax.certification.run_facts import writer_of_run
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.masking_only import check_masking
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
    run.run_images.check_labels(engine.num_classes)
    images_per_block = run.images_per_block or sizes.images_per_block(
        num_images, engine, decide=decide
    )
    together = run.images_together or sizes.images_together(images_per_block, engine, decide=decide)
    is_short = sizes.is_short(together, engine, decide=decide)
    engine = engine.for_blocks(min(together, num_images))
    guarded = Guarded(engine, hooks.warn)
    found_out = _looked_at(engine, params, hooks.warn) if run.is_new else {}
    if run.is_new and not is_short:
        outputs = guarded.run(lambda itself: itself.tried(run.first))
        _check_finite(outputs.predictions)
    writer = writer_of_run(
        run,
        engine,
        params,
        images_per_block=images_per_block,
        images_together=together,
        decided=defenses if decide else (),
        identity=identity or {},
        provenance={**(provenance or {}), **found_out},
        share=share,
        damaged=hooks.warn,
    )
    work = BlockWork(
        run.run_images, engine, guarded, questions if decide else None, writer, hooks, together
    )
    computed = _computed(work, hooks)
    # Of a new run the first stretch is its own trial, if it takes but seconds.
    first = next(computed, None) if run.is_new and is_short else None
    if first is not None:
        rows = first[1]
        there = [row for row in range(len(rows.labels)) if row not in rows.rows.left_out]
        _check_finite(rows.outputs.predictions[there[:1], 0])
    with processes.first_alone(writer):
        for numbers, rows in itertools.chain(() if first is None else (first,), computed):
            for number, block in work.cut(rows, numbers):
                writer.write(number, block)
                work.tell_of(block)
        processes.wait_for_all("table")
    return saved_table.load(run.folder) if saved_table.is_complete(run.folder) else None


def merged(defenses: Sequence[Defense]) -> tuple[MaskedImages, list[early_exit.Question]]:
    """What is evaluated: the image itself first, then all masked images of all defenses, once.

    Raises:
      ValueError: for no defense, for defenses of several image sizes, or for what is no masking
        defense.
    """
    if not defenses:
        raise ValueError("expected at least 1 defense, got none")
    for defense in defenses:
        check_masking(defense, "defenses")
    parts = [distinct_unions.unmasked(defenses[0].mask_set.image_size)]
    parts += [defense.masked_images for defense in defenses]
    columns, places = distinct_unions.merge(parts)
    questions = [early_exit.Question(*pair) for pair in zip(defenses, places[1:], strict=True)]
    return columns, questions


def _computed(work: BlockWork, hooks: Hooks) -> Iterator[tuple[tuple[int, ...], Block]]:
    """The blocks that are missing, stretch by stretch, and all rows of the stretch."""
    for numbers, batch in ahead(work.read, work.missing(), stop=hooks.stop):
        yield numbers, work.computed(batch)


def _looked_at(engine: Engine, params: Any, warn: Callable[[str], None]) -> dict[str, bool]:
    """What is found out of the model before any work, and kept with the table."""
    keep_bits = engine.checked_cells(params)
    if keep_bits is False:
        warn(MIXES)
    return {} if keep_bits is None else {"cells_keep_bits": keep_bits}


def _check_finite(predictions: ArrayLike) -> None:
    """``ValueError`` where an image without any mask, of which this is said, has no label."""
    labels = np.asarray(predictions)
    if labels.size and (labels < 0).all():
        raise ValueError(
            "expected finite logits, but the model gives NaN or infinite ones for the first image "
            "without any mask; check the weights and the preprocessing"
        )
