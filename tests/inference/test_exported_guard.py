"""The guard in one file: answers are the rule's, without this package; errors are one line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, defenses, mask_sets
from certmask_jax.inference import exported_guard
from certmask_jax.inference.guard_graph import guard_program, rounds_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import export

MASKS = mask_sets.budgeted_grid((8, 8), 2, masks_per_axis=3)
PAIRS = mask_sets.budgeted_grid((8, 8), 1, masks_per_axis=(1, 2))
CASES = {
    "double masking": (defenses.double_masking(MASKS), 9),
    "challenger masking": (defenses.challenger_masking(MASKS), 9),
    "minority reports": (defenses.minority_reports(MASKS, tau=0.5), None),
    "certmask": (defenses.certmask(MASKS), None),
    "detection": (defenses.certmask_detection(MASKS), None),
    "two boxes": (defenses.double_masking(PAIRS), 2),
}
SHAPE = (8, 8, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
WEIGHTS = RNG.integers(-3, 4, (8, 8, 1, 3)).astype(np.float32)


def exact(params, x):
    """Sums of whole numbers, so that no batch rounds otherwise."""
    return jnp.einsum("bhwc,hwck->bk", jnp.round(x * 255), params)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_rules(name):
    defense, first = CASES[name]
    rounds = rounds_of(defense, 3)
    count = len(defense.masked_images)
    assert len(rounds.first) == (count if first is None else first)
    assert sorted([*rounds.first, *rounds.rest]) == list(range(count))
    guard = guard_program(
        exact, WEIGHTS, defense, num_classes=3, preprocessing=Preprocessing(), masks_at_once=4
    )
    labels, alerts = jax.jit(guard)(IMAGES)
    table = cm.predict(exact, WEIGHTS, IMAGES, defense.masked_images)
    np.testing.assert_array_equal(labels, defense.rule(table))
    np.testing.assert_array_equal(alerts, defense.rule(table) == defenses.ALERT)
    if len(rounds.rest):  # of some images the first round says all, of others not
        said = table.predictions[:, rounds.first]
        assert 0 < (said == said[:, :1]).all(axis=1).sum() < len(IMAGES)


def test_ties_and_what_is_not_finite_answer_as_the_rule_does():
    defense = CASES["double masking"][0]
    models = (
        lambda params, x: jnp.zeros((len(x), 3)) * params,  # all tied
        lambda params, x: jnp.where(x[:, 0, 0] > 0.5, jnp.nan, 1.0) * jnp.arange(3.0)[None],
    )
    for apply_fn in models:
        guard = guard_program(
            apply_fn, np.float32(1), defense, num_classes=3, preprocessing=Preprocessing()
        )
        said = pytest.warns(RuntimeWarning) if apply_fn is models[1] else contextlib.nullcontext()
        with said:
            table = cm.predict(apply_fn, np.float32(1), IMAGES, defense.masked_images)
        np.testing.assert_array_equal(jax.jit(guard)(IMAGES)[0], defense.rule(table))


_SERVED = """
import sys
import jax, numpy as np
try:
    import certmask_jax
except ImportError:
    pass
else:
    sys.exit("the package is here")
with open(sys.argv[1], "rb") as file:
    guard = jax.export.deserialize(bytearray(file.read()))
for count in (1, 3, 200):
    labels, alerts = guard.call(np.load(sys.argv[2])[:count])
    assert labels.shape == alerts.shape == (count,)
np.save(sys.argv[3], labels)
"""


def test_a_fresh_process_without_the_package_serves_it(tmp_path, capsys, monkeypatch):
    """By the program, on the digits: 200 images, labels equal to the rule of the whole table."""
    monkeypatch.chdir(tmp_path)
    spec = "double_masking:masks_per_axis=3"
    assert export.main(["guard.stablehlo", "--defense", spec, "--patch", "2"]) == 0
    assert "MB for cpu, cuda, tpu, and guard.json" in capsys.readouterr().out
    images = data.digits_arrays("test")[0][:200]
    np.save("images.npy", images)
    environment = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _SERVED, "guard.stablehlo", "images.npy", "labels.npy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = cm.load_model("vit_digits")
    defense = CASES["double masking"][0]
    table = cm.predict(
        loaded.apply_fn, loaded.params, images, defense.masked_images,
        preprocessing=loaded.preprocessing,
    )  # fmt: skip
    first = rounds_of(defense, 10).first
    assert (table.predictions[:, first] != table.predictions[:, first[:1]]).any(axis=1).sum() > 9
    np.testing.assert_array_equal(np.load("labels.npy"), defense.rule(table))
    read = exported_guard.read("guard.stablehlo")
    np.testing.assert_array_equal(read(images)[0], defense.rule(table))
    assert read.manifest["class_names"] == list("0123456789")
    assert read.manifest["weights_sha256"]
    assert "ExportedGuard(double_masking: 9 masks of 4x4" in repr(read)
    for bad in (images[:, :7], images[..., 0], images.astype(np.float32), images[:0]):
        with pytest.raises(ValueError, match=r"images: expected uint8 \[B, 8, 8, 1\] with B >= 1"):
            read(bad)


def _tiny(path, **options):
    defense = CASES["two boxes"][0]
    guard = guard_program(exact, WEIGHTS, defense, num_classes=3, preprocessing=Preprocessing())
    return exported_guard.write(path, guard, SHAPE, **options)


def test_files_that_are_no_guard_for_this_machine(tmp_path):
    file = tmp_path / "g.stablehlo"
    _tiny(file, platforms=("tpu", "cuda"))
    with pytest.raises(ValueError, match="for cpu, which runs here, got one for tpu, cuda"):
        exported_guard.read(file)
    with pytest.raises(FileExistsError, match="nothing is there, but there is a file"):
        _tiny(file)
    _tiny(file, overwrite=True)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged, or not the file that g\.json is about"):
        exported_guard.read(file)
    manifest = exported_guard.manifest_of(file)
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "format": 2}))
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        exported_guard.read(file)
    for text in ("[]", "{}", "{", json.dumps({**facts, "image_shape": 3})):
        manifest.write_text(text)
        with pytest.raises(ValueError, match="is damaged, or no manifest of a guard"):
            exported_guard.read(file)
    manifest.unlink()
    with pytest.raises(FileNotFoundError):
        exported_guard.read(file)


def test_what_cannot_be_exported_is_one_line(tmp_path):
    def on_the_host(params, x):
        return jnp.asarray(np.asarray(x).sum(axis=(1, 2)))

    guard = guard_program(
        on_the_host, 0, CASES["certmask"][0], num_classes=3, preprocessing=Preprocessing()
    )
    with pytest.raises(ValueError, match=r"expected a model that jax\.export takes .* Tracer"):
        exported_guard.write(tmp_path / "g.stablehlo", guard, SHAPE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="masks_at_once: expected at least 1, got 0"):
        guard_program(
            exact, WEIGHTS, CASES["certmask"][0], num_classes=3, preprocessing=Preprocessing(),
            masks_at_once=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x.bin"], "expected a file that ends in .stablehlo"),
        (["g.stablehlo"], "--defense: expected one, which the guard answers by, got 0"),
        (["g.stablehlo", "--defense", "certmask", "--defense", "mrcert"], "got 2"),
        (["g.stablehlo", "--defense", "certmask", "--platforms", "gpu"], "--platforms: expected"),
        (["g.stablehlo", "--defense", "certmask", "--platforms", "cpu,cpu"], "got cpu, cpu"),
        (["g.stablehlo", "--defense", "certmask", "--dry-run"], "--dry-run: has no use in a guard"),
        (["there.stablehlo", "--defense", "certmask"], "nothing is there, but there is a folder"),
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
