"""The benchmark: what it compares is comparable, and what it writes is there."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import defenses, mask_sets, models, predict, weights
from certmask_jax.attacks import PatchSearch
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions
from certmask_jax.models import vit_blocks
from certmask_jax.programs import benchmark
from certmask_jax.programs.measurements import (
    absent_devices,
    analysis,
    attack_steps,
    compiled_for,
    evidence,
    packing,
    passes,
    pytorch,
    pytorch_loops,
    serving,
    speed,
    storage,
    subjects,
    timing,
)


def test_random_images_do_not_depend_on_how_they_are_cut_up():
    """Else runs in other blocks would need other passes."""
    noise = subjects.Noise(5, (4, 4, 3), 7)
    whole, parts = noise.read(0, 5), [noise.read(0, 2), noise.read(2, 5)]
    for name, values in whole._asdict().items():
        pieces = [getattr(part, name) for part in parts]
        np.testing.assert_array_equal(values, np.concatenate(pieces))
    assert len(np.unique(whole.images[:, 0, 0, 0])) > 1


def test_the_pytorch_model_is_the_same_model(shared):
    pytest.importorskip("torch")
    job = ["--dataset", "cifar10", "--data-dir", str(shared / "data" / "tfds")]
    job += ["--num-images", "2", "--model", "cifar_resnet20", "--patch", "5"]
    job += ["--weights", str(shared / "weights" / "cifar10_resnet20_cutout.npz")]
    subject = subjects.of_job([*job, "--defense", "double_masking:masks_per_axis=2"])
    images = subject.test_set.read(0, 2).images
    masks = subject.defenses[0].masked_images
    ours = predict(
        subject.apply_fn, subject.params, images, masks, preprocessing=subject.preprocessing
    )
    assert len(np.unique(ours.predictions)) > 1
    arrays = pytorch.arrays(subject, images, masks.boxes)
    for name in pytorch_loops.BATCHES:
        theirs = np.stack(pytorch_loops.loop(arrays, name)(), axis=1)
        np.testing.assert_array_equal(theirs[:2], ours.predictions)


def test_a_vit_is_measured_as_it_is_asked_for():
    options = ["--only", "speed", "--model", "vit_digits", "--gelu", "tanh"]
    config = benchmark.read_config(benchmark.parser().parse_args(options))
    asked = benchmark._subjects(config)[0]()
    images = np.linspace(-1, 1, 2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8, 1)
    logits = [
        np.asarray(
            models.create("vit_digits", gelu=gelu, num_classes=asked.num_classes).apply_fn(
                asked.params, images
            )
        )
        for gelu in ("exact", "tanh")
    ]
    ours = np.asarray(asked.apply_fn(asked.params, images))
    np.testing.assert_array_equal(ours, logits[1])
    assert (ours != logits[0]).any()


def test_attention_that_takes_16_bits_alone_is_measured(monkeypatch):
    """cuDNN's, as on a GPU: no part of the measurement has the model in float32."""
    attention, seen = jax.nn.dot_product_attention, set()

    def of_16_bits(q, k, v, *, implementation, **how):
        seen.add((implementation, q.dtype.name))
        return attention(q, k, v, **how)

    monkeypatch.setattr(vit_blocks, "_check_cudnn", lambda q: None)
    monkeypatch.setattr(jax.nn, "dot_product_attention", of_16_bits)
    subject = subjects.of_noise("vit_digits", "bfloat16", 1, attention="cudnn")
    measured = speed.measure(subject, 1, 1, 8, side=8)
    assert measured["flops_per_masked_image"] > 1e5
    assert ("cudnn", "bfloat16") in seen
    assert {kind for name, kind in seen if name == "cudnn"} == {"bfloat16"}


def test_the_pytorch_loops_count_what_they_evaluate(tmp_path):
    pytest.importorskip("torch")
    subject = subjects.of_noise("cifar_resnet20", "highest", 3)
    masks = distinct_unions.unmasked((32, 32))
    assert pytorch.counts(subject, masks) == {"pytorch_as_shipped": 16, "pytorch_tuned": 64}
    many = subject.defenses[0].masked_images
    assert set(pytorch.counts(subject, many).values()) == {8192}
    images = subject.test_set.read(0, 3).images
    for name, batch in pytorch_loops.BATCHES.items():
        pytorch.write(tmp_path / "arrays.npz", subject, images, masks, name)
        assert pytorch.seconds(tmp_path / "arrays.npz", name) > 0
        with np.load(tmp_path / "arrays.npz") as arrays:
            (labels,) = pytorch_loops.loop(dict(arrays), name)()
        assert labels.shape == (batch,)
    assert pytorch.counts(subjects.of_job(()), masks) == {}


def test_passes_are_counted_by_mode():
    job = ["--num-images", "6", "--defense", "double_masking:masks_per_axis=2"]
    subject = subjects.of_job([*job, "--defense", "certmask:tiling=tight"])
    counts = passes.measure(subject, 6, None)
    double, certmask = (counts[str(defense)] for defense in subject.defenses)
    assert double["full_table"] == 1 + 4 + 6
    assert 4 <= double["answers_alone"] <= double["early_exit"] <= 11
    count = len(subject.defenses[1].mask_set)
    assert certmask == {
        "full_table": 1 + count, "early_exit": 1 + count, "answers_alone": count,
    }  # fmt: skip


def test_a_masked_image_of_a_model_with_views_takes_several_passes():
    job = ["--num-images", "2", "--defense", "certmask:tiling=tight"]
    plain, mirrored = (
        passes.measure(subjects.of_job([*job, "--views", views]), 2, None)
        for views in ("none", "mirror")
    )
    (name,) = (name for name in plain if name.startswith("certmask"))
    assert mirrored[name] == {mode: 2 * count for mode, count in plain[name].items()}


def test_runs_are_packed_of_the_images_that_are_asked_for(monkeypatch):
    assert [packing.counts(most) for most in (1, 7, 12, 32)] == [
        [1], [1, 4, 7], [1, 4, 12], [1, 4, 12, 24, 32],
    ]  # fmt: skip
    monkeypatch.setattr(packing, "_of_runs", lambda subject, defense, count, *how: count)
    monkeypatch.setattr(packing, "_DEFENSES", ("pair_cover:partition=2x2",))
    subject = subjects.of_noise("vit_digits", "highest", 2)
    measured = packing.measure(subject, 5, 1, None)
    del measured["subject"]
    assert measured == {"pair_cover, 1 images": 1, "pair_cover, 2 images": 2}


def test_patchcleansers_loop_answers_as_its_rule_and_so_does_the_guard():
    rng = np.random.default_rng(0)
    shape, weights = (8, 8, 1), rng.integers(-3, 4, (8, 8, 1, 3)).astype(np.float32)
    defense = defenses.double_masking(mask_sets.budgeted_grid((8, 8), 2, masks_per_axis=3))

    def exact(params, x):
        """Sums of whole numbers, so that no batch rounds otherwise."""
        return jnp.einsum("bhwc,hwck->bk", jnp.round(x * 255), params)

    how = Preprocessing()
    subject = subjects.Subject(
        "noise", exact, weights, how, subjects.Noise(40, shape, 3), shape, 3, [defense]
    )
    images = subject.test_set.read(0, 40).images
    table = predict(exact, weights, images, defense.masked_images, preprocessing=how)
    loop = serving.patchcleanser_loop(subject, defense)
    np.testing.assert_array_equal(loop(images), defense.rule(table))
    timings = serving.measure(subject, 2, 4)
    assert [timings[f"milliseconds, {n} at once"]["labels that differ"] for n in (1, 8)] == [0, 0]
    others = dataclasses.replace(subject, defenses=[defenses.certmask(defense.masks)])
    with pytest.raises(ValueError, match=r"expected a job with double masking .* got certmask"):
        serving.measure(others, 2, None)


def test_evidence_is_measured_beside_the_plain_pass_of_the_same_images():
    subject = subjects.of_noise("cifar_bagnet5", "highest", 3)
    measured = evidence.measure(subject, 1, pixels=32 * 32)  # an image a device
    assert (measured["images"], measured["images_at_once"]) == (2, 2)
    assert "windows of 5x5 of 14x14 cells for 5x5 patches" in measured["defense"]
    speeds = measured["images_per_second"]
    assert set(speeds) == {"plain", "patchguard", "all"}
    assert measured["patchguard_over_plain"]["median"] == pytest.approx(
        speeds["patchguard"]["median"] / speeds["plain"]["median"]
    )


def test_patchguards_analysis_is_measured_beside_a_loop_of_the_same_verdicts(
    tmp_path, shared, capsys
):
    golden = np.load(shared / "golden" / "small_fields" / "patchguard_bagnet17_224.npz")
    file, out = tmp_path / "evidence.npz", tmp_path / "found.json"
    some = {name: golden[name][:4] for name in ("local_logits", "label")}
    np.savez(file, **some)
    words = ["--only", "analysis", "--evidence", str(file), "--repeat", "1", "--out", str(out)]
    assert benchmark.main(words) == 0
    measured = json.loads(out.read_bytes())["analysis"]
    assert (measured["shape"], measured["verdicts that differ"]) == ([4, 26, 26, 10], 0)
    case = next(c for c in ("p0", "p1", "p2") if golden[f"{c}_T"] == 0 and golden[f"{c}_clip"] < 0)
    assert golden[f"{case}_window"].tolist() == [6, 6]
    assert measured["certified"] == golden[f"{case}_sound"][:4].sum()
    looped = [
        analysis.certified_by_loop(image, int(label), 6)
        for image, label in zip(*some.values(), strict=True)
    ]
    np.testing.assert_array_equal(looped, golden[f"{case}_peer_result"][:4] == 2)
    assert {*looped} == {True, False}
    capsys.readouterr()

    np.savez(file, local_logits=np.zeros((2, 5, 26, 3)), label=np.zeros(2))
    for wrong, text in ((file, "of at least 6x6 cells"), (out, "which is no .npz file")):
        assert benchmark.main(["--only", "analysis", "--evidence", str(wrong)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --evidence: expected")
        assert text in error
    good = {"local_logits": np.zeros((2, 6, 6, 3)), "label": np.array([0, 2])}
    for name, value, text in (
        ("label", np.array([0, 3]), "expected label from 0 to 2, got 3"),
        ("label", np.array([0.5, 1]), "expected label from 0 to 2, got 0.5"),
        ("local_logits", np.full((2, 6, 6, 3), np.nan), "expected finite numbers"),
        ("local_logits", np.full((2, 6, 6, 3), "a"), "expected finite numbers"),
        ("local_logits", np.zeros((0, 6, 6, 3)), "of an image or more"),
    ):
        np.savez(file, **{**good, name: value})
        with pytest.raises(ValueError, match=f"evidence: .*{text}"):
            analysis.read(file)
    assert benchmark.main(["--only", "storage", "--evidence", str(file)]) == 2
    assert "--evidence: has no use in storage" in capsys.readouterr().err


def test_pytorchs_steps_of_an_attack_are_the_same_steps():
    pytest.importorskip("torch")
    subject = subjects.of_noise("cifar_resnet8", "highest", 2)
    images = np.asarray(subject.test_set.read(0, 2).images)
    labels, boxes = np.array([3, 9], np.int32), subject.defenses[0].masked_images.boxes[:4]
    search = PatchSearch(masks_a_step=4, steps=1, surplus=1e6)  # PyTorch's stops nowhere
    searching = attack_steps.Searching(subject, images, labels, (5, 4), boxes, search)
    program, arguments = attack_steps.begun_searches(searching, device_mesh(jax.devices()[:1]))
    ours = np.asarray(program(*arguments).free)
    theirs = np.asarray(pytorch_loops.attack(attack_steps.arrays_of(searching))()).transpose(
        0, 2, 3, 1
    )
    theirs = (theirs * subject.preprocessing.std + subject.preprocessing.mean) * 255
    inside = (slice(None), slice(13, 18), slice(14, 18))
    outside = np.ones((32, 32), np.bool_)
    outside[inside[1:]] = False
    np.testing.assert_allclose(theirs[:, outside], images[:, outside], atol=1e-3)
    moved = np.abs(theirs[inside] - images[inside])
    assert (moved > 1).mean() > 0.9  # but for pixels at the ends of their range
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-2)


def test_steps_of_an_attack_are_measured_with_all_masks_and_with_few():
    subject = subjects.of_noise("cifar_bagnet5", "highest", 3)
    measured = attack_steps.measure(subject, 1, steps=1, searches_a_device=1)
    assert (measured["searches_at_once"], measured["masked_images_a_step"]) == (2, 32)
    speeds = measured["steps_per_second_of_a_search"]
    assert set(speeds) == {"all masks", "few masks"}
    assert measured["all_masks_over_few"]["median"] == pytest.approx(
        speeds["all masks"]["median"] / speeds["few masks"]["median"]
    )


def test_in_turn_leaves_out_the_first_round_and_pairs_the_others():
    calls = []
    runs = {
        "a": lambda: calls.append("a"),
        "b": lambda: calls.append("b"),
        "c": lambda: len(calls),  # has taken its own time
    }
    seconds = timing.in_turn(runs, 2)
    assert calls == ["a", "b"] * 3
    assert [len(seconds[name]) for name in "abc"] == [2, 2, 2]
    assert seconds["c"] == [4, 6]
    assert timing.ratio([1, 4, 9], [1, 2, 3]) == {"median": 2, "least": 1, "most": 3}


def test_an_estimate_for_a_device_that_is_not_here(monkeypatch, capsys, tmp_path):
    """Of this machine's own compiler in its place: what is said, and how it is added up."""
    target = dataclasses.replace(
        absent_devices.TARGETS["tpu-v5e"],
        name="this", platform="cpu", options={},
        flops={"highest": 1e9, "bfloat16": 4e9}, bandwidth=1e8, memory=1e9,
    )  # fmt: skip
    monkeypatch.setattr(absent_devices, "TARGETS", {"tpu-v5e": target})
    monkeypatch.setattr(compiled_for, "devices", lambda target: jax.devices()[:2])
    monkeypatch.setattr(absent_devices, "begin", lambda: None)
    out = tmp_path / "b.json"
    options = ["--compile-for", "tpu-v5e", "--model", "vit_digits", "--chunk", "15"]
    assert benchmark.main([*options, "--precision", "bfloat16", "--out", str(out)]) == 0
    compiled = json.loads(out.read_text())["compiled"]
    assert compiled["masked_images_at_once_a_device"] == 8  # of 15 for two
    assert compiled["collectives"] == compiled["chunks_that_did_not_fit"] == []
    estimate = compiled["estimate_of_the_compiler"]
    operations, traffic = estimate["operations_each"], estimate["traffic_megabytes_each"]
    assert estimate["microseconds_a_masked_image_by_operations"] == pytest.approx(
        operations / 4e9 * 1e6
    )
    assert estimate["microseconds_a_masked_image_by_traffic"] == pytest.approx(traffic / 1e8 * 1e12)
    slowest = max(operations / 4e9, traffic * 1e6 / 1e8)
    assert estimate["masked_images_a_second_a_device"] == pytest.approx(1 / slowest)
    assert estimate["share_of_the_peak"] == pytest.approx(operations / 4e9 / slowest)
    printed = capsys.readouterr().out
    assert "estimate of the compiler\n" in printed
    assert "collectives: none\n" in printed
    assert benchmark.main([*options, "--only", "speed"]) == 2
    assert "--only: has no use with --compile-for" in capsys.readouterr().err
    plain = tmp_path / "plain.npz"
    weights.save(plain, models.create("plain_digits").init(jax.random.key(0)))
    job = f"--model plain_digits --weights {plain} --defense interval_bounds"
    bounds = ["--compile-for", "tpu-v5e", "--job", job, "--out", str(out)]
    assert benchmark.main(bounds) == 0  # more operations than a plain pass, which nobody counted
    estimate = json.loads(out.read_text())["compiled"]["estimate_of_the_compiler"]
    assert "operations_each" not in estimate


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--only", "speed", "--attention", "cudnn", "--precision", "bfloat16"],
            "--attention: expected xla on cpu, got cudnn",
        ),
        (["--only", "speed", "--attention", "cudnn"], "with --precision bfloat16 alone"),
        (
            ["--compile-for", "h100", "--attention", "cudnn", "--precision", "bfloat16"],
            "--attention: expected xla with --compile-for h100, got cudnn",
        ),
        (
            ["--compile-for", "h100", "--job", "--model vit_digits --attention cudnn"],
            "--job: --attention: expected xla with --compile-for h100",
        ),
        (
            ["--compile-for", "h100", "--job", "--two-parts windows=2x2,depth=2"],
            "--job: --two-parts: expected a model that is run whole for --compile-for h100",
        ),
        (
            ["--only", "packing", "--job", "--two-parts windows=2x2,depth=2"],
            "--job: --two-parts: expected a model that is run whole for --only packing",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(options, said, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "run", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(absent_devices, "begin", lambda: None)
    model = [] if "--job" in options else ["--model", "vit_digits"]
    assert benchmark.main([*options, *model]) == 2
    assert said in capsys.readouterr().err


def test_a_device_that_is_not_here_may_lack_memory(monkeypatch):
    monkeypatch.setattr(compiled_for, "devices", lambda target: jax.devices()[:2])
    monkeypatch.setattr(compiled_for, "flops", lambda *_: None)
    shape, weights = (8, 8, 1), np.zeros((64, 3), np.float32)
    how, grid = Preprocessing(), mask_sets.budgeted_grid((8, 8), 2, masks_per_axis=3)
    subject = subjects.Subject(
        "noise", lambda params, x: x.reshape(len(x), -1) @ params, weights, how,
        subjects.Noise(1, shape, 3), shape, 3, [defenses.double_masking(grid)],
    )  # fmt: skip
    here = dataclasses.replace(absent_devices.TARGETS["h100"], platform="cpu", options={})
    sizes = compiled_for.measure(subject, here, 16)
    assert (sizes["masked_images_at_once_a_device"], sizes["chunks_that_did_not_fit"]) == (8, [])
    needs = sizes["temporary_megabytes"] + sizes["parameters_and_images_megabytes"]
    smaller = dataclasses.replace(here, memory=1e6 * needs)  # of which a fifth is left alone
    sizes = compiled_for.measure(subject, smaller, 16)
    assert sizes["chunks_that_did_not_fit"][0] == 8
    assert sizes["masked_images_at_once_a_device"] < 8
    tiny = dataclasses.replace(here, memory=1e3)
    with pytest.raises(ValueError, match=r"h100: expected memory for one masked image on each"):
        compiled_for.measure(subject, tiny, 8)


def test_a_compiler_that_is_not_installed_is_named(capsys):
    if compilers := [n for n in ("libtpu", "jax_plugins") if importlib.util.find_spec(n)]:
        pytest.skip(f"needs a machine without compilers for accelerators, has {compilers}")
    for name, package in (("h100", "jax-cuda12-plugin==0"), ("tpu-v5e", r"libtpu==\d")):
        with pytest.raises(
            ValueError, match=rf"{name}: expected XLA's compiler .*{package}.*compilers"
        ):
            absent_devices.devices(absent_devices.TARGETS[name])


def test_the_program_writes_json_and_prints_a_table(tmp_path, capsys, monkeypatch):
    out = tmp_path / "b.json"
    options = ["--images", "1", "--repeat", "1", "--chunk", "64"]
    job = "--num-images 4 --defense double_masking:masks_per_axis=2"
    only = ["--only", "speed", "--only", "storage", "--only", "latency"]
    small = ((speed, {"side": 32}), (storage, {"images": 400}))
    for module, less in small:
        monkeypatch.setattr(module, "measure", functools.partial(module.measure, **less))
    assert benchmark.main([*options, "--job", job, *only, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    text = capsys.readouterr().out
    assert record["speed"]["masked_images"] == 10
    assert record["speed"]["masked_over_plain"]["median"] > 0
    assert record["storage"]["megabytes"] > 0
    assert record["versions"]["jax"] in text
    assert "masked over plain" in text
    (latency,) = (v for v in record["latency"].values() if isinstance(v, dict))
    assert latency["passes_most"] <= 10
    assert latency["chunk_sizes"][0] == 4  # of four masks, on two devices
    assert benchmark.main([*options, "--images", "0", "--out", str(out)]) == 2
    assert "--images: expected at least 1" in capsys.readouterr().err
    assert benchmark.main([*options, "--model", "nothing", *only, "--out", str(out)]) == 2
