"""Certifies a test set: one command in, one table out.

    python -m experiments.certify

runs the embedded default (real handwritten digits, the shipped model, a few defenses) in about a
minute on two cores. Everything else is an option; ``--help`` explains them, ``--list`` names what
there is. A run that was stopped, however, goes on when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from certmask_jax import certification, data, fingerprint, models, report, tables, weights
from certmask_jax.defenses import Defense
from certmask_jax.preprocessing import Preprocessing
from certmask_jax.storage import AnyPath
from experiments import defense_specs
from experiments.certification_options import Config, parser, read_config, read_fill, read_patch

DEFAULT_DEFENSES = (
    "double_masking",
    "challenger_masking",
    "minority_reports",
    "certmask:tiling=exact,coverage=2x2",
    "certmask_detection:tiling=exact,coverage=2x2,tolerance=3",
)

_PATCH_LIVES = {
    "input": "in the image that the model sees, after any resize",
    "native": "in the data set's own pixels; masked images are resized",
}


def run(config: Config, command: str) -> None:
    """Certifies, writes the run folder and prints the table."""
    started = time.monotonic()
    dataset, model = _opened(config)
    input_size = model.data_config.input_size
    preprocessing = Preprocessing(
        mean=model.data_config.mean,
        std=model.data_config.std,
        fill=read_fill(config.fill),
        precision=config.precision,  # type: ignore[arg-type]  # checked there
        resize_to=None if dataset.image_size == input_size else input_size,
    )
    patches = config.patches or ("1%",)
    specs = config.defenses or DEFAULT_DEFENSES
    defenses = build_defenses(specs, patches, dataset.image_size)
    path = config.model.weights or models.default_weights(config.model.model)
    if path is None:
        raise ValueError(
            f"--weights: expected a file for model {model.name!r}; only {models.DEFAULT} ships "
            "with weights"
        )
    params = config.model.load(path, model)
    identity = {
        "dataset": config.dataset,
        "split": dataset.split,
        "model": model.name,
        "model_options": config.model.about(),
        "weights_sha256": weights.digest(params),
        "data_config": dataclasses.asdict(model.data_config),
        "precision": config.precision,
        "fill": config.fill,
        "patch": list(patches),
        "patch_lives": _PATCH_LIVES[config.patch_lives],
        "defense": list(specs),
        "decide": config.decide,
    }
    provenance = {
        **identity,
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "weights": path.name,
    }
    out = config.out or Path("runs") / _run_name(config, dataset, identity)
    _check_out(out)
    for defense in defenses:
        _say(str(defense))
    every = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log wants fewer lines
    computed = 0
    with tqdm(unit="image", unit_scale=True, desc="masked images", mininterval=every) as bar:

        def advance(done: int, total: int, now: bool) -> None:
            nonlocal computed
            bar.total = total
            if now:
                computed += done
                bar.update(done)
            else:  # counted, but not as speed: the time left is that of what is computed
                bar.n += done
                bar.initial += done
                bar.last_print_n += done

        saved = certification.evaluate(
            dataset,
            model.apply_fn,
            params,
            defenses,
            out / "tables",
            preprocessing=preprocessing,
            decide=config.decide,
            identity=identity,
            provenance=provenance,
            chunk=config.chunk,
            progress=advance,
            damaged=lambda line: bar.write(f"warning: {line}", file=sys.stderr),
        )
    model_seconds = time.monotonic() - started
    result = certification.certify(saved, defenses)
    seconds = {"evaluation": round(model_seconds, 2), "all": round(time.monotonic() - started, 2)}
    session = {"seconds": seconds, "masked_images_settled": computed}  # evaluated or needless
    result = dataclasses.replace(result, provenance={**result.provenance, **session})
    was_complete = not computed and all((out / name).is_file() for name in report.FILES)
    if not was_complete:
        report.write(result, out)
    print(f"\n{report.as_text(result)}")
    if was_complete:
        print(f"\nthis run was complete already: printed again from {out}, nothing computed")
    else:
        print(f"\nresults in {out}: results.json, per_image.csv, tables ({seconds['all']:.0f} s)")


def _run_name(config: Config, dataset: data.Dataset, identity: dict[str, Any]) -> str:
    """The same for the same command on the same machine, so that it finds what it began."""
    facts = {
        **identity,
        **fingerprint.of_environment(),
        "num_images": len(dataset),
        "first_image_sha256": fingerprint.of_arrays(dataset.read(0, 1).images),
        "chunk": config.chunk,
    }
    return f"{config.dataset}-{identity['model']}-{fingerprint.of_facts(facts)[:8]}"


def _check_out(out: AnyPath) -> None:
    """Refuses a folder with files and without a table; whose table it is, ``evaluate`` checks."""
    if not out.exists() or (out / "tables").is_dir():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise FileExistsError(
            f"--out {out}: expected a new or empty folder, or this same run to go on with, but it "
            "holds files, perhaps of another run; choose another name"
        )


def run_from_tables(config: Config) -> None:
    """Prints the defenses of an earlier run again, or others that its tables suffice for."""
    assert config.from_tables is not None
    folder = config.from_tables
    saved = tables.load(folder / "tables" if (folder / "tables").is_dir() else folder)
    known = saved.about.get("provenance", {})
    patches = config.patches or tuple(known.get("patch", ()))
    specs = config.defenses or tuple(known.get("defense", ()))
    if not patches or not specs:
        raise ValueError(f"{folder}: its tables name no defenses; give --patch and --defense")
    image_size = saved.table.masked_images.image_size
    defenses = build_defenses(specs, patches, image_size)
    result = certification.certify(saved, defenses)
    print(report.as_text(result))
    if config.out is not None:
        if config.out.exists() and any(config.out.iterdir()):
            raise FileExistsError(f"--out {config.out}: expected a new or empty folder")
        config.out.mkdir(parents=True, exist_ok=True)
        report.write(result, config.out)


def build_defenses(
    specs: Sequence[str], patches: Sequence[str], image_size: tuple[int, int]
) -> list[Defense]:
    """Every defense for every patch."""
    sizes = [read_patch(text, image_size) for text in patches]
    return [defense_specs.build(spec, image_size, patch) for patch in sizes for spec in specs]


def _opened(config: Config) -> tuple[Any, Any]:
    """The data set and the model; the model's data config prepares the images."""
    model = config.model.create()
    dataset = data.load(
        config.dataset,
        data_config=model.data_config,
        split=config.split,
        data_dir=config.data_dir,
        num_images=config.num_images,
        native=config.patch_lives == "native",
    )
    if dataset.num_classes != model.num_classes:
        model = config.model.create(num_classes=dataset.num_classes)
    if dataset.num_classes > model.num_classes:
        raise ValueError(
            f"--num-classes: expected at least {dataset.num_classes} for data set "
            f"{config.dataset!r}, whose labels lie in 0..{dataset.num_classes - 1}, got "
            f"{model.num_classes}"
        )
    return dataset, model


def _list() -> None:
    for title, names in (
        ("data sets", data.names()),
        ("models", models.names()),
        ("defenses", defense_specs.DESCRIPTIONS),
    ):
        print(f"{title}:")
        width = max(map(len, names))
        for name, line in names.items():
            print(f"  {name.ljust(width)}  {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input, 130 when interrupted)."""
    arguments = parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        if arguments.list:
            _list()
            return 0
        config = read_config(arguments)
        if config.from_tables is not None:
            run_from_tables(config)
        else:
            run(config, shlex.join(["python", "-m", "experiments.certify", *words]))
    except (ValueError, OSError) as error:
        _say(f"error: {_message(error)}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; give the same command again to go on")
        return 130
    return 0


def _message(error: Exception) -> str:
    """The text of an error; of an OSError of ours without its number in front."""
    is_ours = isinstance(error, OSError) and error.filename is None
    return str(getattr(error, "strerror", None) or error) if is_ours else str(error)


if __name__ == "__main__":
    sys.exit(main())
