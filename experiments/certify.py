"""Certifies a test set: one command in, one table out.

    python -m experiments.certify

runs the embedded default (real handwritten digits, the shipped model, a few defenses) in about a
minute on two cores. Everything else is an option; ``--help`` explains them, ``--list`` names what
there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from certmask_jax import certification, data, geometry, models, report, tables, weights
from certmask_jax.defenses import Defense
from certmask_jax.preprocessing import Preprocessing
from experiments import defense_specs

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

_NAMED_FILLS = {"black": (0.0,), "gray": (127.5,), "white": (255.0,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to certify; one field for each option of the command line."""

    dataset: str
    data_dir: Path | None
    split: str | None
    num_images: int | None
    model: str
    weights: Path | None
    num_classes: int | None
    input_size: tuple[int, int] | None
    patch_lives: str
    patches: tuple[str, ...]
    fill: str
    defenses: tuple[str, ...]
    precision: str
    chunk: int | None
    out: Path | None
    from_tables: Path | None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m experiments.certify",
        description="Certifies an image classifier against adversarial patches: runs the model on "
        "every masked image once, and reports what each defense answers and what is proved.",
        epilog="Example: --dataset cifar10 --data-dir DIR --model cifar_resnet20 --weights FILE "
        "--patch 5 --defense double_masking:masks_per_axis=6",
    )
    parse.add_argument("--list", action="store_true", help="name data sets, models and defenses")
    group = parse.add_argument_group("what is classified")
    group.add_argument("--dataset", default="digits", help="name (default: %(default)s)")
    group.add_argument("--data-dir", type=Path, help="where the data set was prepared")
    group.add_argument("--split", help="such as test, validation or test[300:400]")
    group.add_argument("--num-images", type=int, help="only the first N images")
    group = parse.add_argument_group("what classifies")
    group.add_argument("--model", help="name (default: the shipped model of the digits)")
    group.add_argument("--weights", type=Path, help=".npz or .safetensors with PyTorch names")
    group.add_argument("--num-classes", type=int, help="default: as many as the data set has")
    group.add_argument("--input-size", help="pixels that the model sees, N or HxW")
    group.add_argument(
        "--precision",
        default="highest",
        help="of products: highest (float32), high, default (the backend's), bfloat16; part of "
        "the result (default: %(default)s)",
    )
    group = parse.add_argument_group("what attacks and what defends")
    group.add_argument(
        "--patch",
        action="append",
        help="pixels (5, or 5x9: height x width) or percent of the pixels (2%%), of the image that "
        "the model sees, or see --patch-lives; repeat for several (default: 1%%)",
    )
    group.add_argument(
        "--patch-lives",
        choices=("input", "native"),
        default="input",
        help="in the image that the model sees, after any resize (the papers' way), or in the data "
        "set's own pixels: images are then masked first and resized on the device (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--defense",
        action="append",
        metavar="NAME[:key=value,...]",
        help="repeat for several; --list names them and their options (default: all of them)",
    )
    group.add_argument(
        "--fill",
        default="mean",
        help="what masked pixels become: mean (the model's mean colour), black, gray, white, or "
        "pixel values such as 128 or 124,116,104 (default: %(default)s)",
    )
    group = parse.add_argument_group("how it runs")
    group.add_argument("--chunk", type=int, help="masked images at once (default: chosen)")
    group.add_argument(
        "--out", type=Path, help="new folder for results (default: runs/DATASET-MODEL-TIME)"
    )
    group.add_argument(
        "--from-tables",
        type=Path,
        metavar="RUN",
        help="print the defenses again from the tables of a run folder, without a model",
    )
    return parse


def read_config(arguments: argparse.Namespace) -> Config:
    """Arguments -> config; ``ValueError`` for numbers that make no sense."""
    for name in ("num_images", "num_classes", "chunk"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    data.check_name(arguments.dataset)
    model = arguments.model
    if model is None:
        if arguments.dataset != "digits" and arguments.from_tables is None:
            raise ValueError(
                f"--model: expected a model for data set {arguments.dataset!r} (--list names "
                "them); only digits has a default"
            )
        model = models.DEFAULT
    size = arguments.input_size
    return Config(
        dataset=arguments.dataset,
        data_dir=arguments.data_dir,
        split=arguments.split,
        num_images=arguments.num_images,
        model=model,
        weights=arguments.weights,
        num_classes=arguments.num_classes,
        input_size=None if size is None else geometry.as_size(defense_specs.size(size)),
        patch_lives=arguments.patch_lives,
        patches=tuple(arguments.patch or ()),
        fill=arguments.fill,
        defenses=tuple(arguments.defense or ()),
        precision=arguments.precision,
        chunk=arguments.chunk,
        out=arguments.out,
        from_tables=arguments.from_tables,
    )


def run(config: Config, command: str) -> None:
    """Certifies, writes the run folder and prints the table."""
    started = time.monotonic()
    dataset, model = _opened(config)
    input_size = model.data_config.input_size
    preprocessing = Preprocessing(
        mean=model.data_config.mean,
        std=model.data_config.std,
        fill=_fill(config.fill),
        precision=config.precision,  # type: ignore[arg-type]  # checked there
        resize_to=None if dataset.image_size == input_size else input_size,
    )
    patches = config.patches or ("1%",)
    specs = config.defenses or DEFAULT_DEFENSES
    defenses = build_defenses(specs, patches, dataset.image_size)
    path = config.weights or models.default_weights(config.model)
    if path is None:
        raise ValueError(
            f"--weights: expected a file for model {config.model!r}; only {models.DEFAULT} ships "
            "with weights"
        )
    params = weights.load(path, model)
    out = config.out or Path("runs") / (
        f"{config.dataset}-{config.model}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"--out {out}: expected a new or empty folder, but it holds files, perhaps of another "
            "run; choose another name, or use --from-tables to print that run again"
        )
    provenance = {
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dataset": config.dataset,
        "split": dataset.split,
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "model": config.model,
        "weights": path.name,
        "weights_sha256": weights.digest(params),
        "data_config": dataclasses.asdict(model.data_config),
        "precision": config.precision,
        "fill": config.fill,
        "patch": list(patches),
        "patch_lives": _PATCH_LIVES[config.patch_lives],
        "defense": list(specs),
    }
    for defense in defenses:
        _say(str(defense))
    every = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log wants fewer lines
    with tqdm(unit="image", unit_scale=True, desc="masked images", mininterval=every) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        saved = certification.evaluate(
            dataset,
            model.apply_fn,
            params,
            defenses,
            out / "tables",
            preprocessing=preprocessing,
            provenance=provenance,
            chunk=config.chunk,
            progress=advance,
        )
    model_seconds = time.monotonic() - started
    result = certification.certify(saved, defenses)
    seconds = {"evaluation": round(model_seconds, 2), "all": round(time.monotonic() - started, 2)}
    result = dataclasses.replace(result, provenance={**result.provenance, "seconds": seconds})
    report.write(result, out)
    print(f"\n{report.as_text(result)}")
    print(f"\nresults in {out}: results.json, per_image.csv, tables ({seconds['all']:.0f} s)")


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


def read_patch(text: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """``"5"``, ``"5x9"`` (height x width) or ``"2.4%"`` of the pixels -> pixels."""
    if text.endswith("%"):
        try:
            percent = float(text[:-1])
        except ValueError as error:
            raise ValueError(f"--patch: expected a percent such as 2.4%, got {text!r}") from error
        return geometry.patch_size_from_percent(percent, image_size)
    patch = geometry.as_size(defense_specs.size(text), "--patch")
    geometry.check_patch_fits(image_size, patch)
    return patch


def _opened(config: Config) -> tuple[Any, Any]:
    """The data set and the model; the model's data config prepares the images."""
    model = models.create(
        config.model, num_classes=config.num_classes, input_size=config.input_size
    )
    dataset = data.load(
        config.dataset,
        data_config=model.data_config,
        split=config.split,
        data_dir=config.data_dir,
        num_images=config.num_images,
        native=config.patch_lives == "native",
    )
    if config.num_classes is None and dataset.num_classes != model.num_classes:
        model = models.create(
            config.model, num_classes=dataset.num_classes, input_size=config.input_size
        )
    if dataset.num_classes > model.num_classes:
        raise ValueError(
            f"--num-classes: expected at least {dataset.num_classes} for data set "
            f"{config.dataset!r}, whose labels lie in 0..{dataset.num_classes - 1}, got "
            f"{model.num_classes}"
        )
    return dataset, model


def _fill(text: str) -> tuple[float, ...] | None:
    if text == "mean":
        return None
    if text in _NAMED_FILLS:
        return _NAMED_FILLS[text]
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--fill: expected mean, {', '.join(_NAMED_FILLS)}, or pixel values such as 128 or "
            f"124,116,104, got {text!r}"
        ) from error


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
        _say("interrupted")
        return 130
    return 0


def _message(error: Exception) -> str:
    """The text of an error; of an OSError of ours without its number in front."""
    is_ours = isinstance(error, OSError) and error.filename is None
    return str(getattr(error, "strerror", None) or error) if is_ours else str(error)


if __name__ == "__main__":
    sys.exit(main())
