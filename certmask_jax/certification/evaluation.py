"""The long part: a model on the masked images of a test set, onto the disk, block by block.

It may be stopped at any moment, killed too, and goes on from the last whole block. The blocks can
be shared out: among jobs (``share``), and among the processes of ``jax.distributed``. Nobody waits
for anybody meanwhile: each process feeds its own devices, as what early exit evaluates next depends
on what it found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.certification.finished_blocks import block_of, says_left_out, still_of_use
from certmask_jax.defenses.defense import Defense
from certmask_jax.files import fingerprint, processes, storage
from certmask_jax.inference import early_exit
from certmask_jax.inference.chunk_program import ApplyFn
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.field_tables import AnyForward, LocalForward, any_forward
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.whole_images import Uploaded
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable, check_labels
from certmask_jax.tables.run_images import Part, RunImages, TestSet, of_run
from certmask_jax.tables.table_writer import TableWriter

# A block is what a run that is stopped loses. It has many chunks, so that few of them are ragged,
# and a test set has some blocks even if it is small, so that it can be shared out. Of a large model
# it has fewer chunks, for some seconds of work on each device, but not so few images that the last
# chunks, which nothing more fills, are most of them.
_CHUNKS_A_BLOCK = 256
_FLOPS_A_BLOCK = {"cpu": 2e12, "gpu": 1e15, "tpu": 1e15}
_LEAST_IMAGES_A_BLOCK = 4
_LEAST_BLOCKS = 16
# Of large tables early exit leaves out most, so that their blocks have more images than would fit:
# one image alone does not fill a chunk.
_COLUMNS_DECIDED = 2048

_Read = TypeVar("_Read")
_Images = Uploaded | NDArray[np.uint8]


class Step(NamedTuple):
    """What was done since the last call of ``progress``, in masked images."""

    settled: int  # evaluated, or found needless
    evaluated: int
    total: int  # all that this call of ``evaluate`` is about
    is_new: bool  # whether it was done now, or in an earlier session


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
    share: tuple[int, int] = (0, 1),
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    unreadable: Mapping[str, str] | None = None,
    skip_unreadable: bool = False,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    hooks: Hooks | None = None,
) -> saved_table.SavedTable | None:
    """Runs the model on every masked image that some defense asks for, once, onto the disk.

    It may be stopped at any moment, killed too: called again it goes on from the last whole block
    and ends in the same table. Of several processes (``jax.distributed``) each evaluates its part
    of the blocks, on its own devices; all have to see ``folder``.

    Args:
      test_set: T images of one size, T >= 1.
      apply_fn, params, preprocessing, chunk, mesh: see ``predict``.
      defenses: their masked images are merged; equal ones are evaluated once.
      folder: where the table goes; local or in a bucket (``any_path``).
        One of the same fingerprint that it holds is gone on with, after its checksums were
        verified.
      decide: evaluate of each image only what can still change an answer or a verdict of these
        defenses (``early_exit``); the verdicts are those of the whole table.
      local: the model's local logits, if it has any: all masked images from their distinct fields
        (``local_forward``), where that is less work than ``decide`` would leave.
      share: ``(i, n)``: only every n-th block, from block i on. Tables of the n shares make up one
        (``merging``).
      identity: JSON-able facts that decide the numbers and that only the caller knows (data set,
        model); in the fingerprint. With ``weights_sha256``, ``params`` is not hashed again.
      provenance: JSON-able facts about the run, kept with the table.
      unreadable: id of an image -> why it cannot be read, where that is known before (of a test
        set with a listing); such images are left out, named, and count nowhere.
      skip_unreadable: leave those out too that turn out not to be readable.
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
    if len(test_set) < 1:
        raise ValueError("expected a test set with at least 1 image, got an empty one")
    columns, questions = merged(defenses)
    folder = storage.any_path(folder)
    there = saved_table.recorded(folder)
    run_images = _images_of_run(test_set, folder, there, unreadable, skip=skip_unreadable)
    first = run_images.first()
    check_images(first, columns.image_size)
    if there is None and processes.is_first():
        storage.check_writable(folder)
    if chunk is None and there is not None:
        chunk = there["fingerprint"].get("chunk")  # today another may fit the memory
    forward = any_forward(
        apply_fn,
        params,
        first.shape[1:],
        columns,
        preprocessing=preprocessing,
        local=local,
        chunk=chunk,
        mesh=mesh,
    )
    known = dict(identity or {})
    if "weights_sha256" not in known:
        known["weights_sha256"] = fingerprint.of_arrays(params)
    shared: dict[str, Any] = {
        "chunk": forward.chunk,
        "preprocessing": dataclasses.asdict(preprocessing),
    }
    if isinstance(forward, LocalForward):
        shared["local_logits"] = {"field": forward.local.field, "stride": forward.local.stride}
        shared["fields"] = len(forward.fields)
        shared["fields_as_whole_images"] = round(forward.fields.whole_images, 2)
    if decide:  # what is left out depends on them
        asked = [(str(d), dict(d.options), fingerprint.of_arrays(d.groups)) for d in defenses]
        known["defenses_sha256"] = fingerprint.of_facts(asked)
    guarded = Guarded(forward, hooks.warn)
    if there is None:
        _check_logits(guarded.run(lambda f: f.tried(first)))
    images_per_block = block_length(len(run_images), len(columns), forward, decide=decide)
    writer = TableWriter(
        folder,
        num_images=len(run_images),
        masked_images=columns,
        num_classes=forward.num_classes,
        images_per_block=images_per_block,
        share=processes.share_of_this(share),
        run={
            **_facts_of(run_images, first),
            **shared,
            **fingerprint.of_environment(),
            **known,
        },
        about={
            "provenance": {
                **fingerprint.environment(),
                **(provenance or {}),
                **shared,
                "num_images": len(run_images),
                "masked_images": len(columns),
            }
        },
        began=run_images.began,
        damaged=hooks.warn,
    )

    def read(start: int, stop: int) -> tuple[_Images, Part]:
        part = run_images.read(start, stop)
        if not len(part.images):  # all left out
            return part.images, part
        check_images(part.images, columns.image_size)
        labels = check_labels(part.labels, len(part.images), forward.num_classes)
        return forward.upload(part.images), part._replace(labels=labels)

    def computed(images: _Images, part: Part) -> Block:
        def block(forward: AnyForward, advance: Callable[[int, int], None]) -> Outputs:
            if decide:
                return early_exit.evaluate(
                    forward, images, columns, questions, part.labels, always=[0], progress=advance
                )
            return forward.table_block(images, columns, lambda n: advance(n, n))  # type: ignore[arg-type]  # its own

        outputs = guarded.run_told(block, tell) if len(part.present) else None
        if part.rows.left_out:
            tell(len(part.rows.left_out) * len(columns), 0)
            hooks.warn(says_left_out(part.rows))
        return block_of(outputs, part, len(columns))

    def tell(settled: int, evaluated: int, is_new: bool = True) -> None:
        hooks.progress(Step(settled, evaluated, total, is_new))

    def told_of(block: Block) -> None:
        here = [row for row in range(len(block.labels)) if row not in block.rows.left_out]
        if not here:
            return
        predictions, margins, confidences = (np.asarray(a)[here] for a in block.outputs)
        table = PredictionTable(predictions, margins, confidences, columns, forward.num_classes)
        hooks.block(table, block.labels[here])

    with processes.first_alone(writer):
        total = len(columns) * sum(stop - start for start, stop in writer.spans().values())
        missing = {}
        for number, span in writer.spans().items():
            block = still_of_use(writer, number, run_images, hooks.warn)
            if block is None:
                missing[number] = span
            else:
                evaluated = int((np.asarray(block.outputs.predictions) != UNKNOWN).sum())
                tell((span[1] - span[0]) * len(columns), evaluated, is_new=False)
                told_of(block)
        batches = _ahead(read, list(missing.values()))
        for number in missing:
            if hooks.stop():
                batches.close()
                break
            block = computed(*next(batches))
            writer.write(number, block)
            told_of(block)
        processes.wait_for_all("table")
    return saved_table.load(folder) if saved_table.is_complete(folder) else None


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


def block_length(num_images: int, num_columns: int, forward: AnyForward, *, decide: bool) -> int:
    """How many images are evaluated, written and resumed together."""
    if decide:
        num_columns = min(num_columns, _COLUMNS_DECIDED)
    fits = _CHUNKS_A_BLOCK * forward.masked_at_once() // num_columns
    fits = min(fits, max(_LEAST_IMAGES_A_BLOCK, images_in_seconds(num_columns, forward)))
    return max(1, min(forward.images_at_once(), fits, -(-num_images // _LEAST_BLOCKS)))


def images_in_seconds(num_columns: int, forward: AnyForward) -> int:
    """How many images take the devices some seconds, about; may be none, or very many."""
    devices = forward.mesh.devices.flat
    budget = _FLOPS_A_BLOCK.get(devices[0].platform, 1e15) * len(devices)
    return int(budget / max(1.0, forward.flops_an_image(num_columns) or 0.0))


def _ahead(read: Callable[[int, int], _Read], spans: Sequence[tuple[int, int]]) -> Generator[_Read]:
    """What is read of each span, the next one while the last one is worked on."""
    if not spans:
        return
    with ThreadPoolExecutor(1, "certmask_jax reads ahead") as reader:
        waiting = reader.submit(read, *spans[0])
        for following in [*spans[1:], None]:
            found = waiting.result()
            if following is not None:
                waiting = reader.submit(read, *following)
            yield found


def _images_of_run(
    test_set: TestSet,
    folder: storage.AnyPath,
    there: Mapping[str, Any] | None,
    unreadable: Mapping[str, str] | None,
    *,
    skip: bool,
) -> RunImages:
    began = None if there is None else saved_table.read_images(folder)
    try:
        return of_run(test_set, began, unreadable=unreadable or {}, skip=skip)
    except ValueError as error:
        raise FileExistsError(
            f"{folder}: {error}. Choose another folder for the results, or give the command and "
            "the images of that run"
        ) from error


def _facts_of(run_images: RunImages, first: NDArray[np.uint8]) -> dict[str, str]:
    """What tells the images of a run from others: of files their names and labels."""
    if run_images.began is None:
        return {"first_image_sha256": fingerprint.of_arrays(first)}
    return {"images_sha256": fingerprint.of_facts(run_images.began)}


def _check_logits(outputs: Outputs) -> None:
    if (np.asarray(outputs.predictions) < 0).all():
        raise ValueError(
            "expected finite logits, but the model gives NaN or infinite ones for the first image "
            "without any mask; check the weights and the preprocessing"
        )
