"""Weights by name: from the Hugging Face Hub, here a server that answers alike, and from timm."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_hub import TOKEN, Repository, commit_of, serving
from timm_oracle import load_timm

import certmask_jax as cm
from certmask_jax import models, training, weights
from certmask_jax.models import spellings
from certmask_jax.models.published import MODELS
from certmask_jax.models.spellings import resolve
from certmask_jax.programs import (
    certification_config,
    certification_job,
    certification_options,
    certify,
    convert_weights,
    measure_input,
    train,
    training_job,
)
from certmask_jax.weights import cards, kinds, timm_models
from certmask_jax.weights.hub_repositories import HubRepository
from certmask_jax.weights.timm_models import TimmModel

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 10,
    "num_features": 192,
    "global_pool": "token",
    "pretrained_cfg": {
        "tag": "augreg_in21k_ft_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.25, 0.125],
        "num_classes": 10,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}
WANTED = models.DataConfig(
    (224, 224), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125), resize=280, interpolation="bilinear"
)


def _config(**changed):
    """``CONFIG`` as a file, with other values at the top or in ``pretrained_cfg``."""
    top = {**CONFIG, **{k: v for k, v in changed.items() if k in ("architecture", "model_args")}}
    inner = {k: v for k, v in changed.items() if k not in top}
    return json.dumps({**top, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **inner}}).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Random weights of a ViT of ten classes, as a file in float16 and as parameters."""
    file = tmp_path_factory.mktemp("made") / "model.safetensors"
    rng = np.random.default_rng(0)
    shapes = models.create("vit_ti16", num_classes=10).param_shapes()
    params = jax.tree.map(lambda s: rng.normal(0, 0.05, s.shape).astype(np.float16), shapes)
    weights.save(file, params)
    return file.read_bytes(), weights.digest(jax.tree.map(lambda a: a.astype(np.float32), params))


@pytest.fixture(scope="module")
def repositories(made):
    content = {"config.json": _config(), "model.safetensors": made[0]}
    return {
        "me/vit": Repository({"main": content, "v2": {**content, "config.json": _config(tag="x")}}),
        "me/gated": Repository({"main": content}, gated=True),
        "me/private": Repository({"main": content}, private=True),
        "me/empty": Repository({"main": {"config.json": _config()}}),
        "me/bare": Repository({"main": {"model.safetensors": made[0]}}),
        "me/other": Repository({"main": {"config.json": _config(architecture="convnext_tiny")}}),
        "me/broken": Repository({"main": {"config.json": b"<html>"}}),
    }


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """huggingface_hub with the small server as its endpoint, and the requests that come."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (extra: parity)")
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(repositories) as (endpoint, asked):
        for name, value in {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield asked


def _offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- the Hub ---


def test_model_weights_and_preprocessing_come_from_the_repository(hub, made, repositories):
    loaded = cm.load_model(file="hf:me/vit")
    assert loaded.model.name == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert (loaded.num_classes, loaded.data_config) == (10, WANTED)
    assert loaded.preprocessing.mean == WANTED.mean
    assert weights.digest(loaded.params) == made[1]
    file = weights.read("hf:me/vit@v2")
    version = repositories["me/vit"].revisions["v2"]
    assert file.source["revision"] == commit_of(version) == file.path.parent.name
    assert file.source["file"] == "model.safetensors"
    assert file.source["repository"] == "me/vit"
    assert len(file.source["sha256"]) == 64
    assert file.card is not None
    assert file.card.model_name() == "vit_tiny_patch16_224"  # a tag that is not known
    by_commit = weights.read(f"hf:me/vit@{commit_of(version)}")
    assert by_commit.source == file.source


def test_what_the_user_says_wins_unless_it_is_another_model(hub):
    small = cm.load_model(
        "vit_ti16", "hf:me/vit", input_size=64, resize_positions=True, pooling="token"
    )
    assert small.data_config.input_size == (64, 64)
    assert small.data_config.resize is None  # as an input size of one's own is
    assert small.data_config.mean == WANTED.mean
    larger = weights.card_of("hf:me/vit").prepared(models.create("vit_ti16_384"), None)
    assert (larger.data_config.input_size, larger.data_config.resize) == ((384, 384), 384)
    assert larger.data_config.std == WANTED.std
    for name in ("vit_s16", "vit_ti32", "resmlp_s12"):
        with pytest.raises(ValueError, match=rf"model: expected vit_tiny.*card, got {name}"):
            cm.load_model(name, "hf:me/vit")


def test_offline_takes_what_is_in_the_cache(hub, monkeypatch):
    online = weights.read("hf:me/vit")
    with pytest.raises(ValueError, match="with neither"):
        weights.read("hf:me/empty")
    assert weights.read("hf:me/bare").card is None
    before = len(hub)
    _offline(monkeypatch)
    file = weights.read("hf:me/vit")
    assert (file.source, file.card, file.path) == (online.source, online.card, online.path)
    assert weights.read("hf:me/bare").card is None  # which is known not to be there
    with pytest.raises(ValueError, match="with neither"):
        weights.read("hf:me/empty")
    for address in ("hf:me/vit@v2", "hf:me/other"):
        with pytest.raises(OSError, match=r"expected config\.json in the cache .*, as HF_HUB_OFF"):
            weights.read(address)
    assert len(hub) == before  # nobody was asked


def test_a_cache_without_the_card_is_no_repository_without_one(hub, monkeypatch):
    """timm fetches the weights alone: offline they would be used with another preprocessing."""
    import huggingface_hub

    huggingface_hub.hf_hub_download("me/vit", "model.safetensors")
    _offline(monkeypatch)
    with pytest.raises(OSError, match=r"expected config\.json in the cache"):
        weights.read("hf:me/vit")


def test_a_file_of_pytorchs_online_and_offline(hub, repositories, monkeypatch):
    """Offline it may be there alone, fetched by another program that asked for nothing else."""
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    import huggingface_hub

    content = io.BytesIO()
    torch.save({"head.bias": torch.ones(3)}, content)
    files = {"config.json": _config(), "pytorch_model.bin": content.getvalue()}
    for name in ("me/bin", "me/bin2"):
        monkeypatch.setitem(repositories, name, Repository({"main": files}))
    assert list(weights.read("hf:me/bin").entries) == ["head.bias"]
    for name in files:
        huggingface_hub.hf_hub_download("me/bin2", name)
    _offline(monkeypatch)
    for name in ("me/bin", "me/bin2"):
        assert weights.read(f"hf:{name}").source["file"] == "pytorch_model.bin"


def test_tokens_open_what_is_gated_or_private(hub, monkeypatch):
    with pytest.raises(ValueError, match="hf:me/gated: expected a repository that is open to you"):
        weights.card_of("hf:me/gated")
    with pytest.raises(ValueError, match=r"hf:me/private: expected a repository, but .* has none"):
        weights.card_of("hf:me/private")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ValueError, match=r"expected a token that .* accepts, .* \(401\)"):
        weights.card_of("hf:me/private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("gated", "private"):
        assert weights.card_of(f"hf:me/{name}").data_config == WANTED


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf:me/nothing", "hf:me/nothing: expected a repository, but http.* has none of this name"),
        ("hf:me/vit@v3", "expected a branch, a tag or a commit after @, .* has no v3"),
        ("hf:me/empty", r"expected a repository with model\.safetensors or pytorch_model\.bin"),
        ("hf:me/broken", r"expected JSON in its config\.json"),
        ("hf:me/other", "model: expected one that is here, got 'convnext_tiny', of which"),
        ("hf:me/bare", "name: expected that of a model, as nothing says"),
        ("hf:vit", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf://me/vit", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:me/vit@", "expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
    ],
)
def test_errors_of_the_hub_are_one_line(hub, address, said):
    with pytest.raises(ValueError, match=said) as error:
        cm.load_model(file=address)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    """As huggingface_hub says it, which tries for half a minute first."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("An error happened ...") from OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(OSError, match=r"expected to fetch config\.json from http.* \(no route\)"):
        weights.read("hf:me/vit")


def test_without_huggingface_hub(monkeypatch):
    for name in ("huggingface_hub", "huggingface_hub.constants", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"expected huggingface_hub, .* pip install huggingface"):
        weights.read("hf:me/vit")


def test_addresses_are_no_paths(tmp_path, monkeypatch):
    assert weights.address("hf:a.b/c-d_e@x/y") == HubRepository("a.b/c-d_e", "x/y")
    assert str(HubRepository("a/b", "c")) == "hf:a/b@c"
    assert weights.address("timm:vit_tiny_patch16_224.x") == TimmModel("vit_tiny_patch16_224.x")
    monkeypatch.chdir(tmp_path)
    for name in ("hf:a/b", "timm:c"):
        assert weights.address(f"./{name}") == tmp_path / name
        assert weights.card_of(f"./{name}") is None
    with pytest.raises(ValueError, match="timm:: expected timm:NAME"):
        weights.address("timm:")


# --- programs ---


def _photographs(folder):
    for number in range(10):
        path = folder / f"class{number}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (300, 260), (20 * number, 100, 50)).save(path)
    return folder


def test_certify_takes_model_and_preprocessing_and_records_where_from(hub, tmp_path, repositories):
    folder = _photographs(tmp_path / "photographs")
    data = ["--dataset", "image_folder", "--data-dir", str(folder), "--num-images", "2"]
    parser = certification_options.parser()
    options = [*data, "--weights", "hf:me/vit", "--patch", "32"]
    config = certification_config.read_config(parser.parse_args(options))
    job = certification_job.opened(config, "certify")
    assert job.model.data_config == WANTED
    assert job.preprocessing.std == WANTED.std
    assert job.dataset.image_size == (224, 224)
    assert job.provenance["weights"] == "model.safetensors"
    source = job.provenance["weights_source"]
    assert source["revision"] == commit_of(repositories["me/vit"].revisions["main"])
    assert "weights_source" not in job.identity  # the same weights from a file are the same run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "hf:me/nothing"], "hf:me/nothing: expected a repository"),
        (["--weights", "hf:me/bare"], "--model: expected one, as nothing says"),
        (["--weights", "hf:me/vit", "--model", "vit_s16"], "--model: expected vit_tiny_patch16"),
        (["--weights", "hf:vit"], "--weights: hf:vit: expected hf:OWNER/NAME"),
    ],
)
def test_programs_say_what_is_wrong_in_one_line(hub, capsys, options, said):
    command = ["--dataset", "image_folder", "--data-dir", "nowhere", "--patch", "32", *options]
    assert certify.main(command) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_training_starts_from_what_the_card_says(hub, made, capsys, monkeypatch):
    command = ["--dataset", "digits", "--weights", "hf:me/vit"]
    assert train.main([*command, "--model", "vit_digits"]) == 2  # the default, but typed
    assert "--model: expected vit_tiny_patch16" in capsys.readouterr().err
    began = []

    def measure(trainer, source, params, *, steps):  # in place of steps, which take minutes
        began.append((trainer.model, source.gather(np.arange(1)).images, weights.digest(params)))
        return "measured"

    monkeypatch.setattr(measure_input, "measure", measure)
    assert train.main([*command, "--measure-input", "1", "--input", "stream"]) == 0
    assert capsys.readouterr().out == "measured\n"
    [(model, images, digest)] = began
    assert (model.name, model.data_config) == ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", WANTED)
    assert images.shape == (1, 224, 224, 3)
    assert digest == made[1]


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.orbax"])
def test_converted_weights_want_their_images_as_the_card_says(hub, made, tmp_path, name):
    out = tmp_path / name
    assert convert_weights.main(["hf:me/vit", str(out)]) == 0
    for model in (None, "vit_ti16"):
        loaded = cm.load_model(model, out)
        assert (loaded.data_config, loaded.num_classes) == (WANTED, 10)
        assert loaded.preprocessing.std == WANTED.std
        assert cm.load_model(model, weights.read(out)).data_config == WANTED
    assert weights.digest(loaded.params) == made[1]
    parser = certification_options.parser()
    data = ["--dataset", "image_folder", "--data-dir", str(_photographs(tmp_path / "photographs"))]
    for options in ([], ["--model", "vit_ti16"]):
        words = [*data, "--patch", "32", "--weights", str(out), *options]
        config = certification_config.read_config(parser.parse_args(words))
        assert certification_job.opened(config, "certify").model.data_config == WANTED
    again = tmp_path / "again.npz"  # from a file that has the card already
    assert convert_weights.main([str(out), str(again)]) == 0
    assert weights.card_of(again).data_config == WANTED
    with pytest.raises(ValueError, match=r"model: expected vit_.*, got vit_s16"):
        cm.load_model("vit_s16", out)
    assert weights.load(out, models.create("vit_ti16", num_classes=10)) is not None


def test_trained_weights_want_their_images_as_the_card_said(hub, tmp_path, monkeypatch):
    folder = _photographs(tmp_path / "photographs")
    monkeypatch.setattr(
        training_job, "_train", lambda job, *_: training.Trained(job.params, (), 0, True)
    )
    monkeypatch.setattr(training_job, "_evaluated", lambda *_: "")
    out = tmp_path / "t.npz"
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "data" / split)
    words = ["--dataset", "image_folder", "--data-dir", str(tmp_path / "data"), "--out", str(out)]
    words += ["--test-split", "val", "--weights", "hf:me/vit", "--new-head", "--batch-size", "4"]
    words += ["--input-size", "112", "--resize-positions"]
    assert train.main(words) == 0
    card = weights.card_of(out)
    assert card.data_config.input_size == (112, 112)
    assert (card.data_config.mean, card.num_classes) == (WANTED.mean, 10)
    loaded = cm.load_model(file=out)
    assert loaded.data_config == card.data_config
    assert loaded.image_size == (112, 112)


def test_a_card_in_a_file_that_cannot_be_read(hub, tmp_path, capsys):
    out = tmp_path / "w.orbax"
    assert convert_weights.main(["hf:me/vit", str(out)]) == 0
    (out / kinds.CARD).write_text('{"architecture": "vit_ti16"')
    with pytest.raises(ValueError, match="expected the card of its weights"):
        cm.load_model("vit_ti16", out)
    assert certify.main(["--weights", str(out)]) == 2
    assert "expected the card of its weights" in capsys.readouterr().err
    for damaged in ("n.npz", "n.safetensors"):
        (tmp_path / damaged).write_bytes(b"nothing")
        assert weights.card_of(tmp_path / damaged) is None


def test_outputs_are_the_classes_that_the_card_names(hub, repositories, tmp_path):
    """Folders are sorted by letters; the card has them the other way round."""
    names = [f"class{number}" for number in reversed(range(10))]
    facts = {**CONFIG, "label_names": names}
    content = {
        **repositories["me/vit"].revisions["main"],
        "config.json": json.dumps(facts).encode(),
    }
    repositories["me/named"] = Repository({"main": content})
    parser = certification_options.parser()
    folder = _photographs(tmp_path / "photographs")
    words = ["--dataset", "image_folder", "--data-dir", str(folder), "--patch", "32"]

    def classes(*options):
        config = certification_config.read_config(parser.parse_args([*words, *options]))
        return certification_job.opened(config, "certify").dataset

    named = classes("--weights", "hf:me/named")
    assert named.class_names == tuple(names)
    assert named.classes["class9"] == 0
    assert named.class_mapping == "weights' card"
    (tmp_path / "order.txt").write_text("\n".join(sorted(names)))
    index = ["--class-index", str(tmp_path / "order.txt")]
    assert classes("--weights", "hf:me/named", *index).classes["class9"] == 9
    assert classes("--weights", "hf:me/vit").classes["class9"] == 9
    (folder / "class3").rename(folder / "else")
    with pytest.raises(ValueError, match=r"outputs of the model.*but 1 of 10 are not \(else\)"):
        classes("--weights", "hf:me/named")


def test_timms_efficientnet_lite_is_not_tensorflows(hub, repositories):
    """Same names and shapes, another padding: with its weights other logits come out."""
    facts = {"architecture": "efficientnet_lite0", "num_classes": 1000,
             "pretrained_cfg": {"tag": "ra_in1k", "input_size": [3, 224, 224]}}  # fmt: skip
    card = cards.of_timm(facts, "here")
    with pytest.raises(ValueError, match="with timm's own padding"):
        card.model_name()
    with pytest.raises(ValueError, match="with timm's own padding"):
        card.check_is("efficientnet_lite0")
    tensorflows = cards.of_timm({**facts, "architecture": "tf_efficientnet_lite0"}, "here")
    assert tensorflows.model_name() == "tf_efficientnet_lite0"


def test_a_process_of_its_own_with_the_hubs_settings(repositories, made, tmp_path):
    """``HF_ENDPOINT`` and ``HF_HOME``, as a user sets them."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (extra: parity)")
    out = tmp_path / "out.npz"
    program = "from certmask_jax.programs import convert_weights as c; raise SystemExit(c.main())"
    command = [sys.executable, "-c", program, "hf:me/vit", str(out)]
    with serving(repositories) as (endpoint, asked):
        ended = subprocess.run(
            [*command, "--num-classes", "10"],  # which a checkpoint with another head would need
            env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert made[1] in ended.stdout
    assert any("model.safetensors" in one for one in asked)


# --- cards ---


def test_cards_of_the_older_form_and_of_others():
    card = cards.of_timm(json.loads(_config()), "here")
    old = {"architecture": CONFIG["architecture"], **CONFIG["pretrained_cfg"]}
    assert cards.of_timm(old, "here") == card.__class__(
        "here", card.architecture, card.tag, 10, WANTED
    )
    assert cards.of_timm({"architectures": ["ViTForImageClassification"]}, "here") is None
    headless = cards.of_timm({**CONFIG, "num_classes": 0}, "here")
    assert headless.num_classes is None
    mean = cards.of_timm({**CONFIG, "global_pool": "avg"}, "here")
    assert (mean.options(), card.options()) == ({"pooling": "mean"}, {})
    lite = {**CONFIG, "architecture": "tf_efficientnet_lite0", "global_pool": "avg"}
    assert cards.of_timm(lite, "here").options() == {}  # it is no choice there
    squash = cards.of_timm(json.loads(_config(crop_mode="squash", crop_pct=1.0)), "here")
    assert squash.data_config.resize is None
    larger = cards.of_timm(json.loads(_config(model_args={"img_size": 448})), "here")
    assert (larger.data_config.input_size, larger.data_config.resize) == ((448, 448), 560)
    model = models.create("vit_ti16")
    assert larger.prepared(model, None).data_config.input_size == (448, 448)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode: expected squash, or center"),
        ({"input_size": [3, 224, 192]}, "center of a square, got center of 224x192"),
        ({"input_size": [4, 224, 224]}, "expected 1 or 3 channels"),
        ({"crop_pct": 1.5}, "crop_pct: expected a fraction"),
        ({"interpolation": "random"}, "interpolation: expected one of"),
        ({"mean": [0.5]}, "mean, std: expected 3 values each"),
        ({"mean": "none"}, "expected a preprocessing as timm writes it"),
    ],
)
def test_a_preprocessing_that_is_not_known_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        cards.of_timm(json.loads(_config(**changed)), "here")


def test_a_model_that_is_built_otherwise_is_refused():
    card = cards.of_timm(json.loads(_config(model_args={"act_layer": "gelu_tanh"})), "here")
    with pytest.raises(ValueError, match="builds vit_tiny_patch16_224 with act_layer=gelu_tanh"):
        card.model_name()


def test_preprocessing_of_all_known_weights_is_timms():
    """Every tag of every architecture of timm's that is a model here."""
    timm = load_timm()
    checked = 0
    known = {name.partition(".")[0] for name in (*spellings._timm_names(), *MODELS)}
    for name in timm.list_models(pretrained=True):
        if name.partition(".")[0] not in known:
            continue
        card = TimmModel(name).card()
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict()
        )
        steps = timm.data.create_transform(**config, is_training=False).transforms
        resize, crop, normalise = steps[0], steps[1], steps[-1]
        got = card.data_config
        assert (got.resize, got.input_size) == (resize.size, tuple(crop.size)), name
        assert got.interpolation == resize.interpolation.value, name
        np.testing.assert_allclose(got.mean, normalise.mean, atol=1e-7)
        np.testing.assert_allclose(got.std, normalise.std, atol=1e-7)
        _check_own(name, got)
        checked += 1
    assert checked > 60


def _check_own(name, wanted):
    """Where the name with its tag is known here, the preprocessing here is that of the card."""
    try:
        own = models.create(name).data_config
    except ValueError:
        return
    if resolve(name).model.startswith("efficientnet"):  # timm's is not that of their authors
        return
    assert (own.input_size, own.resize) == (wanted.input_size, wanted.resize), name
    assert (own.interpolation, own.mean[0]) == (wanted.interpolation, wanted.mean[0]), name


# --- timm ---


def test_weights_that_timm_loads(hub, made, repositories, monkeypatch):
    """From the Hub's repository of timm's own name, which timm asks itself."""
    timm = load_timm()
    rng = np.random.default_rng(1)
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    arrays = {n: rng.normal(0, 0.05, tuple(t.shape)).astype(np.float16) for n, t in state.items()}
    from safetensors.numpy import save

    name = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    monkeypatch.setitem(
        repositories, name, Repository({"main": {"model.safetensors": save(arrays)}})
    )
    file = weights.read("timm:vit_tiny_patch16_224")
    loaded = cm.load_model(file=file)
    assert loaded.data_config == models.create("vit_ti16").data_config
    assert loaded.num_classes == 1000
    np.testing.assert_array_equal(
        loaded.params["params"]["head"]["kernel"], arrays["head.weight"].T.astype(np.float32)
    )
    assert file.source == {"timm": timm.__version__, "model": name.partition("/")[2], "from": name}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_model", "timm .* has none of this name"),
        ("vit_tiny_patch16_224.nope", "timm .* has none of this name"),
        ("vit_giant_patch14_224", "expected a model with weights"),
        ("resnet18.a1_in1k", "model: expected one that is here, got 'resnet18'"),
    ],
)
def test_what_timm_does_not_have_is_one_line(name, said):
    load_timm()
    with pytest.raises(ValueError, match=said):
        cm.load_model(file=f"timm:{name}")


def test_timm_that_cannot_load_its_weights(hub):
    load_timm()
    with pytest.raises(OSError, match="timm:resmlp_12_224: expected timm to load its weights"):
        weights.read("timm:resmlp_12_224")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"expected timm, which has it, .* pip install timm"):
        timm_models.TimmModel("vit_tiny_patch16_224").card()
