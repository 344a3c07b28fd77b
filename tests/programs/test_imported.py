"""A user's own models, data sets and defenses: by import path, and as entry points."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from certmask_jax import weights
from certmask_jax.defenses.defense import json_able
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import (
    certify,
    chosen_model,
    defense_entries,
    defense_specs,
    evidence_entries,
    imported,
    keys_of_signatures,
    listings,
)

ROOT = Path(__file__).resolve().parents[2]
# What pip makes of the entry point.
SCRIPT = "import sys; from certmask_jax.programs.commands import main; sys.exit(main())"

MINE = '''
from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax

from certmask_jax import data, defenses, weights
from certmask_jax.defenses.band_defense import SmoothedViT
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.models import DataConfig, Model


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, name="head")(images.reshape(images.shape[0], -1))


def create(*, num_classes=10):
    module = Net(num_classes)
    config = DataConfig((8, 8), (0.3,), (0.4,), channels=1)
    return Model("net", num_classes, module, module, config, module.apply)


def load(*, data_config, split="test", num_images=None):
    return data.load("digits", data_config=data_config, split=split, num_images=num_images)


def votes(masks, *, ties: Literal["largest", "smallest"] = "largest", times=1, against=None):
    """Votes of my own.

    More words.
    """
    assert times in (1, (2, 3), "word"), times
    return defenses.plurality(masks, ties=ties, against=against)


class Two:
    def __new__(cls, masks, second=None, *, ties: str = "largest"):
        return defenses.double_masking(masks, second, ties=ties)


@dataclasses.dataclass(frozen=True, repr=False)
class Most(defenses.Defense):
    tolerance: int = 0
    share: float | None = None
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Bands(SmoothedViT):
    """Bands of my own."""

    extra: int = 0


@dataclasses.dataclass(frozen=True, repr=False)
class Cells(PatchGuard):
    """Cells of my own."""

    extra: int = 0


def nothing(masks):
    return None


def fails(masks):
    return 1 / 0


def leaves(masks):
    raise SystemExit(3)


def no_masks(*, ties="largest"):
    return None


number = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder, which is current, with a module of a user's own; gone from Python after it."""
    (tmp_path / "mine_of_theirs.py").write_text(MINE)
    (tmp_path / "broken_of_theirs.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "leaving_of_theirs.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "wrong_of_theirs.py").write_text("x = (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    imported.attribute.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_of_theirs")]:
        del sys.modules[name]
    imported.attribute.cache_clear()


def _build(spec):
    return defense_specs.build(spec, (16, 16), Threat.of(16, 3))


# --- defenses ---


def test_a_defense_by_its_import_path(mine):
    spec = "mine_of_theirs:votes:ties=smallest,masks_per_axis=2"
    defense = _build(spec)
    assert (defense.name, defense.spec, defense.options["ties"]) == ("plurality", spec, "smallest")
    assert len(defense.mask_set) == 4
    usual = _build("plurality").mask_set
    assert (_build("mine_of_theirs:votes").mask_set.boxes == usual.boxes).all()
    larger = _build("mine_of_theirs:votes:built_for=5,masks_per_axis=2")
    assert (larger.mask_set.patch_size, larger.threat) == ((5, 5), Threat.of(16, 3))
    two = _build("mine_of_theirs:Two:masks_per_axis=2,second_masks_per_axis=3")
    assert (len(two.mask_set), len(two.second_set)) == (4, 9)


def test_a_defense_on_evidence_by_its_import_path(mine, capsys):
    entry = evidence_entries.entry_of("mine_of_theirs:Bands:band=2")
    assert (entry.name, entry.about, entry.is_local) == (
        "mine_of_theirs:Bands", "Bands of my own", False,
    )  # fmt: skip
    assert {"band", "stride", "extra"} <= {key.name for key in entry.keys}
    cells = evidence_entries.entry_of("mine_of_theirs:Cells")
    assert cells.is_local
    assert {key.name for key in cells.keys} == {"clip", "threshold", "extra"}
    for other in ("mine_of_theirs:votes", "mine_of_theirs:Most", "double_masking", "no:where"):
        assert not evidence_entries.is_on_evidence(other)
    words = ["--num-images", "6", "--defense", "smoothed_vit:band=2", "--out", str(mine / "run")]
    own = "mine_of_theirs:Bands:band=2,extra=3"
    assert certify.main([*words, "--defense", own]) == 0
    results = json.loads((mine / "run" / "results.json").read_text())
    plain, mine_too = results["defenses"]
    assert mine_too["spec"] == own
    for name in ("clean_accuracy", "worst_case_accuracy", "intervals"):
        assert mine_too[name] == plain[name]
    assert certify.main(["--num-images", "6", "--defense", "mine_of_theirs:Bands:bant=2"]) == 2
    assert "unknown option 'bant' (did you mean band?)" in capsys.readouterr().err
    assert certify.main(["--num-images", "6", "--defense", "mine_of_theirs:Cells"]) == 2
    assert "expected a model with local logits" in capsys.readouterr().err


def test_keys_come_from_the_signature(mine):
    entry = defense_entries.entry("mine_of_theirs:votes")
    assert [(key.name, key.default) for key in entry.keys] == [("ties", "largest"), ("times", "1")]
    assert (entry.about, entry.second_round) == ("Votes of my own", False)
    _build("mine_of_theirs:votes:times=1")  # without a type: as Python writes it, else as it stands
    _build("mine_of_theirs:votes:times=word")
    assert keys_of_signatures._literal("(2, 3)") == (2, 3)
    of_class = {key.name: key.read for key in defense_entries.entry("mine_of_theirs:Most").keys}
    assert set(of_class) == {"tolerance", "share", "sizes"}
    assert of_class["sizes"]("(2, 3)") == (2, 3)
    for key, text, message in (
        ("sizes", "x", "expected a tuple as Python writes it"),
        ("sizes", "3", "expected a tuple"),
        ("share", "nan", "expected a number, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            of_class[key](text)
    assert (of_class["tolerance"]("2"), of_class["share"]("0.5")) == (2, 0.5)
    assert json_able({"share": math.inf, "less": -math.inf, "two": 2.0}) == {
        "share": "inf", "less": "-inf", "two": 2.0
    }  # fmt: skip
    with pytest.raises(ValueError, match="abc"):  # a field's type, though Defense's are elsewhere
        of_class["tolerance"]("abc")
    assert keys_of_signatures._reader(int | None)("3") == 3
    assert keys_of_signatures._reader(bool)("no") is False
    assert keys_of_signatures._reader(str)("3") == "3"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine_of_theirs:votes:tise=largest", "unknown option 'tise' .did you mean ties."),
        ("mine_of_theirs:votes:ties=lagest", "ties: cannot read 'lagest'.*did you mean largest"),
        ("mine_of_theirs:votes:coverage=2", "unknown option 'coverage' here; expected ties, times"),
        ("mine_of_theirs:votes:second_masks_per_axis=2", "unknown option 'second_masks_per_axis'"),
        ("mine_of_theirs:votes:", "key=value after the colon"),
        ("mine_of_theirs:votes:times=7", r"votes failed \(AssertionError: 7, .*of_theirs.py line"),
        ("mine_of_theirs:vote", r"--defense: expected a name that mine_of_theirs has, got 'vote' "
         r"\(did you mean votes\?\)$"),
        ("mine_of_theirs:number", "expected something to call, got a int"),
        ("mine_of_theirs:no_masks", "expected a defense, which takes masks first"),
        ("mine_of_theirs:nothing", "to return a certmask_jax.defenses.Defense, got None$"),
        ("mine_of_theirs:fails", r"failed \(ZeroDivisionError: division by zero, .* line \d+"),
        ("mine_of_theirs:Two:built_for=5", "built_for: expected a defense that takes against"),
        ("mine_of_theirs:leaves", r"leaves failed \(SystemExit: 3, .* line \d+"),
        ("leaving_of_theirs:x", "leaving_of_theirs: importing it failed .SystemExit: 3"),
        ("broken_of_theirs:x", "broken_of_theirs: importing it failed .ModuleNotFoundError: "),
        ("wrong_of_theirs:x", "wrong_of_theirs: importing it failed .SyntaxError: "),
        ("none_of_theirs:x", "a module that can be imported, got 'none_of_theirs'"),
        ("none_of_theirs.deep:x", "can be imported, got 'none_of_theirs.deep' .no module named"),
        ("pluralty:masks", r"got 'pluralty' .*\(did you mean plurality\?\)$"),
    ],
)  # fmt: skip
def test_what_is_no_defense_is_one_clear_error(mine, spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        _build(spec)
    assert str(caught.value).startswith("--defense")
    assert "\n" not in str(caught.value)


# --- whole programs, from another folder ---


def _begun(folder, *words):
    script = folder / "certmask"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "-P", str(script), *words],  # its folder is not looked in
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_run_with_everything_of_ones_own(mine, capsys):
    model = importlib.import_module("mine_of_theirs").create()
    weights.save("w.npz", jax.jit(model.init)(jax.random.key(0)))
    spec = "mine_of_theirs:votes:masks_per_axis=2"
    options = ["--dataset", "mine_of_theirs:load", "--model", "mine_of_theirs:create", "--weights",
               "w.npz", "--num-images", "6", "--patch", "1", "--defense", spec]  # fmt: skip
    process = _begun(mine, "certify", *options)
    assert process.returncode == 0, process.stderr
    (out,) = (mine / "runs").iterdir()
    assert out.name.startswith("mine_of_theirs.load-mine_of_theirs.create-")
    provenance = json.loads((out / "results.json").read_text())["provenance"]
    assert provenance["dataset"] == "mine_of_theirs:load"
    assert provenance["model"] == "mine_of_theirs:create"
    assert provenance["defense"] == [spec]
    assert provenance["command"].startswith("certmask certify --dataset mine_of_theirs:load ")
    again = _begun(mine, "certify", "--from-tables", str(out))
    assert again.returncode == 0, again.stderr
    for words, line in (
        (["--gelu", "tanh"], "--gelu: expected only where it is taken; mine_of_theirs:create takes "
         "num_classes"),
        (["--subset-seed", "1"], "--subset-seed: expected only where it is taken; "
         "mine_of_theirs:load takes data_config, split, num_images"),
    ):  # fmt: skip
        assert certify.main([*options, *words]) == 2
        assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("--model", "mine_of_theirs:fails", ["--model: ", "fails failed (TypeError: fails()"]),
        ("--model", "none_of_theirs:create", ["--model: expected a module that can be imported"]),
        ("--dataset", "mine_of_theirs:create", ["--dataset: expected", "to take data_config"]),
        ("--dataset", "mine_of_theirs:loda", ["--dataset: expected a name", "did you mean load"]),
        ("--dataset", "wrong_of_theirs:load", ["--dataset: wrong_of_theirs: importing it failed"]),
    ],
)
def test_what_is_no_model_or_data_set_is_one_clear_error(mine, capsys, option, name, words):
    options = {"--model": "vit_digits", "--dataset": "digits", option: name}
    weights = str(ROOT / "certmask_jax" / "pretrained" / "vit_digits.npz")
    flat = [word for pair in options.items() for word in pair]
    assert certify.main([*flat, "--weights", weights]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said


# --- entry points ---


def test_what_a_package_registers_has_a_name(mine):
    about = mine / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[certmask_jax.defenses]\ntheir_votes = mine_of_theirs:votes\n"
        "[certmask_jax.models]\ntheir_net = mine_of_theirs:create\n"
        "[certmask_jax.datasets]\ntheir_digits = mine_of_theirs:load\n"
    )
    spec = "their_votes:ties=smallest,masks_per_axis=2"
    assert _build(spec).spec == spec
    assert defense_specs.registered_paths([spec, "plurality"]) == {
        "their_votes": "mine_of_theirs:votes"
    }
    known = len(defense_entries.DEFENSES) + len(evidence_entries.EVIDENCE) + 1
    with pytest.raises(ValueError, match=rf"of the {known} defenses .*mean their_votes\?"):
        _build("their_vote")
    text = listings.everything()
    for name, what in (("votes", "votes"), ("net", "create"), ("digits", "load")):
        assert f"their_{name} " in text
        assert f" mine_of_theirs:{what}, installed" in text
    options = ["--dataset", "their_digits", "--model", "vit_digits", "--num-images", "4"]
    assert certify.main([*options, "--patch", "1", "--defense", spec, "--out", "run"]) == 0
    provenance = json.loads(Path("run/results.json").read_text())["provenance"]
    assert provenance["defense"] == [spec]
    assert provenance["registered"] == {
        "their_digits": "mine_of_theirs:load",
        "their_votes": "mine_of_theirs:votes",
    }
    assert chosen_model.named_model("their_net", num_classes=7).num_classes == 7
