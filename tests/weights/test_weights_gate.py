"""What counts as weights in a file: floating numbers, one set of them, under whatever wrappers."""

from __future__ import annotations

import itertools
import stat

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from certmask_jax import models, weights

MODEL = models.create("cifar_resnet20")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Right weights under PyTorch's names."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(1, 0.2, leaf.shape).astype(np.float16).astype(np.float32)  # noqa: E731
    path = tmp_path_factory.mktemp("source") / "w.npz"
    weights.save(path, jax.tree.map(draw, MODEL.param_shapes()))
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _load(path, **options):
    return weights.digest(weights.load(path, MODEL, **options))


@pytest.fixture(scope="module")
def right(tmp_path_factory, source):
    path = tmp_path_factory.mktemp("right") / "w.npz"
    np.savez(path, **source)
    return _load(path)


def _npz(path, arrays):
    np.savez(path, **arrays)


def _safetensors(path, arrays):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)


def _orbax(path, arrays):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, arrays)


def _torch(path, arrays):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    as_tensor = lambda a: torch.tensor(a) if isinstance(a, np.ndarray) else a  # noqa: E731
    torch.save({name: as_tensor(a) for name, a in arrays.items()}, path)


FORMATS = {".npz": _npz, ".safetensors": _safetensors, ".orbax": _orbax, ".pth": _torch}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int64", "bool", "complex64", "datetime64[s]", "timedelta64[s]", "S3"],
)
def test_what_is_no_floating_number_is_no_weight(tmp_path, source, suffix, dtype):
    shape = source["bn1.bias"].shape
    odd = np.ones(shape).astype(dtype) if "time" not in dtype else np.zeros(shape, dtype)
    path = tmp_path / f"w{suffix}"
    try:
        FORMATS[suffix](path, {**source, "bn1.bias": odd})
    except Exception as error:  # each format's own
        pytest.skip(f"{suffix} holds no {dtype}: {error}"[:80])
    with pytest.raises(ValueError, match=r"of floating numbers .*: bn1\.bias|damaged") as caught:
        _load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floating_numbers_of_all_widths_are_weights(tmp_path, source, right, suffix, dtype):
    if dtype == "bfloat16" and suffix == ".pth":
        torch = pytest.importorskip("torch", reason="needs the extra: parity")
        torch.save({n: torch.tensor(a).bfloat16() for n, a in source.items()}, tmp_path / "w.pth")
    else:
        as_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        FORMATS[suffix](tmp_path / f"w{suffix}", {n: a.astype(as_dtype) for n, a in source.items()})
    loaded = weights.load(tmp_path / f"w{suffix}", MODEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
    if dtype != "bfloat16":  # it rounds
        assert weights.digest(loaded) == right


@pytest.mark.parametrize(
    ("dtype", "number", "says"),
    [
        (np.float64, 1e300, "too large for float32: bn1.bias"),
        (np.float64, -1e39, "too large for float32: bn1.bias"),
        (np.float64, np.nan, "NaN or infinite: bn1.bias"),
        (np.float16, np.inf, "NaN or infinite: bn1.bias"),
        (np.float32, np.nan, "NaN or infinite: bn1.bias"),
    ],
)
def test_numbers_are_checked_as_they_are_used(tmp_path, source, dtype, number, says):
    _npz(tmp_path / "w.npz", {**source, "bn1.bias": np.full(16, number, dtype)})
    with pytest.raises(ValueError, match=f"expected finite weights. {says}"):
        _load(tmp_path / "w.npz")


def test_odd_tensors_are_named_in_one_line(tmp_path, source):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    bias = torch.tensor(source["bn1.bias"])
    conv = torch.tensor(source["conv1.weight"])
    for name, odd, says in (
        ("bn1.bias", torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8), "qint8"),
        ("bn1.bias", bias.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        ("bn1.bias", bias.to(torch.float8_e5m2), "float8_e5m2"),
        ("bn1.bias", bias.to_sparse(), "float32 sparse_coo"),
        ("conv1.weight", conv.to_sparse(), "float32 sparse_coo"),
        ("bn1.bias", torch.empty(16, device="meta"), "float32 without content"),
        ("bn1.bias", bias.to(torch.complex64), "complex64"),
        ("bn1.bias", bias > 0, "bool"),
    ):
        torch.save(
            {**{n: torch.tensor(a) for n, a in source.items()}, name: odd}, tmp_path / "w.pt"
        )
        with pytest.raises(ValueError, match=rf"other kinds: {name} \({says}\)") as caught:
            _load(tmp_path / "w.pt")
        assert "\n" not in str(caught.value)


def test_float8_of_safetensors(tmp_path, source):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    from safetensors.torch import save_file

    tensors = {n: torch.tensor(a) for n, a in source.items()}
    tensors["bn1.bias"] = tensors["bn1.bias"].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"other kinds: bn1.bias \(.*8"):
        _load(tmp_path / "w.safetensors")


WORDS = ("module", "_orig_mod", "model", "net")


@pytest.mark.parametrize(
    "words",
    [*itertools.product(WORDS, repeat=1), *itertools.product(WORDS, repeat=2),
     ("model", "_orig_mod", "module"), ("module", "module", "module"), ("student", "backbone")],
)  # fmt: skip
def test_words_in_front_come_off_in_any_order_and_number(tmp_path, source, right, words):
    front = ".".join(words) + "."
    counters = {"n_averaged": np.array(3), f"{front}bn1.num_batches_tracked": np.array(5)}
    _npz(tmp_path / "w.npz", {**{front + n: a for n, a in source.items()}, **counters})
    assert _load(tmp_path / "w.npz") == right
    assert weights.num_classes(weights.read(tmp_path / "w.npz")) == 10


def test_wrappers_in_the_middle_come_off(tmp_path, source, right):
    odd = {name.replace(".", "._orig_mod.", 1): a for name, a in source.items()}
    _npz(tmp_path / "w.npz", odd)
    assert _load(tmp_path / "w.npz") == right


def test_what_stands_beside_the_model_is_named(tmp_path, source):
    beside = {f"model.{n}": a for n, a in source.items()} | {"loss.weight": np.ones(10, np.float32)}
    _npz(tmp_path / "w.npz", beside)
    with pytest.raises(ValueError, match=r"got others. unexpected: loss\.weight\. "):
        _load(tmp_path / "w.npz")


def test_two_sets_by_what_stands_in_front(tmp_path, source, right):
    raw = {f"model.{n}": a + 1 for n, a in source.items()}
    _npz(tmp_path / "w.npz", {**raw, **{f"ema_model.{n}": a for n, a in source.items()}})
    with pytest.raises(ValueError, match=r"got 2 that differ: model, ema_model\. Say which"):
        _load(tmp_path / "w.npz")
    assert _load(tmp_path / "w.npz", entry="ema_model.") == right
    assert _load(tmp_path / "w.npz", entry="model.") != right
    with pytest.raises(ValueError, match=r"called 'other\.', found model, ema_model"):
        _load(tmp_path / "w.npz", entry="other.")


PAIRS = [
    ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema"),
    ("model", "ema"), ("net", "swa_state_dict"), ("student", "teacher"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_sets_in_a_torch_file_are_asked_for(tmp_path, source, right, one, other):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    tensors = {n: torch.tensor(a) for n, a in source.items()}
    state = {one: {n: t + 1 for n, t in tensors.items()}, other: tensors, "epoch": 3}
    state["optimizer"] = {
        "state": {0: {"exp_avg": tensors["bn1.bias"]}},
        "param_groups": [{"lr": 1}],
    }
    torch.save(state, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=f"got 2 that differ: {one}, {other}. Say which one"):
        _load(tmp_path / "w.ckpt")
    file = weights.read(tmp_path / "w.ckpt", entry=other)
    assert (_load(file), weights.taken(file, MODEL)) == (right, weights.Taken(other, (one,)))
    assert _load(tmp_path / "w.ckpt", entry=one) != right
    with pytest.raises(ValueError, match=f"called 'x', found {one}, {other}"):
        _load(tmp_path / "w.ckpt", entry="x")
    # Equal ones are no question; the one that is taken is said.
    torch.save({**state, one: tensors}, tmp_path / "same.ckpt")
    file = weights.read(tmp_path / "same.ckpt")
    assert (_load(file), weights.taken(file, MODEL)) == (right, weights.Taken(one, (other,)))


def test_a_set_one_level_deeper(tmp_path, source, right):
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    tensors = {n: torch.tensor(a) for n, a in source.items()}
    torch.save({"ema": {"module": tensors, "decay": 0.9}, "extra": None}, tmp_path / "w.pt")
    assert _load(tmp_path / "w.pt") == right


def test_two_sets_in_an_orbax_folder(tmp_path):
    model = models.create("vit_digits")
    params = weights.load(models.default_weights("vit_digits"), model)
    raw = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params["params"])
    average = jax.tree.map(np.asarray, params["params"])
    _orbax(tmp_path / "two", {"params": raw, "ema_params": average, "step": np.int32(3)})
    with pytest.raises(ValueError, match="got 2 that differ: "):
        weights.load(tmp_path / "two", model)
    loaded = weights.load(tmp_path / "two", model, entry="ema_params")
    assert weights.digest(loaded) == weights.digest(params)
    # Of this package's own training states the average is the result, and said to be.
    _orbax(tmp_path / "own", {"average": {"params": average}, "variables": {"params": raw}})
    file = weights.read(tmp_path / "own")
    assert weights.digest(weights.load(file, model)) == weights.digest(params)
    assert weights.taken(file, model) == weights.Taken("average", ("variables",))


def test_paths_are_no_damage(tmp_path, source, right, monkeypatch):
    (tmp_path / "a").mkdir()
    _npz(tmp_path / "w.npz", source)
    _orbax(tmp_path / "o", source)
    monkeypatch.chdir(tmp_path / "a")
    for path in ("../w.npz", "../a/../o", "./../a/../w.npz", tmp_path / "a" / ".." / "o"):
        assert _load(path) == right
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "deep").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "a" / "w.npz").write_bytes((tmp_path / "w.npz").read_bytes())
    assert _load(tmp_path / "deep" / ".." / "w.npz") == right  # up from where the link leads
    with pytest.raises(FileNotFoundError, match=r"none\.npz: expected a weights file, found none"):
        _load("../none.npz")
    with pytest.raises(ValueError, match=r"gs://b/w\.npz: expected a local path, .* copy or down"):
        _load("gs://b/w.npz")
    with pytest.raises(ValueError, match="expected a local path, got ''"):
        _load("")


def test_what_may_not_be_read_is_no_damage(tmp_path, source, monkeypatch):
    path = tmp_path / "w.npz"
    _npz(path, source)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(PermissionError):
            _load(path)
    finally:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)

    def refuses(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refuses)
    with pytest.raises(OSError, match=r"w\.npz: expected to read it .Permission denied.$"):
        _load(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", r"pointer of Git LFS.*git lfs pull"),
        (b"  <html><body>404", "is a web page"),
        (b"", "it is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".CKPT"])
def test_what_downloads_leave(tmp_path, content, says, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        _load(tmp_path / f"w{suffix}")
