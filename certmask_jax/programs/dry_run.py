"""``--dry-run``: what a run would take, from ten seconds of it."""

from __future__ import annotations

from certmask_jax._text import counted
from certmask_jax.certification import planning
from certmask_jax.certification.evidence_planning import seconds_an_image
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.evidence_job import EvidenceJob, images_of_share, plan_of
from certmask_jax.tables.image_sets import TestSet, readable


def plan_text(config: Config, job: Job) -> str:
    """What the run would take, in lines; some of it is run to measure it."""
    images = readable(job.dataset, job.unreadable)
    kept = job.model.num_classes if config.keep_evidence else None
    lines = []
    if job.evidence is not None:
        lines = plan_of(job.evidence, len(images), shard=config.shard, kept=kept)
        lines.append(_time_of(config, job, job.evidence, images))
    return "\n".join([*lines, *(_plan_of_table(config, job, images) if job.defenses else ())])


def _time_of(config: Config, job: Job, evidence: EvidenceJob, images: TestSet) -> str:
    each, measured_on = seconds_an_image(
        images,
        evidence.local,
        job.params,
        evidence.defenses,
        apply_fn=evidence.apply_fn,
        dropping=evidence.dropping,
        preprocessing=job.preprocessing,
        chunk=config.chunk,
    )
    count = images_of_share(len(images), config.shard)
    return (
        f"time: {_duration(each * count)} expected, at {1 / each:,.1f} images/s (measured on "
        f"{counted(measured_on, 'image')}), and start-up"
    )


def _plan_of_table(config: Config, job: Job, images: TestSet) -> list[str]:
    plan = planning.plan(
        images,
        job.model.apply_fn,
        job.params,
        job.defenses,
        preprocessing=job.preprocessing,
        decide=config.decide,
        local=job.local,
        dropping=job.dropping,
        share=config.shard,
        chunk=config.chunk,
    )
    each = plan.flops_a_pass
    empty = max(0.0, 1 - plan.passes_expected / max(plan.slots_expected, 1e-9))
    share = "" if config.shard[1] == 1 else f" (share {config.shard[0]} of {config.shard[1]})"
    stem = f", beside {plan.stem_passes:,} of the stem" if plan.stem_passes else ""
    return [
        f"{counted(plan.num_images, 'image')}{share}, "
        f"{counted(plan.masked_images, 'masked image')} each",
        f"forward passes: at most {plan.passes_most:,}, expected {plan.passes_expected:,.0f} "
        f"({plan.passes_expected / plan.num_images:.1f} an image){stem}",
        "operations: unknown"
        if each is None
        else f"operations: {each * plan.passes_expected + plan.stem_passes * plan.flops_a_stem:.3g}"
        f" FLOP expected ({each:.3g} a pass)",
        f"table on disk: at most {plan.table_bytes / 1e6:,.1f} MB, in blocks of "
        f"{counted(plan.images_per_block, 'image')}",
        f"time: {_duration(plan.seconds_expected)} expected, at {plan.passes_per_second:,.0f} "
        f"passes/s in chunks of {plan.chunk}, {empty:.0%} of them padding (measured on "
        f"{counted(plan.calibrated_on, 'image')}), and start-up",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
