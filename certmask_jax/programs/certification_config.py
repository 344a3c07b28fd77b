"""The config that a command line of certification comes down to, and what does not go together."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from certmask_jax import models
from certmask_jax.files import storage
from certmask_jax.inference import views
from certmask_jax.programs import (
    data_options,
    defense_specs,
    evidence_entries,
    model_options,
    page_options,
    parts_options,
    runtime,
    threat_options,
)
from certmask_jax.programs.certification_options import PRECISIONS
from certmask_jax.programs.chosen_model import ModelOptions
from certmask_jax.programs.command_line import as_options, check_not_typed, check_uses, hint
from certmask_jax.programs.data_options import DataOptions
from certmask_jax.programs.page_options import PageOptions
from certmask_jax.programs.parts_options import PartsOptions
from certmask_jax.programs.runtime import Runtime
from certmask_jax.programs.threat_options import ThreatOptions
from certmask_jax.weights import kinds

_OF_THREAT = ("patch", "patch_area", "sizes", "patches", "patch_region")
_OF_TABLES = (*_OF_THREAT, "from_tables", "defense", "margin_guard", "format", "out")
_OF_WRITING = (
    *("margin_guard", "max_minutes", "format", "out", "page"),
    *page_options.DESTINATIONS,
)
_NAMED_FILLS = {"black": (0.0,), "gray": (127.5,), "white": (255.0,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to certify; one field for each option of the command line."""

    data: DataOptions
    model: ModelOptions
    patch_lives: str
    threat: ThreatOptions
    patched: int | None
    fill: str
    defenses: tuple[str, ...]
    precision: str
    views: str
    two_parts: PartsOptions | None
    hidden_tokens: str
    decide: bool
    whole_images: bool
    chunk: int | None
    margin_guard: float
    shard: tuple[int, int]
    max_minutes: float | None
    keep_evidence: bool
    page: bool
    shown: PageOptions
    dry_run: bool
    runtime: Runtime
    out: storage.AnyPath | None
    from_tables: storage.AnyPath | None
    format: str


def check_modes(arguments: argparse.Namespace) -> None:
    """Refuses options that what is asked for has no use for.

    Raises:
      ValueError: naming them.
    """
    if arguments.list:
        check_uses(arguments, ("list",), "with --list, which names what there is and does no more")
    if arguments.dry_run:
        check_not_typed(arguments, _OF_WRITING, "as --dry-run prints no results and writes none")
    if arguments.from_tables is None:
        _check_on_evidence(arguments)
        if arguments.dataset == "digits":
            check_not_typed(arguments, ("on_unreadable",), "with digits, which are embedded")


def check_from_tables(arguments: argparse.Namespace) -> None:
    """Refuses options that ``--from-tables`` has no use for; ``ValueError`` names them."""
    check_uses(
        arguments,
        _OF_TABLES,
        "with --from-tables, which prints what the tables of a run hold (another data set, model "
        "or fill is another run)",
    )
    placed = [arguments.typed[d] for d in ("patches", "patch_region") if d in arguments.typed]
    if placed and not (arguments.patch or arguments.patch_area or arguments.sizes):
        raise ValueError(
            f"{', '.join(placed)}: expected the whole threat with --from-tables, --patch (or "
            "--patch-area, --sizes) too; without any of them it is that of the run"
        )


def read_config(arguments: argparse.Namespace) -> Config:
    """Arguments -> config, after ``check_modes``; ``ValueError`` for what is not possible."""
    if arguments.precision not in PRECISIONS:
        like = hint(arguments.precision, PRECISIONS)
        raise ValueError(
            f"--precision: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got "
            f"{arguments.precision!r}{like or ' (highest is float32)'}"
        )
    with as_options("views"):
        views.read(arguments.views)
    read_fill(arguments.fill)
    for place, spec in enumerate(arguments.defense or ()):
        defense_specs.check(spec)
        if spec in arguments.defense[:place]:
            raise ValueError(f"--defense: expected each one once, got {spec} twice")
    chosen = data_options.read(arguments)
    model = arguments.model
    if model is None and not model_options.may_say_model(arguments.weights):
        if arguments.dataset != "digits" and arguments.from_tables is None:
            if isinstance(arguments.weights, Path):
                kinds.check_there(arguments.weights)
            raise ValueError(
                f"--model: expected a model for data set {arguments.dataset!r} (--list names "
                "them); only digits has a default"
            )
        model = models.DEFAULT
    if arguments.weights is None and arguments.weights_entry is not None:
        raise ValueError("--weights-entry: expected --weights, a file to find it in, beside it")
    return Config(
        data=chosen,
        model=model_options.read(arguments, model=model),
        patch_lives=arguments.patch_lives,
        threat=threat_options.read(arguments),
        patched=arguments.patched,
        fill=arguments.fill,
        defenses=tuple(arguments.defense or ()),
        precision=arguments.precision,
        views=arguments.views,
        two_parts=parts_options.read(arguments.two_parts),
        hidden_tokens=arguments.hidden_tokens,
        decide=arguments.decide,
        whole_images=arguments.whole_images,
        chunk=arguments.chunk,
        margin_guard=arguments.margin_guard,
        shard=read_shard(arguments.shard),
        max_minutes=arguments.max_minutes,
        keep_evidence=arguments.keep_evidence,
        page=arguments.page,
        shown=page_options.read(arguments),
        dry_run=arguments.dry_run,
        runtime=runtime.read(arguments),
        out=arguments.out,
        from_tables=arguments.from_tables,
        format=arguments.format,
    )


def _check_on_evidence(arguments: argparse.Namespace) -> None:
    """Refuses options that defenses on evidence, where there are no others, have no use for."""
    specs = arguments.defense or ()
    if not specs or not all(map(evidence_entries.is_on_evidence, specs)):
        return
    check_not_typed(
        arguments,
        ("whole_images",),
        "with defenses on evidence alone, which evaluate no masked image (--keep-evidence keeps "
        "what they see, for other defenses later)",
    )
    if all(map(evidence_entries.is_local, specs)):
        mode = "with defenses on local logits alone, of which the model sees images as they are"
        check_not_typed(arguments, ("fill",), mode)


def read_shard(text: str) -> tuple[int, int]:
    """``"0/4"`` -> (0, 4)."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"--shard: expected I/N with I from 0 to N-1, such as 0/4 to 3/4, got {text!r}"
        )
    return int(match[1]), int(match[2])


def read_fill(text: str) -> tuple[float, ...] | None:
    """``"mean"`` -> None, a named or numbered fill -> pixel values in 0 to 255, per channel."""
    if text == "mean":
        return None
    if text in _NAMED_FILLS:
        return _NAMED_FILLS[text]
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--fill: expected mean, {', '.join(_NAMED_FILLS)}, or pixel values such as 128 or "
            f"124,116,104, got {text!r}{hint(text, ('mean', *_NAMED_FILLS))}"
        ) from error
    if len(values) not in (1, 3) or not all(0 <= value <= 255 for value in values):
        raise ValueError(
            f"--fill: expected one pixel value in [0, 255], or one for each of three channels, got "
            f"{text!r}"
        )
    return values
