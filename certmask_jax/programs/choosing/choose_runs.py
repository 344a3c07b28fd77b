"""What candidates do on images: runs of certify in the folder of a choice, which can be resumed.

A round of the search is one run a model variant, of the images that are new in it and of all
candidates that are left: their masked images are evaluated together, each once. What the answers
alone take is found from these tables afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import json_of
from certmask_jax.certification import evaluation, verdicts
from certmask_jax.certification.answer_passes import answer_waves
from certmask_jax.certification.report import Report
from certmask_jax.certification.successive_halving import Demand, Measured
from certmask_jax.defenses import Defense
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.choosing.choose_candidates import Candidate
from certmask_jax.programs.choosing.choose_options import ChooseOptions, Variant
from certmask_jax.programs.choosing.image_halves import SomeImages
from certmask_jax.programs.choosing.wave_times import WaveTimes
from certmask_jax.programs.progress import Progress
from certmask_jax.tables import saved_table
from certmask_jax.tables.outputs import Outputs

_ANSWERS = "answers.json"
_BESIDE = "evaluated beside the table"


class Stopped(Exception):
    """There is no more time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Certified:
    """A finished run of some candidates: its report, and what their answers alone ask for.

    Attributes:
      answers: spec -> the waves of each image, in masked images; none where they were not asked
        for.
      times: of chunks, where a budget is of milliseconds.
    """

    report: Report
    answers: dict[str, list[list[int]]]
    candidates: Sequence[Candidate]
    times: WaveTimes | None = None

    def measured(
        self, candidate: Candidate, options: ChooseOptions, sizes: Sequence[str]
    ) -> Measured:
        """What one candidate did."""
        at = [one.spec for one in self.candidates].index(candidate.spec) * len(sizes)
        results = self.report.defenses[at : at + len(sizes)]
        certified = np.array([result.per_image["worst_case"] for result in results])
        right = results[-1].per_image["answer"] == self.report.per_image["label"]
        demands = []
        if options.least_clean is not None:
            demands.append(Demand(right, options.least_clean, "least clean"))
        for size, least in options.floors:
            demands.append(Demand(certified[sizes.index(size)], least, f"floor at {size}"))
        answers = self.answers.get(candidate.spec, [[]] * len(right))
        costs = candidate.costs(answers, options.budget_of, self.times)
        weighted = np.asarray(options.size_weights) @ certified.astype(np.float64)
        return Measured(weighted, costs, right, tuple(demands))


@dataclasses.dataclass(eq=False)
class Runs:
    """Makes and resumes the runs of a choice, and counts their passes.

    Attributes:
      jobs: one for each variant, by its name.
      folder: of the choice.
      deadline: in seconds of ``time.monotonic``.
      times: of chunks for each variant, where the budget is of milliseconds.
      passes: made for tables, in this session and before.
    """

    options: ChooseOptions
    jobs: dict[str, Job]
    folder: AnyPath
    deadline: float | None
    times: Mapping[str, WaveTimes] = dataclasses.field(default_factory=dict)
    passes: int = 0

    def certified(
        self, name: str, variant: Variant, candidates: Sequence[Candidate], images: SomeImages
    ) -> Certified:
        """Certifies candidates of one variant on some images.

        Args:
          name: of the run's folder.
          variant: of all these candidates.
          candidates, images: what is run.

        Raises:
          Stopped: when there is no more time.
          ValueError, OSError: as ``evaluation.evaluate``.
        """
        job, out = self.jobs[variant.name], self.folder / name
        defenses = [defense for one in candidates for defense in one.defenses]
        facts = {
            "defense": [one.spec for one in candidates],
            "chosen_images_sha256": fingerprint.of_arrays(np.asarray(images.places, np.int64)),
        }
        with Progress(
            defenses,
            margin_guard=variant.config.margin_guard,
            deadline=self.deadline,
            passes_each=candidates[0].passes_each,
        ) as progress:
            saved = evaluation.evaluate(
                images,
                job.model.apply_fn,
                job.params,
                defenses,
                out / "tables",
                preprocessing=job.preprocessing,
                decide=True,
                local=job.local,
                dropping=job.dropping,
                identity={**job.identity, **facts},
                provenance={**job.provenance, **facts},
                unreadable=job.unreadable,
                skip_unreadable=variant.config.data.on_unreadable == "skip",
                chunk=variant.config.chunk,
                hooks=progress.hooks(),
            )
        if saved is None:
            raise Stopped
        result = verdicts.certify(saved, defenses, margin_guard=variant.config.margin_guard)
        self.passes += int(result.forward_passes["made"])
        answers: dict[str, list[list[int]]] = {}
        if self.options.budget_of == "answer":
            answers = self._answers(job, candidates, images, saved, out / _ANSWERS)
        return Certified(result, answers, candidates, self.times.get(variant.name))

    def _answers(
        self,
        job: Job,
        candidates: Sequence[Candidate],
        images: SomeImages,
        saved: saved_table.SavedTable,
        file: AnyPath,
    ) -> dict[str, list[list[int]]]:
        """The waves of answers alone, from the file where an earlier session wrote them."""
        known = _read(file)
        lacking = _Lacking(job, images, saved, known.pop(_BESIDE, [0])[0])
        for one in candidates:
            if len(known.get(one.spec, ())) == int(saved.counted.sum()):
                continue
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise Stopped
            known[one.spec] = lacking.answers(one.defenses[0])
            content = {_BESIDE: [lacking.evaluated], **known}
            whole_files.write_text(file, json.dumps(content))
        self.passes += candidates[0].passes_each * lacking.evaluated
        return {one.spec: known[one.spec] for one in candidates}


@dataclasses.dataclass(eq=False)
class _Lacking:
    """Evaluates what a table lacks, on its images, with one engine for all that is asked."""

    job: Job
    images: SomeImages
    saved: saved_table.SavedTable
    evaluated: int = 0
    _engine: Any = None

    def answers(self, defense: Defense) -> list[list[int]]:
        rows = np.flatnonzero(self.saved.counted)
        engine = self.engine
        if not engine.by_items:  # a guard evaluates all then
            return [[len(defense.masked_images)]] * len(rows)
        table = self.saved.table.rows(self.saved.counted)

        def evaluate(at: NDArray[np.intp], columns: NDArray[np.intp]) -> Outputs:
            return self._evaluated(rows[at], columns)

        return answer_waves(table, defense, evaluate)

    @property
    def engine(self) -> Any:
        if self._engine is None:
            job, first = self.job, int(np.flatnonzero(self.saved.counted)[0])
            self._engine = engine_for(
                job.model.apply_fn,
                job.params,
                self.images.read(first, first + 1).images.shape[1:],
                self.saved.table.masked_images,
                preprocessing=job.preprocessing,
                local=job.local,
                dropping=job.dropping,
            ).for_blocks(None)
        return self._engine

    def _evaluated(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Outputs:
        """The model on items of images of the test set, some images at a time."""
        self.evaluated += len(rows)
        parts, order = [], []
        each = np.unique(rows)
        step = min(self.engine.images_at_once(), 256)
        for start in range(0, len(each), step):
            some = each[start : start + step]
            images = np.concatenate([self.images.read(int(r), int(r) + 1).images for r in some])
            mine = np.flatnonzero(np.isin(rows, some))
            of = np.searchsorted(some, rows[mine])
            parts.append(self.engine.evaluate(self.engine.upload(images), of, columns[mine]))
            order.append(mine)
        back = np.argsort(np.concatenate(order))
        joined = [
            np.concatenate([np.asarray(a) for a in column])[back]
            for column in zip(*parts, strict=True)
        ]
        return Outputs(*joined)


def joined(parts: Sequence[Measured]) -> Measured:
    """What was measured on several sets of images, as of all of them."""
    demands = [
        Demand(np.concatenate([one.holds for one in of_one]), of_one[0].least, of_one[0].name)
        for of_one in zip(*(part.demands for part in parts), strict=True)
    ]
    return Measured(
        np.concatenate([part.certified for part in parts]),
        np.concatenate([part.costs for part in parts]),
        np.concatenate([part.right for part in parts]),
        tuple(demands),
    )


def _read(file: AnyPath) -> dict[str, Any]:
    try:
        return dict(json_of(file.read_bytes()))
    except (OSError, ValueError):
        return {}
