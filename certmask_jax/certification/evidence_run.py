"""Defenses on evidence over a test set: block by block onto the disk, to be stopped at any moment.

One pass an image serves all that are on local logits, and one for each band all that are on the
same bands. What is there of an earlier session stays of use. Of several processes each evaluates
its part of the blocks on its own devices, and nobody waits meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from certmask_jax.certification.evidence_blocks import block_of_part, is_of_use, read_part
from certmask_jax.certification.evidence_facts import about_evidence, facts_of_evidence
from certmask_jax.certification.evidence_opened import OpenedEvidence, open_evidence
from certmask_jax.certification.evidence_trials import tried
from certmask_jax.certification.finished_blocks import says_left_out
from certmask_jax.certification.reading_ahead import ahead
from certmask_jax.certification.run_facts import known_of
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files import processes, storage
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import results_program
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_store import SavedEvidence, images_done
from certmask_jax.tables.image_sets import TestSet


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
      FileExistsError: for the folder of another run; names what differs; or while another process
        is writing there.
      OSError: for a folder that cannot be written to, or a disk without room for what is kept; in
        other processes than the first, where that could not begin.
    """
    told = EvidenceHooks() if hooks is None else hooks
    run = open_evidence(
        test_set,
        local,
        params,
        defenses,
        folder,
        apply_fn=apply_fn,
        dropping=dropping,
        preprocessing=preprocessing,
        unreadable=unreadable or {},
        skip_unreadable=skip_unreadable,
        share=share,
        keep=keep,
        margin_guard=margin_guard,
        chunk=chunk,
        mesh=mesh,
    )
    known = known_of(params, identity or {})
    evidence_store.same_run(run.folder, facts_of_evidence(run, known))
    run, keeps_bits = tried(run, params, told.warn)
    facts = facts_of_evidence(run, known)
    about = about_evidence(run, provenance or {}, keeps_bits)
    with processes.first_alone(_begun(run.folder, facts, about)):
        begun = evidence_store.begun(run.folder, facts, about)
        kept = begun["about"].get("places")  # none: begun when verdicts at places were not kept
        is_left = processes.any_says(not _evaluated(run, kept, told))  # who waits for all
    is_whole = not is_left and images_done(run.folder)[0] == len(run.run_images)
    return evidence_store.load_evidence(run.folder) if is_whole else None


def _evaluated(
    run: OpenedEvidence, places: Sequence[Sequence[int]] | None, told: EvidenceHooks
) -> bool:
    """Evaluates the blocks of this process that are missing; whether all are there now.

    ``places`` are what the run keeps of verdicts at places; None where it keeps none.
    """
    program = results_program(
        run.work.sources,
        run.preprocessing,
        tuple(run.defenses),
        run.mesh,
        places=places is not None,
        keep=run.kept is not None,
        margin_guard=run.margin_guard,
    )
    store, files = run.store, run.kept_files
    missing = {
        number: span
        for number, span in run.spans.items()
        if not is_of_use(store, number, span, run.run_images, told.warn)
        or not files.is_whole(number, span[1] - span[0], told.warn)
    }
    own, left = (sum(stop - start for start, stop in s.values()) for s in (run.spans, missing))
    done = own - left
    size = (run.first.shape[1], run.first.shape[2])
    read = functools.partial(read_part, run.run_images, size, run.classes)
    for number, part in ahead(read, missing, stop=told.stop):
        start, stop = missing[number]
        if part.rows.left_out:
            told.warn(says_left_out(part.rows))
        block, to_keep = block_of_part(
            program,
            run.held,
            part,
            run.work.images,
            run.defenses,
            places or (),
            guarded=run.margin_guard > 0,
        )
        files.write(number, to_keep or files.nothing(stop - start))
        store.write(number, block)
        done += stop - start
        told.passes(run.work.passes * len(part.images), run.work.slots(len(part.images)))
        told.progress(done, own)
    return done == own


@contextlib.contextmanager
def _begun(
    folder: storage.AnyPath, facts: Mapping[str, Any], about: Mapping[str, Any]
) -> Iterator[None]:
    """Begins the store, or refuses that of another run; the first process does so before others.

    That keeps the processes of other jobs out, until it leaves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, "this evidence") if processes.is_first() else contextlib.nullcontext():
        evidence_store.begun(folder, facts, about)
        yield
