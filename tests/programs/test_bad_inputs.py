"""Inputs that people have typed, or would: one line that names what is wrong, or the right numbers.

Every program, in this process. A bad input ends in status 2 and one line that begins with
``error: ``, before any long work and with nothing written.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from argparse import SUPPRESS
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image

from certmask_jax import models
from certmask_jax.programs import (
    attack,
    audit,
    benchmark,
    certify,
    commands,
    compare,
    convert_weights,
    leaderboard,
    merge,
    report,
    train,
)
from experiments import passes_front

PROGRAMS = {
    "certify": certify,
    "train": train,
    "convert": convert_weights,
    "merge": merge,
    "benchmark": benchmark,
    "attack": attack,
    "audit": audit,
    "compare": compare,
    "leaderboard": leaderboard,
    "report": report,
}
SHIPPED = models.default_weights(models.DEFAULT)


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
    with pytest.MonkeyPatch.context() as patched:
        small_runs.compile_once(patched)
        yield


def _refused(capsys, command, *words):
    """Runs a command in the folder that is current and checks how it fails."""
    name, *options = shlex.split(command)
    before = small_runs.contents(Path())
    assert PROGRAMS[name].main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.err.rstrip().endswith(line)  # nothing is done after it
    assert "Traceback" not in captured.err
    assert "image/s" not in captured.err  # no bar has begun
    for word in words:
        assert word in line, line
    assert small_runs.contents(Path()) == before
    return line


def _cases(text):
    """``command | word | word`` of each line, as parameters with the command as their id."""
    lines = [line.strip() for line in text.strip().splitlines()]
    parts = [[part.strip() for part in line.split(" | ")] for line in lines if line]
    return [pytest.param(command, words, id=command) for command, *words in parts]


# --- options that do not apply ---


@pytest.mark.parametrize(
    ("command", "words"),
    _cases("""
        certify --list --model vit_b16 | --model: has no use with --list
        certify --list --num-images 3 --out x | --num-images, --out: have no use with --list
        certify --dry-run --out x | --out: has no use | --dry-run
        certify --dry-run --max-minutes 3 | --max-minutes: has no use | --dry-run
        certify --dry-run --margin-guard 0 | --margin-guard: has no use | --dry-run
        certify --dry-run --format table | --format: has no use | --dry-run
        certify --whole-images | --whole-images: expected a model with local logits | vit_digits
        certify --weights-entry ema | --weights-entry: expected --weights
        certify --subset-seed 1 | --subset-seed: expected --num-images
        certify --only-classes | --only-classes: has no use as all 10 outputs | leave it out
        certify --on-unreadable skip | --on-unreadable: has no use with digits | embedded
        certify --defense smoothed_vit:band=2 --whole-images | --whole-images: has no use | alone
        certify --defense patchguard:clip=1 --fill gray | --fill: has no use | local logits alone
        certify --attention cudnn | error: --attention: expected cudnn on an NVIDIA GPU
        certify --labels x.csv | --labels: expected only with --dataset image_list | digits
        certify --data-dir d | --data-dir: expected none for digits
        certify --sizes 1-3 --patch 2 | --sizes: expected either --patch or --sizes, got both
        certify --sizes 1-3 --patch-area 2 | --sizes
        certify --patch-area 1% --patch 2 | --patch-area: expected it or --patch
        certify --patch 2+1 --patches 2 | --patch | without other shapes or --patches
        certify --patched 1 --patch 1,2 | --patched: expected one --patch of one size
        certify --gelu tanh --model resmlp_s12 --weights W | --gelu: expected only for ViTs
        certify --resize-positions --model cifar_resnet20 --weights W | --resize-positions | ViTs
        train --cutout-masks masks_per_axis=4 | --cutout-masks: has no use with --cutout random
        train --cutout-masks masks_per_axis=6 | --cutout-masks: has no use with --cutout random
        train --cutout none --cutout-size 3 | --cutout-size: has no use with --cutout none
        train --cutout mask_set --cutout-squares 1 | --cutout-squares: has no use | mask_set
        train --cutout none --cutout-patch 1 | --cutout-patch: has no use with --cutout none
        train --momentum 0.9 | --momentum: has no use with --optimizer adamw
        train --resume | --resume: expected a --run-folder
        train --checkpoint-every 5 | --checkpoint-every: expected a --run-folder
        train --keep-best 1 | --keep-best: expected a --run-folder
        train --memory-mb 2000 --input stream | --memory-mb: has no use with --input stream
        train --memory-mb 5 --input memory | --memory-mb: has no use with --input memory
        train --new-head | --new-head: expected --weights
        train --resize-positions | --resize-positions: expected --weights
        train --weights-entry ema | --weights-entry: expected --weights
        train --measure-input --out x.npz | --out: has no use with --measure-input
        train --measure-input 3 --run-folder r --resume | --run-folder, --resume: have no use
        train --measure-input --max-steps 4 | --max-steps: has no use with --measure-input
        train --train head | --train head: expected --weights to start from
        train --train last_block | --train last_block: expected --weights to start from
        train --copies 3 | --copies: has no use with --train all
        train --measure-input --train head --weights w.npz | --measure-input: has no use | head
        train --train head --cutout greedy --weights w.npz | --cutout: expected none, random
        train --gelu tanh --model cifar_resnet20 | --gelu: expected only for ViTs
        convert W x.npz --model vit_digits --seed 0 | --seed: has no use without --new-head
        convert W x.npz --model cifar_resnet20 --resize-positions | --resize-positions | ViTs
        benchmark --model nope --only passes | --model: has no use in passes
        benchmark --model cifar_resnet20 --only storage | --model: has no use in storage
        benchmark --only storage --images 32 | --images: has no use in storage
        benchmark --only storage --job '' | --job: has no use in storage
        benchmark --only speed --most-masks 40 | --most-masks: has no use in speed
        benchmark --only memory --chunk 4 | --chunk: has no use in memory
        benchmark --job '' --model vit_b16 | --model: has no use with --job
        benchmark --job '' --precision high | --precision: has no use with --job
        benchmark --job '--out x' --only speed | --job | --out: has no use
        benchmark --job '--from-tables x' | --job | --from-tables: has no use
    """),
)
def test_options_that_do_not_apply_are_refused_by_name(
    tmp_path, monkeypatch, capsys, command, words
):
    monkeypatch.chdir(tmp_path)
    _refused(capsys, command.replace(" W", f" {SHIPPED}"), *words)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--num-images", "6", "--patch", "1", "--patches", "2", "--chunk", "8"]
    defense = ["--defense", "minority_reports:masks_per_axis=2", "--out", str(out)]
    assert certify.main([*options, *defense]) == 0
    return out


@pytest.mark.parametrize(
    ("options", "words"),
    _cases("""
        --num-images 3 | --num-images: has no use with --from-tables
        --num-images 6 | --num-images: has no use with --from-tables
        --model vit_digits | --model: has no use with --from-tables
        --fill mean | --fill: has no use with --from-tables
        --dataset digits --split test | --dataset, --split: have no use with --from-tables
        --precision high | --precision: has no use
        --no-decide | --no-decide: has no use
        --decide | --decide: has no use
        --chunk 4 | --chunk: has no use
        --patched 1 | --patched: has no use
        --shard 0/1 | --shard: has no use
        --max-minutes 3 | --max-minutes: has no use
        --cpu-devices 1 | --cpu-devices: has no use
        --no-compilation-cache | --no-compilation-cache: has no use
        --dry-run | --dry-run: has no use
        --only-classes --on-unreadable skip | --only-classes, --on-unreadable: have no use
        --weights w.npz --num-classes 10 | --weights, --num-classes: have no use
        --patches 1 | --patches: expected the whole threat
        --patch-region 0,0,4,4 | --patch-region: expected the whole threat
    """),
)
def test_printing_again_takes_no_option_that_it_does_not_obey(
    small_run, tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tmp_path)
    _refused(capsys, f"certify --from-tables {shlex.quote(str(small_run))} {options}", *words)


# --- what cannot be read, or is nonsense ---


@pytest.mark.parametrize(
    ("command", "words"),
    _cases("""
        certify --patch -3 | --patch: expected pixels | '-3'
        certify --patch -3x4 | --patch: expected pixels | '-3x4'
        certify --patch=-1% | --patch: expected a number in (0, 100]
        certify --patch | --patch: expected a value
        certify --patch '' | --patch: expected sizes | ''
        certify --patch 0 | --patch: expected pixels | '0'
        certify --patch 0% | --patch: expected a number in (0, 100]
        certify --patch 101% | --patch: expected a number in (0, 100]
        certify --patch nan% | --patch: expected a number in (0, 100]
        certify --patch 5x | --patch: expected pixels | '5x'
        certify --patch x5 | --patch: expected pixels | 'x5'
        certify --patch 5, | --patch: expected sizes | '5,'
        certify --patch 1+ | --patch: expected sizes | '1+'
        certify --patch 1e3 | --patch: expected pixels | '1e3'
        certify --patch \u0663 | --patch: expected pixels
        certify --patch 9 | --patch: expected a patch that fits the image of 8x8
        certify --patch 99999999999999999999 | --patch: expected pixels
        certify --patch 100% | the default defense | --defense
        certify --patches 0 | --patches: expected at least 1, got 0
        certify --patches 1000 | --patches: expected at most 100
        certify --patches two | --patches: expected a whole number | 'two'
        certify --patch-area 1% | --patch-area: expected at least 1 pixel, but 1% of | are 0.64;
        certify --patch-area 0 | --patch-area: expected 1 to 64 pixels
        certify --patch-area -5 | --patch-area: expected 1 to 64 pixels | '-5'
        certify --patch-area 1,, | --patch-area | ''
        certify --patch-region 5,0,1,1 | --patch-region 5,0,1,1 | top < bottom
        certify --patch-region 0,0,9,9 | --patch-region 0,0,9,9 | bottom <= 8
        certify --patch-region 0,0,4 | --patch-region: expected TOP,LEFT,BOTTOM,RIGHT
        certify --patch-region -1,0,4,4 | --patch-region: expected TOP,LEFT,BOTTOM,RIGHT
        certify --patch 3 --patch-region 0,0,2,2 | --patch 3 | no 3x3 patch lies inside
        certify --sizes 5-1 | --sizes: expected patch sizes from the smallest
        certify --sizes 3,2 | --sizes
        certify --sizes 1-99 | --sizes: expected a patch that fits the image of 8x8
        certify --sizes all | --sizes: expected pixels | 'all'
        certify --fill red | --fill: expected mean | 'red'
        certify --fill grey | --fill | did you mean gray
        certify --fill 300 | --fill | [0, 255]
        certify --fill -1 | --fill | [0, 255]
        certify --fill nan | --fill | [0, 255]
        certify --fill 1,2 | --fill | '1,2'
        certify --fill 1,2,3 | --fill | (1.0, 2.0, 3.0)
        certify --fill '' | --fill: expected mean
        certify --defense '' | --defense: expected one of the | certify --list
        certify --defense doublemasking | --defense | did you mean double_masking
        certify --defense PatchCleanser | --defense | did you mean double_masking
        certify --defense patchguard++ | --defense | did you mean patchguard_pp
        certify --defense S-ViT | --defense | did you mean smoothed_vit
        certify --defense patchgard | --defense | did you mean patchguard
        certify --defense smoothd_vit | --defense | did you mean smoothed_vit
        certify --defense derandomised_smoothing | did you mean derandomized_smoothing
        certify --defense double_masking,masks_per_axis=6 | did you mean double_masking
        certify --defense double_masking: | --defense double_masking: | key=value
        certify --defense double_masking:masks_per_axis | key=value,key=value
        certify --defense double_masking:mask_per_axis=6 | did you mean masks_per_axis
        certify --defense double_masking:masks_per_axis=2,masks_per_axis=3 | each key once
        certify --defense double_masking:masks_per_axis=2, | key=value,key=value
        certify --defense double_masking:masks_per_axis=-1 | masks_per_axis: cannot read '-1'
        certify --defense double_masking:masks_per_axis=2.5 | masks_per_axis: cannot read '2.5'
        certify --defense double_masking:tau=1 | unknown option 'tau'
        certify --defense double_masking:ties=lagest | ties: expected 'largest'
        certify --defense minority_reports:tau=nan | tau: expected a confidence
        certify --defense minority_reports:tua=0.5 | did you mean tau
        certify --defense certmask:tiling=exat | tiling | did you mean exact
        certify --defense certmask_detection:tolerance=-1 | tolerance: expected 0 <= t
        certify --defense pair_cover:plane=6 | plane: expected an order
        certify --defense plurality --defense plurality | --defense: expected each one once
        certify --margin-guard nan | --margin-guard: expected at least 0
        certify --margin-guard -1 | --margin-guard: expected at least 0
        certify --max-minutes nan | --max-minutes: expected more than 0
        certify --max-minutes 0 | --max-minutes: expected more than 0
        certify --max-minutes inf | --max-minutes | finite
        certify --patched -1 | --patched: expected a seed of at least 0
        certify --shard 3/2 | --shard: expected I/N
        certify --shard -1/2 | --shard: expected I/N | '-1/2'
        certify --shard 1 | --shard: expected I/N
        certify --chunk 0 | --chunk: expected at least 1
        certify --chunk 1000000000 | --chunk: expected at most
        certify --cpu-devices 1000 | --cpu-devices: expected at most | cores
        certify --cpu-devices 0 | --cpu-devices: expected at least 1
        certify --distributed nonsense | --distributed: expected HOST:PORT,I/N
        certify --distributed host:1234,2/2 | --distributed: expected HOST:PORT,I/N
        certify --distributed host:99999,0/2 | --distributed: expected HOST:PORT,I/N
        certify --precision float32 | --precision: expected highest | highest is float32
        certify --precision higest | --precision | did you mean highest
        certify --input-size 0 | --input-size: expected pixels
        certify --input-size 7 | --input-size: expected multiples of the ViT's patch
        certify --input-size 1000000 | --input-size: expected at most
        certify --num-classes 0 | --num-classes: expected at least 1
        certify --num-classes 1000000000 | --num-classes: expected at most 32767
        certify --num-classes 5 | --num-classes: expected at least 10
        certify --num-images 0 | --num-images: expected at least 1
        certify --num-images -5 | --num-images: expected at least 1
        certify --num-images ten | --num-images: expected a whole number, got 'ten'
        certify --num-images 501 | --num-images | at most 500
        certify --num 10 | --num: there is no such option (did you mean --num-images?)
        certify --num-images 10 --num-images 20 | --num-images: expected once
        certify --model vit_digits --model vit_b16 | --model: expected once
        certify --decide --no-decide | --decide: expected once
        certify --decide=yes | --decide/--no-decide: expected no value
        certify extra | got 'extra'
        certify --model vit_digit | --model: expected one of | did you mean vit_digits
        certify --dataset digit | --dataset: expected one of | did you mean digits
        certify --model resnet18 | certify --list | did you mean | cifar_resnet
        certify --patches 99 | but 16^99 are 1.6e+119; use
        certify --dataset cifar10 | --model: expected a model for data set 'cifar10'
        certify --gelu relu | --gelu: expected one of exact, tanh, got 'relu'
        certify --pooling tokn | --pooling | did you mean token
        certify --split tst | --split: expected one of test, train
        certify --split test[5 | --split: expected test
        certify --format tabel | --format | did you mean table
        certify --from-tables no | expected a folder with a prediction table
        certify --weights no.npz | no.npz: expected a weights file
        train --learning-rate -1 | --learning-rate: expected more than 0
        train --learning-rate -1e-3 | --learning-rate: expected more than 0
        train --learning-rate nan | --learning-rate: expected more than 0 and finite
        train --learning-rate inf | --learning-rate: expected more than 0 and finite
        train --learning-rate 0 | --learning-rate: expected more than 0
        train --epochs 0 | --epochs: expected at least 1
        train --epochs -1 | --epochs: expected at least 1
        train --epochs 1.5 | --epochs: expected a whole number | '1.5'
        train --epochs 1000000000000 | --epochs: expected at most
        train --batch-size 0 | --batch-size: expected at least 1
        train --batch-size 100000 | --batch-size: expected at most the 1297 images
        train --batch-size 101 | --batch-size: expected a multiple of the 2 devices
        train --cutout-size 99 | --cutout-size: expected at most 8 on images of 8x8
        train --cutout-size 0 | --cutout-size: expected at least 1 pixel
        train --cutout-squares 0 | --cutout-squares: expected at least 1
        train --crop 99 | --crop: expected at most 8
        train --crop -1 | --crop: expected a finite number of at least 0
        train --shift nan | --shift: expected a finite number
        train --shift 99 | --shift: expected at most 8
        train --zoom 1 | --zoom: expected 0 <= zoom < 1
        train --rotate inf | --rotate: expected a finite number
        train --optimizer sgd --momentum 1.5 | --momentum: expected 0 <= momentum < 1
        train --weight-decay -1 | --weight-decay: expected a finite number of at least 0
        train --warmup 1.5 | --warmup: expected 0 <= warmup < 1
        train --label-smoothing 1 | --label-smoothing: expected 0 <= label_smoothing < 1
        train --ema 2 | --ema: expected 0 <= ema < 1
        train --optimizer adam | --optimizer | did you mean adamw
        train --cutout randm | --cutout | did you mean random
        train --compute float16 | --compute: expected one of float32, bfloat16
        train --train had | --train | did you mean head
        train --copies 0 --train head | --copies: expected at least 1
        train --recipe digit | --recipe | did you mean digits
        train --workers 0 | --workers: expected at least 1
        train --workers 100000 | --workers: expected at most 256
        train --memory-mb -1 | --memory-mb: expected at least 0
        train --test-images 0 | --test-images: expected at least 1
        train --held-out -1 | --held-out: expected at least 0
        train --held-out 1297 | --held-out 1297 | expected fewer than the 1297
        train --keep-best 0 --run-folder r | --keep-best: expected at least 1
        train --checkpoint-every 0 --run-folder r | --checkpoint-every: expected at least 1
        train --max-steps 0 | --max-steps: expected at least 1
        train --max-steps -5 | --max-steps: expected at least 1
        train --measure-input 0 | --measure-input: expected at least 1
        train --seed -1 | --seed: expected a seed of at least 0
        train --seed 99999999999 | --seed: expected a seed of at most
        train --cutout mask_set --cutout-patch 99 | --cutout-patch: expected a patch that fits
        train --cutout mask_set --cutout-patch -1 | --cutout-patch: expected pixels | '-1'
        train --cutout greedy --cutout-masks mask_per_axis=4 | --cutout-masks | masks_per_axis
        train --split tst | --split: expected one of test, train
        train --test-split trn | --test-split: expected one of test, train
        train --dataset digt | --dataset | did you mean digits
        train --model vit_digit | --model | did you mean vit_digits
        train --input-size 7 | --input-size: expected multiples
        train --epoch 5 | --epoch: there is no such option (did you mean --epochs?)
        train --on-unreadable ignore | --on-unreadable: expected one of stop, skip
        train --weights no.npz | no.npz: expected a weights file
        convert | IN, OUT: required
        convert no.npz x.npz | --model: required
        convert no.npz x.npz --model vit_digit | --model | did you mean vit_digits
        convert no.npz x.npz --model vit_digits | no.npz: expected a weights file
        convert no.npz x.txt --model vit_digits | x.txt | .safetensors
        convert a.npz b.npz c.npz --model vit_digits | got 'c.npz'
        convert a.npz b.npz --model vit_digits --modle x | --modle | did you mean --model
        convert W x.npz --model vit_digits --new-head --seed x | --seed | whole number
        convert W x.npz --model cifar_resnet20 | expected | cifar_resnet20
        convert W x.npz --model vit_digits --num-classes -1 | --num-classes: expected at least 1
        merge | RUN: required
        merge no | expected a folder with shares
        merge no --margin-guard nan | --margin-guard: expected at least 0
        merge no --margn-guard 1 | --margn-guard | did you mean --margin-guard
        merge a b | expected a folder with shares | --out
        merge a --out x --out y | --out: expected once
        benchmark --only sped | --only | did you mean speed
        benchmark --model nope --only speed | --model: expected one of
        benchmark --images 0 | --images: expected at least 1
        benchmark --repeat 0 | --repeat: expected at least 1
        benchmark --chunk -4 | --chunk: expected at least 1
        benchmark --precision float32 | --precision: expected one of highest
        benchmark --most-masks 0 --only memory | --most-masks: expected at least 36
        benchmark --job '--num 10' | --job | did you mean --num-images
        benchmark --job "'open" | --job
        benchmark --job '--defense nope' | --job | --defense: expected one of
        benchmark --job '--dataset digit' | --job | did you mean digits
        benchmark --cpu-devices 0 | --cpu-devices: expected at least 1
        benchmark --imags 3 | did you mean --images
    """),
)
def test_nonsense_is_refused_by_name(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    _refused(capsys, command.replace(" W", f" {SHIPPED}"), *words)


def test_nobody_is_blamed_for_a_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    region = "certify --patch-region 0,0,1,8 --input-size 64 --resize-positions"
    _refused(capsys, region, "--patch (the default of 1%)", "no 7x7 patch lies inside")


# --- files and folders ---


def _image(path, size=(8, 8), value=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def _classes(*names):
    for name in names:
        for number in range(2):
            _image(Path("d") / name / f"{number}.png")


def _make(what):
    """Makes what its name says in the folder that is current."""
    root, weights = Path("d"), dict(np.load(SHIPPED))
    first = next(name for name, array in weights.items() if array.ndim == 2)
    match what:
        case "empty":
            root.mkdir()
        case "no classes":
            _image(root / "a.png")
        case "splits":
            _image(root / "train" / "0" / "a.png")
            _image(root / "val" / "0" / "a.png")
        case "hidden":
            _image(root / ".ipynb_checkpoints" / "a.png")
            _image(root / "__MACOSX" / "a.png")
        case "words":
            _classes("cat", "dog")
        case "numbers":
            _classes("3", "5", "11")
        case "broken":
            _classes("0", "1")
            (root / "1" / "1.png").write_bytes(b"no image")
        case "cut":
            _classes("0", "1")
            whole = (root / "1" / "1.png").read_bytes()
            (root / "1" / "1.png").write_bytes(whole[:40])
        case "a file":
            root.write_text("no folder")
        case "list":
            _image(root / "a.png")
            Path("l.csv").write_text("file,label\na.png,3\nb.png,4\n")
        case "list of words":
            _image(root / "a.png")
            Path("l.csv").write_text("file,label\na.png,cat\n")
        case "index":
            _classes("cat", "dog")
            Path("i.json").write_text('{"cat": 3}')
        case "no index":
            _classes("cat", "dog")
            Path("i.json").write_text("{")
        case "int8":
            np.savez("w.npz", **{**weights, first: weights[first].astype(np.int8)})
        case "bool":
            np.savez("w.npz", **{**weights, first: weights[first] > 0})
        case "complex":
            np.savez("w.npz", **{**weights, first: weights[first].astype(complex)})
        case "objects":
            np.savez("w.npz", **{**weights, first: np.array(["a", None], object)})
        case "dates":
            np.savez("w.npz", **{**weights, first: weights[first].astype("datetime64[s]")})
        case "huge":
            np.savez("w.npz", **{**weights, first: weights[first].astype(float) * 1e300})
        case "nan":
            np.savez("w.npz", **{**weights, first: weights[first] * np.nan})
        case "shape":
            np.savez("w.npz", **{**weights, first: weights[first][:1]})
        case "missing":
            np.savez("w.npz", **{name: a for name, a in weights.items() if name != first})
        case "nothing":
            np.savez("w.npz")
        case "text":
            Path("w.npz").write_text("no weights")
        case "pages":
            Path("w.safetensors").write_text("<!DOCTYPE html>")
        case "w folder":
            Path("w.npz").mkdir()
        case "notes":
            Path("r").mkdir()
            Path("r/notes.txt").write_text("mine")
        case "a run that is a file":
            Path("r").write_text("mine")


_FOLDER = "certify --dataset image_folder --data-dir d --model vit_digits"
_LIST = "certify --dataset image_list --data-dir d --model vit_digits"


@pytest.mark.parametrize(
    ("what", "command", "words"),
    [
        ("empty", _FOLDER, ["d", "expected"]),
        ("no classes", _FOLDER, ["d", "expected"]),
        ("splits", _FOLDER, ["--split"]),
        ("hidden", _FOLDER, ["d", "expected"]),
        ("words", _FOLDER, ["2 classes", "--class-index"]),
        ("numbers", _FOLDER, ["11"]),
        ("broken", _FOLDER, ["1.png", "--on-unreadable skip"]),
        ("cut", _FOLDER + " --num-images 4", ["1.png", "--on-unreadable skip"]),
        ("a file", _FOLDER, ["d", "expected"]),
        ("none", _FOLDER, ["d", "expected"]),
        ("none", "certify --dataset image_folder --model vit_digits", ["--data-dir"]),
        ("none", _LIST, ["--labels"]),
        ("none", _LIST + " --labels l.csv", ["expected"]),
        ("list", _LIST + " --labels l.csv", ["b.png"]),
        ("list of words", _LIST + " --labels l.csv", ["cat"]),
        ("index", _FOLDER + " --class-index i.json", ["dog"]),
        ("no index", _FOLDER + " --class-index i.json", ["i.json"]),
        ("words", _FOLDER + " --class-index no.json", ["no.json"]),
        ("words", "train --dataset image_folder --data-dir d", ["d", "train"]),
        ("int8", "certify --weights w.npz", ["w.npz", "int8"]),
        ("bool", "certify --weights w.npz", ["w.npz", "bool"]),
        ("complex", "certify --weights w.npz", ["w.npz", "complex"]),
        ("objects", "certify --weights w.npz", ["w.npz"]),
        ("dates", "certify --weights w.npz", ["w.npz", "datetime64"]),
        ("huge", "certify --weights w.npz", ["w.npz", "finite"]),
        ("nan", "certify --weights w.npz", ["w.npz", "finite"]),
        ("shape", "certify --weights w.npz", ["w.npz", "shape"]),
        ("missing", "certify --weights w.npz", ["w.npz"]),
        ("nothing", "certify --weights w.npz", ["w.npz"]),
        ("text", "certify --weights w.npz", ["w.npz"]),
        ("pages", "certify --weights w.safetensors", ["w.safetensors"]),
        ("w folder", "certify --weights w.npz", ["w.npz"]),
        ("int8", "convert w.npz x.npz --model vit_digits", ["w.npz", "int8"]),
        ("nan", "convert w.npz x.npz --model vit_digits", ["w.npz", "finite"]),
        ("text", "train --weights w.npz", ["w.npz"]),
        ("text", "convert w.npz w.npz --model vit_digits", ["w.npz", "--overwrite"]),
        ("text", "train --out w.npz", ["w.npz", "--overwrite"]),
        ("notes", "certify --out r", ["--out", "r", "new or empty"]),
        ("notes", "certify --from-tables r", ["r", "prediction table"]),
        ("notes", "merge r", ["r", "shares"]),
        ("notes", "merge r r --out x", ["r"]),
        ("a run that is a file", "certify --out r", ["--out", "r"]),
        ("a run that is a file", "certify --from-tables r", ["r"]),
        ("a run that is a file", "train --run-folder r", ["r"]),
        ("notes", "benchmark --only storage --out r", ["--out", "r", "expected a file"]),
        ("none", "certify --weights gs://b/w.npz", ["--weights", "gs://"]),
        ("none", "certify --data-dir s3://b/d", ["--data-dir", "s3://"]),
        ("none", "train --out gs://b/w.npz", ["--out", "gs://"]),
        ("none", "convert hf://a/b x.npz --model vit_digits", ["IN", "hf://"]),
        ("none", "certify --weights ~nobody_at_all/w.npz", ["--weights", "~nobody_at_all"]),
        ("none", "certify --compilation-cache gs://b", ["--compilation-cache", "gs://"]),
    ],
)
def test_files_that_are_not_what_they_should_be(
    tmp_path, monkeypatch, capsys, what, command, words
):
    monkeypatch.chdir(tmp_path)
    _make(what)
    _refused(capsys, command, *words)


# --- odd, and right ---


def _results(*options):
    defense = ["--defense", "minority_reports:masks_per_axis=2", "--chunk", "8", "--out", "run"]
    assert certify.main([*options, *defense]) == 0
    results = json.loads(Path("run/results.json").read_text())
    shutil.rmtree("run")
    return results["num_images"], results["defenses"][0]


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("--num-images=+6 --patch 1", "--num-images 6 --patch 1"),
        ("--num-images ' 6 ' --patch 01", "--num-images 6 --patch 1"),
        ("--num-images 6 --patch 1X1", "--num-images 6 --patch 1"),
        ("--num-images 6 --fill 0.0 --patch 1", "--num-images 6 --fill black --patch 1"),
        ("--num-images 6 --shard 00/01 --patch 1", "--num-images 6 --patch 1"),
        ("--num-images 6 --patch 1 --model vit_digits", "--num-images 6 --patch 1"),
        ("--split 'test[:6]' --patch 1", "--num-images 6 --patch 1"),
    ],
)
def test_odd_spellings_give_the_same_numbers(tmp_path, monkeypatch, odd, plain):
    monkeypatch.chdir(tmp_path)
    assert _results(*shlex.split(odd)) == _results(*shlex.split(plain))


# Every way to give a command the folder of a run: what is typed beside it.
TAKE_A_RUN = [
    "attack {run}",
    "audit {run} --minutes 1",
    "certify --from-tables {run}",
    "compare {run}",
    "compare {run} {run}/two",
    "leaderboard {run} --out board",
    "merge {run}",
    "merge {run} --out whole",
    "merge {run} {run}/two --out whole",
    "report {run}",
    "report {run} {run}/two --out page.html",
]


def test_all_commands_that_take_a_run_are_here():
    """By the name that their options give it."""
    taking = set()
    for name in commands.PROGRAMS:
        module = importlib.import_module(f"certmask_jax.programs.{name.replace('-', '_')}")
        named = [action.metavar for action in module.parser()._actions if action.help != SUPPRESS]
        taking |= {name} if {"RUN", "RUN_FOLDER"} & {*named} else set()
    assert taking == {command.split()[0] for command in TAKE_A_RUN}


@pytest.mark.parametrize("command", TAKE_A_RUN)
def test_a_folder_that_is_not_there_is_no_run_that_lacks_a_file(
    tmp_path, monkeypatch, capsys, command
):
    """One that is there, without the file, is told apart; so is a file."""
    monkeypatch.chdir(tmp_path)
    gone, there, file = tmp_path / "gone", tmp_path / "there", tmp_path / "results.json"
    (there / "two").mkdir(parents=True)
    file.write_text("{}")
    line = _refused(capsys, command.format(run=gone), f"{gone}: expected ", " folder ")
    assert "got none: there is no such folder; check how its path is written" in line
    line = _refused(capsys, command.format(run=file), f"{file}: expected ", " folder ")
    assert "got a file; give the folder that it is in" in line
    line = _refused(capsys, command.format(run=there), f"{there}: expected ", " folder ")
    assert "got one without; " in line


def test_a_figure_of_runs_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    gone = tmp_path / "gone"
    assert passes_front.main([str(gone), "--figure", str(tmp_path / "figure.svg")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {gone}: expected the folder of a finished run")
    assert "got none: there is no such folder" in said


def test_an_attack_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _refused(
        capsys,
        "certify --dataset attacked:gone --model vit_digits",
        "gone: expected the folder of an attack, with attacks.jsonl, got none: there is no such",
    )
