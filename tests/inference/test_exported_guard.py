"""The guard in one file: answers are the rule's, without this package; errors are one line."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, defenses, mask_sets, models, weights
from certmask_jax.certification.evaluation import merged
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.inference.exported_guard import manifest_of
from certmask_jax.inference.guard_graph import first_round_filled, guard_program
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import pair_covers
from certmask_jax.programs import export

MASKS = mask_sets.budgeted_grid((8, 8), 2, masks_per_axis=3)
PAIRS = mask_sets.budgeted_grid((8, 8), 1, masks_per_axis=(1, 2))
CASES = {
    "double masking": defenses.double_masking(MASKS),
    "challenger masking": defenses.challenger_masking(MASKS),
    "minority reports": defenses.minority_reports(MASKS, tau=0.5),
    "certmask": defenses.certmask(MASKS),
    "detection": defenses.certmask_detection(MASKS),
    "two boxes": defenses.double_masking(PAIRS),
    "pair cover": defenses.pair_cover(pair_covers.pairs_of_blocks((8, 8), (1, 1), rows=(2, 2))),
    "mrcert": defenses.mrcert(PAIRS),
    "plurality": defenses.plurality(MASKS),
}
CERTIFIED = ("pair cover", "mrcert")
SHAPE = (8, 8, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
WEIGHTS = RNG.integers(-3, 4, (8, 8, 1, 3)).astype(np.float32)


def exact(params, x):
    """Sums of whole numbers, so that no batch rounds otherwise."""
    return jnp.einsum("bhwc,hwck->bk", jnp.round(x * 255), params)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_rules(name):
    defense, certified = CASES[name], name in CERTIFIED
    guard = guard_program(
        exact, WEIGHTS, defense, num_classes=3, preprocessing=Preprocessing(), masks_at_once=4,
        certified=certified,
    )  # fmt: skip
    labels, alerts, *more = jax.jit(guard)(IMAGES)
    table = cm.predict(exact, WEIGHTS, IMAGES, defense.masked_images)
    np.testing.assert_array_equal(labels, defense.rule(table))
    np.testing.assert_array_equal(alerts, defense.rule(table) == defenses.ALERT)
    assert len(more) == certified
    if certified:
        np.testing.assert_array_equal(more[0], defense.certified_labels(table))
        assert name != "pair cover" or 0 < (np.asarray(more[0]) >= 0).sum() < len(IMAGES)


def test_ties_and_what_is_not_finite_answer_as_the_rule_does():
    defense = CASES["pair cover"]
    functions = (
        lambda params, x: jnp.zeros((len(x), 3)) * params,  # all tied
        lambda params, x: jnp.where(x[:, 0, 0] > 0.5, jnp.nan, 1.0) * jnp.arange(3.0)[None],
    )
    for apply_fn in functions:
        guard = guard_program(
            apply_fn, np.float32(1), defense, num_classes=3, preprocessing=Preprocessing(),
            certified=True,
        )  # fmt: skip
        said = (
            pytest.warns(RuntimeWarning) if apply_fn is functions[1] else contextlib.nullcontext()
        )
        with said:
            table = cm.predict(apply_fn, np.float32(1), IMAGES, defense.masked_images)
        labels, _, certified = jax.jit(guard)(IMAGES)
        np.testing.assert_array_equal(labels, defense.rule(table))
        np.testing.assert_array_equal(certified, defense.certified_labels(table))


def test_a_first_round_fills_its_passes():
    assert [first_round_filled(n, 16) for n in (5, 16, 36, 17)] == [5, 16, 12, 9]


_SERVED = """
import os
import sys
sys.modules["certmask_jax"] = None  # where it is installed it cannot be imported either
import jax, numpy as np
from jax import export
try:
    import certmask_jax
except ImportError:
    pass
else:
    sys.exit("the package is here")
with open(sys.argv[1], "rb") as file:
    guard = export.deserialize(bytearray(file.read()))
for count in (1, 80):
    labels, alerts = guard.call(np.load(sys.argv[2])[:count])
    assert labels.shape == alerts.shape == (count,)
np.save(sys.argv[3], labels)
assert not any(name.startswith("certmask_jax.") for name in sys.modules)
"""


def test_a_fresh_process_without_the_package_serves_it(tmp_path, capsys, monkeypatch):
    """By the program, on the digits: 80 images, labels equal to the rule of the whole table."""
    monkeypatch.chdir(tmp_path)
    spec = "double_masking:masks_per_axis=3"
    assert export.main(["guard.stablehlo", "--defense", spec, "--patch", "2"]) == 0
    assert "MB for cpu, cuda, tpu, and guard.json" in capsys.readouterr().out
    images = data.digits_arrays("test")[0][:80]
    np.save("images.npy", images)
    environment = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    command = [sys.executable, "-c", _SERVED, "guard.stablehlo", "images.npy", "labels.npy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = cm.load_model("vit_digits")
    defense = CASES["double masking"]
    table = cm.predict(
        loaded.apply_fn, loaded.params, images, defense.masked_images,
        preprocessing=loaded.preprocessing,
    )  # fmt: skip
    one_mask = table.predictions[:, defense.rounds.single]
    assert (one_mask != one_mask[:, :1]).any(axis=1).sum() > 5  # as many need a second round
    np.testing.assert_array_equal(np.load("labels.npy"), defense.rule(table))
    read = cm.read_guard("guard.stablehlo")
    np.testing.assert_array_equal(read(images)[0], defense.rule(table))
    assert read.manifest["class_names"] == list("0123456789")
    assert read.manifest["weights_sha256"]
    assert "ExportedGuard(double_masking: 9 masks of 4x4" in repr(read)
    for bad in (images[:, :7], images[..., 0], images.astype(np.float32), images[:0]):
        with pytest.raises(ValueError, match=r"images: expected (shape \[T, 8, 8, 1\]|uint8)"):
            read(bad)


def _tiny(path, apply_fn=exact, params=WEIGHTS, defense=CASES["two boxes"], **options):
    return cm.export_guard(path, apply_fn, params, defense, channels=1, **options)


def test_files_that_are_no_guard_for_this_machine(tmp_path):
    file = tmp_path / "g.stablehlo"
    _tiny(file, platforms=("tpu", "cuda"))
    with pytest.raises(ValueError, match="for cpu, which runs here, got one for tpu, cuda"):
        cm.read_guard(file)
    with pytest.raises(
        FileExistsError, match=r"g\.stablehlo: exists already; overwrite=True replaces it"
    ):
        _tiny(file)
    _tiny(file, overwrite=True)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged, or not the file that g\.json is about"):
        cm.read_guard(file)
    manifest = manifest_of(file)
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        cm.read_guard(file)
    for text in ("[]", "{}", "{", json.dumps({**facts, "image_shape": 3})):
        manifest.write_text(text)
        with pytest.raises(ValueError, match="is damaged, or no manifest of a guard"):
            cm.read_guard(file)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match=r"g\.json: expected the manifest of g\.stablehlo"):
        cm.read_guard(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"g\.stablehlo: expected a guard that"):
        cm.read_guard(file)
    with pytest.raises(ValueError, match=r"g\.json: expected a guard, .*, got its manifest"):
        cm.read_guard(manifest)


@pytest.fixture(scope="module")
def small_guard(tmp_path_factory):
    """Its program, and what its manifest says."""
    file = tmp_path_factory.mktemp("guard") / "g.stablehlo"
    return _tiny(file, platforms=["cpu"]), file.read_bytes()


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"format": "1"}, "expected format 1, got '1'; read it with"),
        ({"image_shape": [9, 9]}, r"expected image_shape to be \[height, .*, got \[9, 9\]"),
        ({"image_shape": [8, 8, "1"]}, "expected image_shape to be"),
        (
            {"image_shape": [9, 9, 1]},
            r"expected image_shape \[8, 8, 1\], .*, got \[9, 9, 1\]; copy",
        ),
        ({"platforms": None}, "expected platforms to be a list of names, got None"),
        ({"platforms": "cpu"}, "expected platforms to be a list of names, got 'cpu'"),
        ({"sha256": 3}, "expected sha256 to be text, got 3"),
    ],
)
def test_a_manifest_that_was_edited_is_named_with_its_field(tmp_path, small_guard, edited, message):
    facts, content = small_guard
    (tmp_path / "g.stablehlo").write_bytes(content)
    (tmp_path / "g.json").write_text(json.dumps(facts | edited))
    with pytest.raises(ValueError, match=rf"g\.json: .*{message}"):
        cm.read_guard(tmp_path / "g.stablehlo")


@pytest.mark.parametrize("content", [b"", b"junk", b"no program" * 50, bytes(2000)])
def test_what_is_no_program_is_one_line(tmp_path, small_guard, content):
    facts, _ = small_guard
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "g.stablehlo").write_bytes(content)
    (tmp_path / "g.json").write_text(json.dumps({**facts, "sha256": digest}))
    with pytest.raises(ValueError, match=r"g\.stablehlo: expected a program that jax") as raised:
        cm.read_guard(tmp_path / "g.stablehlo")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (SmoothedViT(MASKS.threat), r"SmoothedViT, .*\.evaluate_evidence, or"),
        (DerandomizedSmoothing(MASKS.threat), "DerandomizedSmoothing, which answers from evidence"),
        (PatchGuard(MASKS.threat, field=3, stride=1), "PatchGuard, which answers from evidence"),
        (MASKS, r"the masks alone; build one of masks: cm\.defenses\.DoubleMasking\(masks\)"),
        (defenses.DoubleMasking, "the class DoubleMasking; build one of masks"),
        ("double_masking", "the text 'double_masking'; build one of masks"),
        (None, "NoneType; build one of masks"),
    ],
)
def test_what_is_no_masking_defense_guards_nothing(tmp_path, given, got):
    for name, asked in {
        "defense": lambda: cm.defended(exact, WEIGHTS, given, channels=1),
        "defenses": lambda: merged([CASES["certmask"], given]),
        "defense:": lambda: _tiny(tmp_path / "g.stablehlo", defense=given),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}:? expected .* images .*, got {got}"):
            asked()
    assert not list(tmp_path.iterdir())


def test_a_manifest_has_what_its_caller_adds(tmp_path):
    about = {"by": "me", "weights_sha256": "of the run"}
    manifest = _tiny(tmp_path / "g.stablehlo", platforms=["cpu"], about=about)
    assert manifest.items() >= about.items()
    without = _tiny(tmp_path / "h.stablehlo", platforms=["cpu"])
    assert {*manifest} - {*without} == {"by"}
    with pytest.raises(ValueError, match="about: expected names that the manifest does not have"):
        _tiny(tmp_path / "i.stablehlo", about=without)


@dataclasses.dataclass(frozen=True, repr=False)
class OnTheHost(defenses.CertMask):
    """A rule for whole tables, which no program can hold."""

    def rule(self, table):
        return np.zeros(len(table), np.int32)


@dataclasses.dataclass(frozen=True, repr=False)
class NotTraced(defenses.CertMask):
    """A rule for one image that JAX cannot trace."""

    def row_rule(self, row, num_classes):
        return jnp.int32(max(map(int, row.predictions)))


def test_what_cannot_be_exported_is_one_line(tmp_path):
    def calls_back(params, x):
        shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
        return jax.pure_callback(
            lambda a: np.asarray(a).sum(axis=(1, 2))[:, :1] * [1, 2, 3], shape, x
        )

    function = models.from_function(
        lambda x: np.zeros((len(x), 3)), num_classes=3, input_size=(8, 8), channels=1, sha256="x"
    )
    file = tmp_path / "g.stablehlo"
    for message, given in {
        r"expected a model that jax\.export takes .*": {"apply_fn": calls_back},
        "apply_fn: expected a function of JAX, .* got a NumPy": {"apply_fn": function.apply_fn},
        "a rule of its own for whole tables": {"defense": OnTheHost(MASKS)},
        "expected a rule that JAX traces, .* Concretization": {"defense": NotTraced(MASKS)},
        "certified: .* recovers": {"defense": CASES["detection"], "certified": True},
        "masks_at_once: expected a whole number, at least 1, got 0": {"masks_at_once": 0},
        "masks_at_once: expected a whole number, at least 1, got 2.5": {"masks_at_once": 2.5},
        "masks_at_once: expected a whole number, at least 1, got '3'": {"masks_at_once": "3"},
        r"platforms: expected a list of names, .* 'cpu'; give \['cpu'\]": {"platforms": "cpu"},
        "class_names: expected 3, .* got 2": {"class_names": ["a", "b"]},
        "class_names: expected a list of names, got the text 'abc'": {"class_names": "abc"},
        "about: .* got sha256, threat; choose others": {"about": {"sha256": "x", "threat": "y"}},
        "about: expected facts that JSON can hold, but .* set": {"about": {"by": {1}}},
        "defense: expected a defense that masks images .*, got SmoothedViT, which answers from "
        "evidence": {"defense": SmoothedViT(MASKS.threat)},
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            _tiny(file, **given)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_without_a_data_set_the_manifest_names_none(tmp_path, monkeypatch, capsys):
    """A model of other images has neither the digits, which are the default, nor their names."""
    monkeypatch.chdir(tmp_path)
    shapes = models.create("cifar_resnet20").param_shapes()
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    weights.save("w.npz", params)
    given = ["--model", "cifar_resnet20", "--weights", "w.npz", "--patch", "5"]
    given += ["--defense", "pair_cover:partition=2x2", "--views", "mirror", "g.stablehlo"]
    given += ["--platforms", "cpu"]
    assert export.main(given) == 0
    manifest = json.loads((tmp_path / "g.json").read_text())
    assert manifest["class_names"] is None
    assert "dataset" not in manifest
    assert manifest["image_shape"] == [32, 32, 3]
    assert manifest["views"] == ["itself", "mirror"]
    assert manifest["weights_sha256"] == weights.digest(params)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert export.main([*given, "--class-names", "names.txt", "--overwrite"]) == 2
    assert "--class-names: expected 10, one for each output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x.bin"], "expected a file that ends in .stablehlo"),
        (["g.stablehlo"], "--defense: expected one, which the guard answers by, got 0"),
        (["g.stablehlo", "--defense", "certmask", "--defense", "mrcert"], "got 2"),
        (["g.stablehlo", "--defense", "certmask", "--platforms", "gpu"], "--platforms: expected"),
        (["g.stablehlo", "--defense", "certmask", "--platforms", "cpu,cpu"], "got cpu, cpu"),
        (["g.stablehlo", "--defense", "certmask", "--dry-run"], "--dry-run: has no use in a guard"),
        (
            ["g.stablehlo", "--defense", "certmask_detection", "--certified"],
            "--certified: expected a",
        ),
        (["g.stablehlo", "--defense", "certmask", "--class-names", "no"], "no: No such file"),
        (
            ["g.stablehlo", "--model", "vit_b16", "--defense", "certmask", "--split", "test"],
            "--split: has no use without --dataset",
        ),
        (
            ["there.stablehlo", "--defense", "certmask"],
            "there.stablehlo: expected a file to write, got a folder",
        ),
        (
            ["g.stablehlo", "--defense", "certmask", "--sizes", "1-3"],
            "--sizes: has no use in a guard; leave it out",
        ),
        (
            ["g.stablehlo", "--defense", "smoothed_vit:band=4"],
            "--defense: expected defenses that mask images, got smoothed_vit:band=4 on evidence, "
            "which certify and attack alone take; choose others",
        ),
        (["gs://bucket/a.stablehlo", "--defense", "certmask"], "write it here, and copy it there"),
        (["/proc/g.stablehlo", "--defense", "certmask"], "expected to be able to write it, but"),
    ],
)
def test_bad_input_of_the_program(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.stablehlo").mkdir()
    assert export.main(options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.stablehlo"]
