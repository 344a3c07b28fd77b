"""Defenses on evidence over a test set: block by block onto the disk, to be stopped at any moment.

One pass an image serves all that are on local logits, and one for each band all that are on the
same bands. What is there of an earlier session stays of use. Of several processes each evaluates
its part of the blocks on its own devices, and nobody waits meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.certification import kept_sources
from certmask_jax.certification.evidence_batches import planned, sources_of
from certmask_jax.certification.evidence_blocks import block_of_part, is_of_use, read_part
from certmask_jax.certification.finished_blocks import says_left_out
from certmask_jax.certification.reading_ahead import ahead
from certmask_jax.certification.run_facts import facts_of_images
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.defenses.guarded_evidence import checked_guard
from certmask_jax.files import fingerprint, processes, storage
from certmask_jax.inference.cell_fields import MIXES
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import (
    check_local,
    local_cells_keep_bits,
    results_program,
)
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn, num_classes
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_kept import KeptFiles
from certmask_jax.tables.evidence_store import EvidenceStore, SavedEvidence, images_done
from certmask_jax.tables.image_sets import TestSet
from certmask_jax.tables.run_images import Began, RunImages, of_run
from certmask_jax.tables.table_writer import share_of

_BATCHES_A_BLOCK = 16
_LEAST_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class EvidenceHooks:
    """What a program wants to hear of, and when it wants to stop.

    Attributes:
      progress: told of the images of its share that are done, and of all these, after each block.
      warn: told in a line of what happened to damaged blocks or images.
      stop: asked before each block; true ends the evaluation there.
      passes: told of the passes of a block, and of the places for passes that these took.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    warn: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    passes: Callable[[int, int], None] = lambda useful, slots: None


def evaluate_evidence(
    test_set: TestSet,
    local: LocalLogits | None,
    params: Any,
    defenses: Sequence[EvidenceDefense],
    folder: str | storage.AnyPath,
    *,
    apply_fn: ApplyFn | None = None,
    dropping: TokenDropping | None = None,
    preprocessing: Preprocessing,
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    unreadable: Mapping[str, str] | None = None,
    skip_unreadable: bool = False,
    share: tuple[int, int] = (0, 1),
    keep: bool = False,
    margin_guard: float = 0.0,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    hooks: EvidenceHooks | None = None,
) -> SavedEvidence | None:
    """What defenses on evidence answer and prove for each image, kept in a folder.

    Args:
      test_set: images of the size that the threats are on.
      local, params: the model; that its cells see what they are said to see is checked first.
        None where no defense is on local logits.
      defenses: on local logits, with the field and the stride of ``local``, or on bands.
      folder: local or in a bucket; new, or of this same run, which goes on. Several processes
        (``jax.distributed``) all have to see it.
      apply_fn: the model that sees bands, ``(params, float32[B, h, w, c]) -> logits [B, K]``.
      dropping: how that model drops tokens, if bands are to be given to it as the tokens that are
        seen alone.
      preprocessing: what it resizes images to is the ``seen_size`` of defenses on local logits.
      identity: JSON-able facts that decide the numbers and that only the caller knows. With
        ``weights_sha256``, ``params`` is not hashed again.
      provenance: JSON-able facts about the run, kept with it.
      unreadable, skip_unreadable: as of ``evaluation.evaluate``.
      share: ``(i, n)``: only every n-th block, from block i on. What n shares find is put together
        by ``evidence_merging``.
      keep: keep the evidence itself too, in float32, for ``tables.evidence_kept`` and for other
        defenses on it. For small sets: an image of 26x26 cells and 1,000 classes takes 2.7 MB.
      margin_guard: find too which worst cases hold for all evidence that another device may give,
        less than half of that away (soundness, section 15). Another guard is another run, but
        none: what holds without is there as well.
      chunk: images at once over all devices, rounded up to a multiple of their number; of bands
        masked images. Chosen by default, and halved until the devices have memory for it.
      mesh: 1-D mesh; all devices of this process by default.
      hooks: see ``EvidenceHooks``.

    Returns:
      All of the run; None where it was stopped before, or blocks are others' share.

    Raises:
      ValueError: for no defense, an empty test set, images of another size, labels that are no
        classes, more shares than blocks, another resize, a model whose cells see other pixels, or
        one that does not take images of the channels that bands are shown in; for a guard below 0,
        or beside a defense of which nothing is known within one; before any long work.
      UnreadableImage: for an image that cannot be read, unless they are skipped.
      FileExistsError: for the folder of another run; names what differs.
      OSError: for a folder that cannot be written to, or a disk without room for what is kept; in
        other processes than the first, where that could not begin.
    """
    told = EvidenceHooks() if hooks is None else hooks
    folder = storage.any_path(folder)
    _check(test_set, local, defenses, preprocessing)
    check_guarded(defenses, checked_guard(margin_guard))
    sources_of(defenses, local, apply_fn)
    there = evidence_store.recorded(folder)
    run_images = _images(test_set, there, folder, unreadable or {}, skip_unreadable)
    first = run_images.first()
    check_images(first, defenses[0].threat.image_size)
    preprocessing.check_channels(first.shape[3])
    mesh = device_mesh() if mesh is None else mesh
    held = jax.device_put(
        computed_with(params, preprocessing), NamedSharding(mesh, PartitionSpec())
    )
    classes = _classes(local, apply_fn, params, defenses, preprocessing, first.shape[1:])
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
        margin_guard=margin_guard,
        warn=told.warn,
    )
    batch = work.images
    size = _images_per_block(len(run_images), batch)
    of_evidence = kept_sources.kept_of(defenses, classes) if keep else None
    if of_evidence is not None:
        size = kept_sources.images_a_block(of_evidence, size, batch)
    store = EvidenceStore(folder, len(run_images), size)
    every = store.spans()
    of_this = processes.share_of_this(share)
    spans = {number: every[number] for number in share_of(len(every), of_this, "evidence")}
    if of_evidence is not None:
        kept_sources.check_room(folder, of_evidence, spans)
    known = dict(identity or {})
    if "weights_sha256" not in known:
        known["weights_sha256"] = fingerprint.of_arrays(params)
    facts = {
        **facts_of_images(run_images, first),
        **fingerprint.of_environment(),
        "preprocessing": preprocessing.facts(),
        "num_images": len(run_images),
        "batch": batch,
        "images_per_block": size,
        "defenses": [defense.facts for defense in defenses],
        **work.facts(),
        **({"keep_evidence": True} if keep else {}),
        **({"margin_guard": float(margin_guard)} if margin_guard else {}),
        **known,
    }
    keep_bits: dict[str, bool] = {}
    resized = preprocessing.resize_to  # whose weights are 0 where a cell sees nothing
    if local is not None and any(one.of_cells is not None for one in defenses):
        keeps = local_cells_keep_bits(
            local,
            held,
            (*(resized or first.shape[1:3]), first.shape[3]),
            preprocessing=dataclasses.replace(preprocessing, resize_to=None),
            images=batch // mesh.size,
        )
        keep_bits["cells_keep_bits"] = keeps
        if not keeps:
            told.warn(MIXES)
    began = run_images.began
    about = {
        "provenance": {
            **fingerprint.environment(),
            **(provenance or {}),
            **work.facts(),
            **keep_bits,
            **(
                {}
                if local is None
                else {
                    "local_logits": {
                        "field": local.field,
                        "stride": local.stride,
                        **({} if resized is None else {"seen_size": list(resized)}),
                    }
                }
            ),
            "num_images": len(run_images),
        },
        "images": None if began is None else began._asdict(),
        "image_size": list(first.shape[1:3]),
        "verdicts": [1 + len(defense.condition_names) + bool(margin_guard) for defense in defenses],
        "places": [list(defense.kept_places) for defense in defenses],
        "passes_each": work.passes,
        **({} if of_evidence is None else {"kept": of_evidence}),
    }
    with processes.first_alone(_begun(folder, facts, about)):
        begun = evidence_store.begun(folder, facts, about)
    kept = begun["about"].get("places")  # none: begun when verdicts at places were not kept
    program = results_program(
        work.sources,
        preprocessing,
        tuple(defenses),
        mesh,
        places=kept is not None,
        keep=keep,
        margin_guard=float(margin_guard),
    )
    files = KeptFiles(folder, [] if of_evidence is None else of_evidence["sources"])
    missing = {
        number: span
        for number, span in spans.items()
        if not is_of_use(store, number, span, run_images, told.warn)
        or not files.is_whole(number, span[1] - span[0], told.warn)
    }
    own, left = (sum(stop - start for start, stop in s.values()) for s in (spans, missing))
    done = own - left
    read = functools.partial(read_part, run_images, classes)
    for number, part in ahead(read, missing, stop=told.stop):
        start, stop = missing[number]
        if part.rows.left_out:
            told.warn(says_left_out(part.rows))
        block, to_keep = block_of_part(
            program, held, part, batch, defenses, kept or (), guarded=margin_guard > 0
        )
        files.write(number, to_keep or files.nothing(stop - start))
        store.write(number, block)
        done += stop - start
        told.passes(work.passes * len(part.images), work.slots(len(part.images)))
        told.progress(done, own)
    is_left = processes.any_says(done < own)
    is_whole = not is_left and images_done(folder)[0] == len(run_images)
    return evidence_store.load_evidence(folder) if is_whole else None


@contextlib.contextmanager
def _begun(
    folder: storage.AnyPath, facts: Mapping[str, Any], about: Mapping[str, Any]
) -> Iterator[None]:
    """Begins the store, or refuses that of another run; the first process does so before others."""
    evidence_store.begun(folder, facts, about)
    yield


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
    defenses: Sequence[EvidenceDefense],
    preprocessing: Preprocessing,
    image_shape: tuple[int, int, int],
) -> int:
    """K of the model; ``ValueError`` where it is not what it is said to be."""
    seen, classes = preprocessing.model_shape(image_shape), 0
    if local is not None and any(one.of_cells is not None for one in defenses):
        classes = check_local(local, params, seen)[2]
    if apply_fn is not None and any(one.of_bands is not None for one in defenses):
        held = computed_with(params, preprocessing)
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


def _images_per_block(num_images: int, batch: int) -> int:
    """A multiple of what is evaluated at once."""
    share = -(-num_images // _LEAST_BLOCKS)
    return batch * min(_BATCHES_A_BLOCK, -(-share // batch))
