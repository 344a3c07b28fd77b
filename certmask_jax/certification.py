"""The whole job: images -> masked predictions -> table on disk -> certificates -> report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax import early_exit, fingerprint, masked_images, report, storage, tables
from certmask_jax.blocks import Block
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee, Seen
from certmask_jax.forward import ApplyFn, masked_forward
from certmask_jax.prediction_table import NO_LABEL, UNKNOWN, PredictionTable, check_labels
from certmask_jax.preprocessing import Preprocessing, check_images
from certmask_jax.report import DefenseResult, Report, wilson_interval
from certmask_jax.table_writer import TableWriter

# Rows of a table on disk are looked at in blocks, so that memory does not grow with the test set.
_ENTRIES_AT_ONCE = 1 << 19
# A block is what a run that is stopped loses. It has many chunks, so that few of them are ragged.
_CHUNKS_A_BLOCK = 256


class Batch(Protocol):
    """Some images of a test set."""

    @property
    def images(self) -> NDArray[np.uint8]: ...  # [B, h, w, c]
    @property
    def labels(self) -> NDArray[np.int32]: ...  # [B]
    @property
    def ids(self) -> tuple[str, ...]: ...  # [B]


class TestSet(Protocol):
    """A test set that is read a few images at a time (``data.Dataset`` is one)."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Batch: ...


def evaluate(
    test_set: TestSet,
    apply_fn: ApplyFn,
    params: Any,
    defenses: Sequence[Defense],
    folder: str | storage.AnyPath,
    *,
    preprocessing: Preprocessing,
    decide: bool = False,
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, bool], None] | None = None,
    damaged: Callable[[str], None] | None = None,
) -> tables.SavedTable:
    """Runs the model on every masked image that some defense asks for, once, onto the disk.

    It may be stopped at any moment, killed too: called again it goes on from the last whole block
    and ends in the same table.

    Args:
      test_set: T images of one size, T >= 1.
      apply_fn, params, preprocessing, chunk, mesh: see :func:`certmask_jax.forward.predict`.
      defenses: their masked images are merged; equal ones are evaluated once.
      folder: where the table goes; local or in a bucket (:func:`certmask_jax.storage.any_path`).
        One of the same fingerprint that it holds is gone on with, after its checksums were
        verified.
      decide: evaluate of each image only what can still change an answer or a verdict of these
        defenses (:mod:`certmask_jax.early_exit`); the verdicts are those of the whole table.
      identity: JSON-able facts that decide the numbers and that only the caller knows (data set,
        model); in the fingerprint. With ``weights_sha256``, ``params`` is not hashed again.
      provenance: JSON-able facts about the run, kept with the table.
      progress: called with (masked images finished, or found needless, since the last call, all of
        them, whether that was now or in an earlier session).
      damaged: told in a line of each block that is computed again, as its files are damaged.

    Raises:
      ValueError: for an empty test set, images of another size than the masks, labels outside the
        model's classes, or logits of the first images that are all NaN or infinite; before any
        long work where that can be known before; for a table of another format.
      FileExistsError: for a folder that holds other files, or another run: names what differs.
      OSError: for a disk without room, or one that cannot be written to; for a bucket that does
        not answer, or refuses.
    """
    if len(test_set) < 1:
        raise ValueError("expected a test set with at least 1 image, got an empty one")
    if not defenses:
        raise ValueError("expected at least 1 defense, got none")
    columns, questions = _columns(defenses)
    first = test_set.read(0, 1)
    check_images(first.images, columns.image_size)
    folder = storage.any_path(folder)
    there = tables.recorded(folder)
    if there is None:
        storage.check_writable(folder)
    if chunk is None and there is not None:
        chunk = there["fingerprint"].get("chunk")  # today another may fit the memory
    forward = masked_forward(
        apply_fn,
        params,
        first.images.shape[1:],
        preprocessing=preprocessing,
        boxes_per_mask=columns.boxes.shape[1],
        chunk=chunk,
        mesh=mesh,
    )
    if there is None:
        unmasked = masked_images.unmasked(columns.image_size)
        _check_logits(forward.table_block(first.images, unmasked))
    total = len(test_set) * len(columns)
    known = dict(identity or {})
    if "weights_sha256" not in known:
        known["weights_sha256"] = fingerprint.of_arrays(params)
    shared = {"chunk": forward.chunk, "preprocessing": dataclasses.asdict(preprocessing)}
    if decide:  # what is left out depends on them
        asked = [(str(d), dict(d.options), fingerprint.of_arrays(d.groups)) for d in defenses]
        known["defenses_sha256"] = fingerprint.of_facts(asked)
    advance = None if progress is None else lambda n: progress(n, total, True)
    fits = _CHUNKS_A_BLOCK * forward.chunk // len(columns)
    with TableWriter(
        folder,
        num_images=len(test_set),
        masked_images=columns,
        num_classes=forward.num_classes,
        images_per_block=min(forward.images_at_once(), max(1, fits)),
        run={
            "first_image_sha256": fingerprint.of_arrays(first.images),
            **shared,
            **fingerprint.of_environment(),
            **known,
        },
        about={
            "provenance": {
                **fingerprint.environment(),
                **(provenance or {}),
                **shared,
                "num_images": len(test_set),
                "masked_images": len(columns),
            }
        },
        damaged=damaged,
    ) as writer:
        for number, (start, stop) in enumerate(writer.spans()):
            block = writer.read(number)
            if block is None:
                batch = test_set.read(start, stop)
                check_images(batch.images, columns.image_size)
                labels = check_labels(batch.labels, len(batch.images), forward.num_classes)
                if decide:
                    outputs = early_exit.evaluate(
                        forward,
                        batch.images,
                        columns,
                        questions,
                        labels,
                        always=[0],
                        progress=advance,
                    )
                else:
                    outputs = forward.table_block(batch.images, columns, advance)
                writer.write(number, Block(outputs, labels, tuple(batch.ids)))
            elif progress is not None:
                progress((stop - start) * len(columns), total, False)
    return tables.load(folder)


def certify(saved: tables.SavedTable, defenses: Sequence[Defense]) -> Report:
    """Everything that a table proves about ``defenses``; needs no model.

    Raises:
      ValueError: when the table lacks a defense's masked images, or was not evaluated for it.
    """
    table, labels = saved.table, saved.labels
    unmasked = masked_images.unmasked(table.masked_images.image_size)
    column = int(table.columns(unmasked)[0])
    undefended = np.concatenate(
        [np.asarray(table.predictions[rows])[:, column] for rows in _row_blocks(table)]
    ).astype(np.int32)
    count = len(table)
    accuracy = float((undefended == labels).mean())
    smallest, broken = _margins(table)
    return Report(
        num_images=count,
        forward_passes={"made": _known(table), "full_table": table.predictions.size},
        undefended_accuracy=accuracy,
        intervals={"undefended_accuracy": wilson_interval(accuracy, count)},
        defenses=tuple(_result(defense, saved) for defense in defenses),
        non_finite_images=tuple(saved.ids[i] for i in broken),
        provenance=saved.about.get("provenance", {}),
        ids=saved.ids,
        per_image={"label": labels, "undefended": undefended, "smallest_margin": smallest},
    )


def _columns(
    defenses: Sequence[Defense],
) -> tuple[masked_images.MaskedImages, list[early_exit.Question]]:
    """The image itself first, then all masked images of all defenses, each once."""
    parts = [masked_images.unmasked(defenses[0].mask_set.image_size)]
    parts += [defense.masked_images for defense in defenses]
    merged, places = masked_images.merge(parts)
    questions = [early_exit.Question(*pair) for pair in zip(defenses, places[1:], strict=True)]
    return merged, questions


def _result(defense: Defense, saved: tables.SavedTable) -> DefenseResult:
    answers: list[NDArray[np.int32]] = []
    verdicts: list[dict[str, NDArray[np.bool_]]] = []
    margins: list[NDArray[np.float32]] = []
    # Columns are matched once; rows then come from the disk a block at a time.
    chosen = saved.table.columns(defense.masked_images)
    rows = max(1, _ENTRIES_AT_ONCE // max(1, len(chosen)))
    for start in range(0, len(saved.table), rows):
        part = saved.table.take(slice(start, start + rows), chosen, defense.masked_images)
        true = saved.labels[start : start + rows]
        _check_decided(defense, part, true)
        answers.append(defense.rule(part))
        verdicts.append(
            {
                "worst_case": defense.worst_case(part, true),
                "certificate": defense.certificate(part, true),
                **defense.conditions(part, true),
            }
        )
        margins.append(_margins(part)[0])
    answer = np.concatenate(answers)
    proved = {name: np.concatenate([v[name] for v in verdicts]) for name in verdicts[0]}
    smallest = np.concatenate(margins)
    count = len(answer)
    fractions = {
        "clean_accuracy": float((answer == saved.labels).mean()),
        "worst_case_accuracy": float(proved["worst_case"].mean()),
        "certified_accuracy": float(proved["certificate"].mean()),
        **{name: float(proved[name].mean()) for name in defense.row_conditions},
    }
    detects = defense.guarantee == Guarantee.DETECTION
    if detects:
        fractions["false_alert_rate"] = float((answer == ALERT).mean())
    return DefenseResult(
        name=defense.name,
        options=dict(defense.options),
        guarantee=defense.guarantee.value,
        patch=defense.mask_set.patch_size,
        mask_set=str(defense.mask_set),
        masks=len(defense.mask_set),
        masked_images=len(defense.masked_images),
        clean_accuracy=fractions["clean_accuracy"],
        worst_case_accuracy=fractions["worst_case_accuracy"],
        worst_case_exact=defense.exact,
        certified_accuracy=fractions["certified_accuracy"],
        conditions={name: fractions[name] for name in defense.row_conditions},
        false_alert_rate=fractions.get("false_alert_rate"),
        near_ties={
            f"{m:g}": int((proved["worst_case"] & (smallest < m)).sum()) for m in report.MARGINS
        },
        intervals={name: wilson_interval(value, count) for name, value in fractions.items()},
        per_image={"answer": answer, **proved, "smallest_margin": smallest},
    )


def _check_decided(defense: Defense, table: PredictionTable, labels: NDArray[np.int32]) -> None:
    """``ValueError`` if the defense depends on masked images that were not evaluated."""
    known = table.known
    for i in np.flatnonzero(~known.all(axis=1)):
        seen = Seen(table.predictions[i], table.margins[i], known[i])
        if len(defense.open_columns(seen, int(labels[i]))):
            raise ValueError(
                f"{defense.name}: expected tables that decide it, but they hold only what other "
                "defenses needed; evaluate with it (--defense), or the whole table (--no-decide)"
            )


def _margins(table: PredictionTable) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Smallest margin of each image ``float32[T]`` (NaN if any is), and images without logits."""
    smallest, broken = [], []
    for part in _row_blocks(table):
        smallest.append(np.asarray(table.margins[part]).min(axis=1).astype(np.float32))
        no_label = np.asarray(table.predictions[part]) == NO_LABEL
        broken.append(np.flatnonzero(no_label.any(axis=1)) + part.start)
    return np.concatenate(smallest), np.concatenate(broken)


def _known(table: PredictionTable) -> int:
    """How many entries were evaluated."""
    return sum(int((table.predictions[r] != UNKNOWN).sum()) for r in _row_blocks(table))


def _row_blocks(table: PredictionTable) -> list[slice]:
    rows = max(1, _ENTRIES_AT_ONCE // max(1, table.predictions.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(table), rows)]


def _check_logits(outputs: Any) -> None:
    if (np.asarray(outputs.predictions) < 0).all():
        raise ValueError(
            "expected finite logits, but the model gives NaN or infinite ones for the first image "
            "without any mask; check the weights and the preprocessing"
        )
