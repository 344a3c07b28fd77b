"""Sets of weights wherever a file has them, files that are something else, remedies by program."""

from __future__ import annotations

import os
import shutil
import zipfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from certmask_jax import models, weights
from certmask_jax.programs import certify, convert_weights, train

MODEL = models.create("vit_digits")
SHIPPED = models.default_weights("vit_digits")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, weights.load(SHIPPED, MODEL))


@pytest.fixture(scope="module")
def source():
    with np.load(SHIPPED) as file:
        return {name: file[name] for name in file.files}


def _digest(path, **how):
    return weights.digest(weights.load(path, MODEL, **how))


def _front(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


def _torch(path, tree):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")

    def tensors(value):
        if isinstance(value, dict):
            return {name: tensors(one) for name, one in value.items()}
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    torch.save(tensors(tree), path)


def _orbax(path, tree):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _raw(tree):
    return jax.tree.map(lambda leaf: leaf + 1, tree)


# In a PyTorch file: (how raw and average lie in it, the names that they are asked for by).
TORCH = {
    "callbacks": (
        lambda raw, ema: {
            "state_dict": _front("model.", raw),
            "callbacks": {"EMA": {"ema_state_dict": _front("model.", ema)}},
        },
        ("state_dict/model", "callbacks/EMA/ema_state_dict/model"),
    ),
    "WeightAveraging": (
        lambda raw, ema: {
            "state_dict": ema,
            "current_model_state": raw,
            "averaging_state": {"n_averaged": np.array(3)},
        },
        ("current_model_state", "state_dict"),
    ),
    "ema_pytorch": (
        lambda raw, ema: {
            **_front("online_model.", raw), **_front("ema_model.", ema),
            "initted": np.array(True), "step": np.array(4),
        },
        ("online_model", "ema_model"),
    ),
    "beside tensors at the top": (lambda raw, ema: {**raw, "ema": ema}, (".", "ema")),
    "something else among one": (
        lambda raw, ema: {"state_dict": {**ema, "n_averaged": np.array(2)}, "model": raw},
        ("model", "state_dict"),
    ),
    "a word such as loss in the name": (
        lambda raw, ema: {"lowest_loss": ema, "last": raw}, ("last", "lowest_loss"),
    ),
    "AveragedModel of DDP": (
        lambda raw, ema: {
            "model": _front("module.", raw),
            "model_ema": {"n_averaged": np.array(3), **_front("module.module.", ema)},
        },
        ("model", "model_ema"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH)
def test_two_sets_wherever_they_lie(tmp_path, source, case):
    lies, (raw, ema) = TORCH[case]
    right = _digest(SHIPPED)
    _torch(tmp_path / "w.pt", lies(_raw(source), source))
    file = weights.read(tmp_path / "w.pt")
    with pytest.raises(weights.SettingError, match="got 2 that differ: ") as caught:
        weights.load(file, MODEL)
    assert f"entry={raw!r}" in str(caught.value)
    assert f"entry={ema!r}" in str(caught.value)
    assert _digest(file, entry=ema) == right
    assert _digest(file, entry=raw) != right
    assert weights.taken(file, MODEL, entry=ema) == weights.Taken(ema, (raw,))
    assert weights.num_classes(file) == 10
    _torch(tmp_path / "w.pt", lies(source, source))  # equal ones are no question
    if case == "ema_pytorch":  # what stands beside them is
        with pytest.raises(ValueError, match="unexpected: initted, step"):
            weights.load(tmp_path / "w.pt", MODEL)
    else:
        assert _digest(tmp_path / "w.pt") == right


@pytest.mark.parametrize("name", ["average", "ema", "ema_params"])
@pytest.mark.parametrize("deeper", [False, True])
def test_two_sets_of_an_orbax_folder(tmp_path, params, name, deeper):
    inner = params["params"]
    tree = {"params": _raw(inner), name: inner, "step": np.int32(3), "name": "a run", "lr": 0.1}
    tree["opt_state"] = [{"mu": _raw(inner), "nu": _raw(inner)}]  # of the same names: no weights
    _orbax(tmp_path / "w", {"state": tree} if deeper else tree)
    with pytest.raises(weights.SettingError, match="got 2 that differ: "):
        weights.load(tmp_path / "w", MODEL)
    entry = f"state/{name}" if deeper else name
    assert _digest(tmp_path / "w", entry=entry) == weights.digest(params)
    assert weights.num_classes(tmp_path / "w") == 10


@pytest.mark.parametrize("at", [(), ("params",), ("model", "params"), ("a", "variables", "params")])
def test_a_flax_tree_wherever_it_lies(tmp_path, params, at):
    tree = params["params"]
    for name in reversed(at):
        tree = {name: tree}
    if at:
        tree |= {"step": np.int32(3), "opt_state": {"mu": _raw(params["params"])}}
    _orbax(tmp_path / "w", tree)
    assert _digest(tmp_path / "w") == weights.digest(params)


def test_running_averages_lie_in_a_collection_beside(tmp_path):
    model = models.create("cifar_resnet20")
    draw = np.random.default_rng(0).normal
    variables = jax.tree.map(
        lambda leaf: draw(1, 0.2, leaf.shape).astype(np.float32), model.param_shapes()
    )
    raw, ema = _raw(variables), variables
    _orbax(tmp_path / "own", {"params": raw["params"], "ema_params": ema["params"],
           "batch_stats": raw["batch_stats"], "ema_batch_stats": ema["batch_stats"]})  # fmt: skip
    _orbax(tmp_path / "one", {"params": raw["params"], "ema_params": ema["params"],
           "batch_stats": ema["batch_stats"]})  # fmt: skip
    for name in ("own", "one"):
        loaded = weights.load(tmp_path / name, model, entry="ema_params")
        assert weights.digest(loaded) == weights.digest(ema)
    loaded = weights.load(tmp_path / "own", model, entry="params")
    assert weights.digest(loaded) == weights.digest(raw)


def test_a_word_that_the_model_needs_stays(tmp_path):
    """Of a model whose names all begin alike nothing is taken off."""
    from certmask_jax.weights import places
    from certmask_jax.weights.stored import Entry, WeightsFile

    shapes = {"model.a.weight": (2,), "model.b.weight": (3,)}
    entries = {name: Entry.of(np.ones(shape, np.float32)) for name, shape in shapes.items()}
    for front in ("", "model.", "module.model."):
        file = WeightsFile(SHIPPED, {front + name: e for name, e in entries.items()})
        place, taken = places.choose(file, shapes, None)
        assert place.prefix == front
        assert set(place.entries) == set(shapes)
        assert taken == weights.Taken(None)


def test_what_lies_beside_is_named_with_the_way_out(tmp_path, source):
    right = _digest(SHIPPED)
    for beside, front in (("loss.weight", "model"), ("0.mean", "1")):
        np.savez(tmp_path / "w.npz", **_front(f"{front}.", source), **{beside: np.ones(3)})
        with pytest.raises(ValueError, match=rf"unexpected: {beside}\..*entry='{front}' takes"):
            weights.load(tmp_path / "w.npz", MODEL)
        assert _digest(tmp_path / "w.npz", entry=front) == right


@pytest.mark.parametrize("other", [3, 0.5, "cosine", {"lr": 0.1}, [1]])
def test_what_is_no_tensor_among_tensors_is_named(tmp_path, source, other):
    _torch(tmp_path / "w.pt", {**source, "nothing": None, "extra": other})
    with pytest.raises(ValueError, match=rf"extra is a {type(other).__name__}\).*extra; save"):
        weights.load(tmp_path / "w.pt", MODEL)


def test_counters_only_are_ignored(tmp_path, source):
    np.savez(tmp_path / "w.npz", **source, n_averaged=np.array([3]))
    assert _digest(tmp_path / "w.npz") == _digest(SHIPPED)
    np.savez(tmp_path / "w.npz", **source, n_averaged=np.arange(3))
    with pytest.raises(ValueError, match="unexpected: n_averaged"):
        weights.load(tmp_path / "w.npz", MODEL)


def test_heads_that_differ_are_no_number_of_classes(tmp_path, source):
    other = {**source, "head.weight": np.ones((7, 48)), "head.bias": np.ones(7)}
    np.savez(tmp_path / "w.npz", **_front("a.", source), **_front("b.", other))
    assert weights.num_classes(tmp_path / "w.npz") is None
    assert weights.num_classes(tmp_path / "w.npz", entry="b") == 7
    np.savez(tmp_path / "w.npz", x=np.ones(3))
    assert weights.num_classes(tmp_path / "w.npz") is None


def test_numbers_are_not_read_for_names(tmp_path, monkeypatch):
    """A head is counted, and a file of another model refused, by what stands in front of arrays."""

    def refuses(*_, **__):
        raise AssertionError("read")

    monkeypatch.setattr(np, "load", refuses)
    assert weights.num_classes(SHIPPED) == 10
    with pytest.raises(ValueError, match="got others"):
        weights.load(SHIPPED, models.create("cifar_resnet20"))


def test_float128_is_no_kind_of_weights(tmp_path, source):
    if np.dtype(np.longdouble).itemsize <= 8:
        pytest.skip("no longer floats on this machine")
    np.savez(tmp_path / "w.npz", **{**source, "head.bias": np.ones(10, np.longdouble)})
    with pytest.raises(ValueError, match=r"other kinds: head\.bias \(float"):
        weights.load(tmp_path / "w.npz", MODEL)


# Files and folders that are something else


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "x" * 40)


def _copy(path):
    shutil.copy(SHIPPED, path)


def _bytes(content):
    return lambda path: path.write_bytes(content)


def _folder(**files):
    def make(path):
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)

    return make


OTHERS = {
    "w.pth": [
        (_zip_of_text, "a zip archive without weights"),
        (_copy, r"NumPy's \.npz; give it a name that ends in \.npz"),
        (_bytes(b'{"error": "Repository not found"}'), "it is text"),
        (_bytes(b"<!-- moved --><html>404</html>"), "it is text"),
        (_bytes(b"<?xml version='1.0'?><Error>AccessDenied"), "is a web page"),
        (_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 99), "HDF5"),
        (_bytes(b"\x1f\x8b" + b"\0" * 99), "packed with gzip; unpack"),
    ],
    "w.npz": [
        (_bytes(b"\x93NUMPY\x01\0v\0" + b" " * 99), "a single NumPy array"),
        (_bytes((20).to_bytes(8, "little") + b'{"a": 1}' + b" " * 99), "it is safetensors; give"),
        (_folder(), "no Orbax checkpoint in it$"),
    ],
    "w": [
        (_folder(checkpoint=b"x", model__index=b"x"), "it is TensorFlow's"),
        (_folder(config__json=b"{}", model__safetensors=b"x"), r"give the file .*model\.safetens"),
    ],
    "w.h5": [(_bytes(b"\x89HDF\r\n\x1a\n"), "this is (Keras|HDF5)")],
    "w.onnx": [(_bytes(b"\x08\x07" * 9), "an ONNX graph")],
    "w.msgpack": [(_bytes(b"\x81\xa6" * 9), "Flax's msgpack")],
    "w.gguf": [(_bytes(b"GGUF" * 9), "llama.cpp's")],
    "w.pkl": [(_bytes(b"\x80\x04N."), "a pickle, which may run code")],
    "w.safetensors.part": [(_bytes(b"x"), "a download that has not finished")],
    "w.npz.crdownload": [(_bytes(b"x"), "a download that has not finished")],
    "w.weights": [(_copy, r"NumPy's \.npz; give it a name that ends in \.npz")],
    "w.pth.gz": [(_bytes(b"\x1f\x8b" + b"\0" * 99), "packed")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "says"), [(name, *case) for name, cases in OTHERS.items() for case in cases]
)
def test_what_it_is_instead(tmp_path, name, make, says):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="needs the extra: parity")
    make(tmp_path / name)
    with pytest.raises(ValueError, match=says) as caught:
        weights.load(tmp_path / name, MODEL)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert "fetch it again" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "gone.npz")
    with pytest.raises(OSError, match=r"link") as caught:
        weights.load(tmp_path / "link.npz", MODEL)
    assert "damaged" not in str(caught.value)
    (tmp_path / "model.ckpt.index").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="TensorFlow checkpoint of that name"):
        weights.load(tmp_path / "model.ckpt", MODEL)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="got a device or pipe"):
        weights.load(tmp_path / "pipe.npz", MODEL)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch", reason="needs the extra: parity")
    path = tmp_path / f"w{suffix}"
    path.symlink_to("/proc/self/mem")  # its first byte cannot be read
    with pytest.raises(OSError, match=r"expected to read it .Input/output error") as caught:
        weights.load(path, MODEL)
    assert "fetch" not in str(caught.value)


def test_a_file_of_an_orbax_folder_that_may_not_be_read(tmp_path, params, monkeypatch):
    weights.save(tmp_path / "w", params)
    opened = open

    def refuses(path, *rest, **how):
        if "manifest" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **how)

    monkeypatch.setattr("builtins.open", refuses)
    with pytest.raises(PermissionError, match=r"manifest\.ocdbt: expected to read it .Permission"):
        weights.load(tmp_path / "w", MODEL)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ""])
def test_a_folder_whose_name_is_not_utf8(tmp_path, source, params, suffix):
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error.strerror}")
    path = folder / f"w{suffix}"
    if suffix == ".pth":
        _torch(tmp_path / "w.pth", source)
        shutil.move(tmp_path / "w.pth", path)
    else:
        weights.save(path, params)
    assert _digest(path) == weights.digest(params)


def test_places_in_an_orbax_folder(tmp_path, params):
    weights.save(tmp_path / "run" / "3" / "model", params)
    assert _digest(tmp_path / "run" / "3") == weights.digest(params)  # one item, whatever its name
    weights.save(tmp_path / "run" / "3" / "ema", params)
    with pytest.raises(ValueError, match=r"it holds ema, model: give one, such as .*3/ema"):
        weights.load(tmp_path / "run" / "3", MODEL)
    with pytest.raises(ValueError, match=r"a file of an Orbax checkpoint; give its folder, .*ema"):
        weights.load(tmp_path / "run" / "3" / "ema" / "manifest.ocdbt", MODEL)
    assert _digest(tmp_path / "run" / "3" / "ema" / ".." / "model") == weights.digest(params)


# What the programs say


def _error(capsys, program, *arguments):
    assert program.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_remedies_are_options_of_the_program(tmp_path, capsys, source, params):
    path = tmp_path / "w.npz"
    np.savez(path, **source)
    on = ["--model", "vit_digits", "--num-classes", "3"]
    said = _error(capsys, convert_weights, path, tmp_path / "o.npz", *on)
    assert "--num-classes 10 takes the file's head, --new-head starts a fresh one" in said
    said = _error(capsys, convert_weights, path, tmp_path / "o.npz", "--model", "vit_digits",
                  "--input-size", "12")  # fmt: skip
    assert said.endswith("--resize-positions resizes them")
    np.savez(path, **{n: a for n, a in source.items() if not n.startswith("head")})
    said = _error(
        capsys, certify, "--weights", path, "--num-classes", "10", "--out", tmp_path / "r"
    )
    assert "experiments.train --new-head starts one, which has to be trained" in said
    for text in ("=True", "entry="):
        assert text not in said
    np.savez(path, **_front("model.", source), **_front("model ema.", _raw(source)))
    said = _error(capsys, certify, "--weights", path, "--out", tmp_path / "r")
    assert "--weights-entry model or --weights-entry 'model ema'" in said
    said = _error(
        capsys, train, "--weights", path, "--weights-entry", "x", "--out", tmp_path / "t.npz"
    )
    assert "called 'x', found model, model ema" in said


def test_programs_say_which_set_they_took(tmp_path, capsys, params):
    _orbax(tmp_path / "own", {"average": params, "variables": _raw(params)})
    command = [str(tmp_path / "own"), str(tmp_path / "o.npz"), "--model", "vit_digits"]
    assert convert_weights.main(command) == 0
    said = capsys.readouterr().err
    assert said == "own: took 'average' of several; --weights-entry variables takes another\n"
    assert _digest(tmp_path / "o.npz") == weights.digest(params)
    assert convert_weights.main([*command, "--overwrite", "--weights-entry", "variables"]) == 0
    assert capsys.readouterr().err == ""
    assert _digest(tmp_path / "o.npz") == weights.digest(_raw(params))


def test_models_that_are_not_here(shared):
    folder = shared / "weights"
    with pytest.raises(ValueError, match=r"looks like an EfficientNet \(16 blocks, 1000 classes\)"):
        weights.load(folder / "efficientnet_lite0.safetensors", models.create("resnetv2_50x1"))
    with pytest.raises(
        ValueError, match=r"a ViT \(12 blocks, width 384, 14x14 tokens, with LayerS"
    ):
        weights.load(folder / "vit_small_patch14_dinov2_like.safetensors", models.create("vit_s16"))
    assert weights.num_classes(folder / "vit_small_patch14_dinov2_like.safetensors") is None
