"""The folder, the images and the blocks of a run on evidence, before its first block."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.certification import kept_sources
from certmask_jax.certification.evidence_batches import Batches, planned, sources_of
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.defenses.guarded_evidence import checked_guard
from certmask_jax.files import processes, storage
from certmask_jax.inference.devices import device_mesh, put_everywhere
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import local_shape
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn, num_classes
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_kept import KeptFiles
from certmask_jax.tables.evidence_store import EvidenceStore
from certmask_jax.tables.image_sets import TestSet
from certmask_jax.tables.run_images import Began, RunImages, of_run
from certmask_jax.tables.table_writer import share_of

_BATCHES_A_BLOCK = 16
_LEAST_BLOCKS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedEvidence:
    """A run on evidence before its first block.

    Attributes:
      folder: where its evidence is, or will be.
      defenses, local, preprocessing, margin_guard: see ``evaluate_evidence``.
      run_images: its images, those that are left out among them.
      first: the first that can be read, ``uint8[1, h, w, c]``.
      mesh: the devices.
      held: the parameters, as they are on these.
      classes: K of the model.
      work: what is evaluated at once.
      share: ``(i, n)`` of this process.
      kept: the record of the evidence that is kept; None for none.
    """

    folder: storage.AnyPath
    defenses: Sequence[EvidenceDefense]
    local: LocalLogits | None
    preprocessing: Preprocessing
    margin_guard: float
    run_images: RunImages
    first: NDArray[np.uint8]
    mesh: Mesh
    held: Any
    classes: int
    work: Batches
    share: tuple[int, int]
    kept: Mapping[str, Any] | None

    @functools.cached_property
    def images_per_block(self) -> int:
        """Of its blocks, a multiple of what is evaluated at once."""
        batch = self.work.images
        share = -(-len(self.run_images) // _LEAST_BLOCKS)
        size = batch * min(_BATCHES_A_BLOCK, -(-share // batch))
        return size if self.kept is None else kept_sources.images_a_block(self.kept, size, batch)

    @functools.cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """The blocks of its share, and the images of each; ``ValueError`` for too few blocks."""
        every = self.store.spans()
        own = share_of(len(every), self.share, len(self.run_images), "evidence")
        return {number: every[number] for number in own}

    @property
    def store(self) -> EvidenceStore:
        """The blocks of the run."""
        return EvidenceStore(self.folder, len(self.run_images), self.images_per_block)

    @property
    def kept_files(self) -> KeptFiles:
        """The files of what is kept."""
        return KeptFiles(self.folder, () if self.kept is None else self.kept["sources"])

    @property
    def on_local(self) -> LocalLogits | None:
        """The local logits, if a defense is on them."""
        return self.local if _is_on_local(self.defenses) else None


def open_evidence(
    test_set: TestSet,
    local: LocalLogits | None,
    params: Any,
    defenses: Sequence[EvidenceDefense],
    folder: str | storage.AnyPath,
    *,
    apply_fn: ApplyFn | None,
    dropping: TokenDropping | None,
    preprocessing: Preprocessing,
    unreadable: Mapping[str, str],
    skip_unreadable: bool,
    share: tuple[int, int],
    keep: bool,
    margin_guard: float,
    chunk: int | None,
    mesh: Mesh | None,
) -> OpenedEvidence:
    """Looks at the folder, the images and the model's shapes; evaluates and writes nothing.

    Arguments and errors are those of ``evaluate_evidence``. What that refuses is refused here, but
    for another run's folder and for what has to be tried (``evidence_trials``).
    """
    folder = storage.any_path(folder)
    _check(test_set, local, defenses, preprocessing)
    check_guarded(defenses, checked_guard(margin_guard))
    sources_of(defenses, local, apply_fn)
    there = evidence_store.recorded(folder)
    run_images = _images(test_set, there, folder, unreadable, skip_unreadable)
    first = run_images.first()
    check_images(first, defenses[0].threat.image_size)
    preprocessing.check_channels(first.shape[3])
    mesh = device_mesh() if mesh is None else mesh
    held = put_everywhere(computed_with(params, preprocessing), mesh)
    classes = _classes(local, apply_fn, params, held, defenses, preprocessing, first.shape[1:])
    run_images.check_labels(classes)
    work = planned(
        defenses,
        local,
        apply_fn,
        held,
        dropping=dropping,
        num_images=len(run_images),
        image_shape=first.shape[1:],
        preprocessing=preprocessing,
        mesh=mesh,
        chunk=chunk,
        known=None if there is None else there["fingerprint"].get("bands_at_once"),
    )
    kept = kept_sources.kept_of(defenses, classes) if keep else None
    run = OpenedEvidence(
        folder, defenses, local, preprocessing, float(margin_guard), run_images, first, mesh, held,
        classes, work, processes.share_of_this(share), kept
    )  # fmt: skip
    spans = run.spans  # or it is refused
    if kept is not None:
        kept_sources.check_room(folder, kept, spans)
    if there is None and processes.is_first():
        storage.check_writable(folder)
    return run


def _check(
    test_set: TestSet,
    local: LocalLogits | None,
    defenses: Sequence[EvidenceDefense],
    preprocessing: Preprocessing,
) -> None:
    if not defenses:
        raise ValueError("expected at least 1 defense, got none")
    if len(test_set) < 1:
        raise ValueError("expected a test set with at least 1 image, got an empty one")
    for defense in defenses:
        if defense.threat.image_size != defenses[0].threat.image_size:
            raise ValueError("expected threats on one image size, got several")
        cells = defense.of_cells
        if local is None or cells is None:
            continue
        seen = preprocessing.resize_to or defense.threat.image_size
        if seen != (cells.seen_size or defense.threat.image_size):
            raise ValueError(
                f"{defense.name}: expected seen_size {seen}, to which images of "
                f"{defense.threat.image_size} are resized before the model sees them, got "
                f"{cells.seen_size}: a patch reaches other cells then"
            )
        if (cells.field, cells.stride) != (local.field, local.stride):
            raise ValueError(
                f"{defense.name}: expected the field {local.field} and stride {local.stride} of "
                f"the model, got {cells.field} and {cells.stride}"
            )


def _classes(
    local: LocalLogits | None,
    apply_fn: ApplyFn | None,
    params: Any,
    held: Any,
    defenses: Sequence[EvidenceDefense],
    preprocessing: Preprocessing,
    image_shape: tuple[int, int, int],
) -> int:
    """K of the model; ``ValueError`` where it is not what it is said to be."""
    seen, classes = preprocessing.model_shape(image_shape), 0
    if local is not None and _is_on_local(defenses):
        classes = local_shape(local, params, seen)[2]
    if apply_fn is not None and any(one.of_bands is not None for one in defenses):
        classes = num_classes(apply_fn, held, seen, preprocessing.model_dtype)
    return classes


def _images(
    test_set: TestSet,
    there: Mapping[str, Any] | None,
    folder: storage.AnyPath,
    unreadable: Mapping[str, str],
    skip: bool,
) -> RunImages:
    images = None if there is None else there["about"]["images"]
    began = None if images is None else Began(tuple(images["ids"]), tuple(images["labels"]))
    try:
        return of_run(test_set, began, unreadable=unreadable, skip=skip)
    except ValueError as error:
        raise FileExistsError(
            f"{folder}: {error}. Choose another folder for the results, or give the command and "
            "the images of that run"
        ) from error


def _is_on_local(defenses: Sequence[EvidenceDefense]) -> bool:
    return any(one.of_cells is not None for one in defenses)
