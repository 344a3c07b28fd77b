"""Which output of the model each class of a data set is: known, given, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from certmask_jax import models
from certmask_jax._text import encodable
from certmask_jax.data.class_index import read_class_index
from certmask_jax.data.class_mapping import imagenet_wnids, mapped, restricted
from certmask_jax.data.imagenet_devkit import devkit_wnids
from certmask_jax.models.output_choice import restricted as with_outputs
from tests.support.small_models import drawn_params

IMAGENETTE = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


def test_outputs_that_the_weights_name():
    said = ["b", "a", "c"]
    assert mapped(["a", "b", "c"], 3, output_names=said).labels == (1, 0, 2)
    assert mapped(["c", "b"], 3, output_names=said).labels == (2, 0)  # some classes of the model's
    assert mapped(["a", "b", "c"], 3, output_names=said).how == "weights' card"
    assert mapped(["a", "b", "c"], 3, {"a": 0, "b": 1, "c": 2}, output_names=said).labels == (
        0,
        1,
        2,
    )
    assert mapped(["a", "b", "c"], 3, "sorted", output_names=said).labels == (0, 1, 2)
    assert mapped(["x", "y", "z"], 3, output_names=said).labels == (
        0,
        1,
        2,
    )  # other names altogether
    assert mapped(["a", "b", "c"], 3, output_names=["c", "b", "a", "d"]).labels == (0, 1, 2)
    with pytest.raises(ValueError, match=r"but 1 of 3 are not \(x\)"):
        mapped(["a", "b", "x"], 3, output_names=said)


def test_the_ids_of_imagenet_are_in_the_order_of_the_outputs():
    ids = imagenet_wnids()
    assert len(ids) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    # Known places: tench, goldfish, Chihuahua, tiger cat, laptop, toilet tissue.
    for number, one in ((0, "n01440764"), (1, "n01443537"), (151, "n02085620"), (282, "n02123159"),
                        (620, "n03642806"), (999, "n15075141")):  # fmt: skip
        assert ids[number] == one


def test_the_ids_are_those_of_another_list():
    timm = pytest.importorskip("timm.data", reason="needs the extra: parity", exc_type=Exception)
    assert list(imagenet_wnids()) == list(timm.ImageNetInfo().label_names())


@pytest.mark.parametrize(
    ("names", "outputs", "labels", "how"),
    [
        (["cat", "dog"], 2, (0, 1), "sorted names"),
        (["cat", "dog"], None, (0, 1), "sorted names"),
        (["3", "5", "8"], 10, (3, 5, 8), "names are numbers"),
        (list("0123456789"), 10, tuple(range(10)), "names are numbers"),
        (["0", "1", "10", "2"], 1000, (0, 1, 10, 2), "names are numbers"),
        (sorted(map(str, range(11))), 11, (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9), "names are numbers"),
        (["003", "005"], 10, (3, 5), "names are numbers"),
        (list("123456789"), 9, tuple(range(9)), "sorted names"),  # can be read in one way only
        ([f"{n:02}" for n in range(1, 11)], 10, tuple(range(10)), "sorted names"),
        (list(IMAGENETTE), 1000, tuple(IMAGENETTE.values()), "ImageNet ids"),
        (list(IMAGENETTE), 10, tuple(range(10)), "sorted names"),
        (["n02085620-Chihuahua", "n02123159_tiger_cat"], 1000, (151, 282), "ImageNet ids"),
        (["N01440764", "n01443537 goldfish"], 1000, (0, 1), "ImageNet ids"),
    ],
)
def test_what_names_say(names, outputs, labels, how):
    mapping = mapped(names, outputs)
    assert (mapping.labels, mapping.how) == (labels, how)
    assert len(mapping.output_names) == (outputs or len(names))
    if how != "ImageNet ids":
        assert [mapping.output_names[label] for label in labels] == names


@pytest.mark.parametrize(
    ("names", "outputs", "says"),
    [
        (["cat", "dog"], 1000, "which of the model's 1000 outputs each class is, got 2 classes"),
        (["cat", "dog"], 1, "at least 2 outputs"),
        ([str(n) for n in range(1, 11)], 10, "1 to 10, but .* 0 to 9: .* read in two ways"),
        (["3", "5", "12"], 10, "numbers from 3 to 12 are no outputs"),
        (["3", "03"], 10, "class index"),
        (["-1", "2"], 10, "class index"),
        (["\u0663", "5"], 10, "class index"),
        (list(IMAGENETTE), 1001, "ImageNet ids are mapped for models with 1,000 outputs only"),
        (list(IMAGENETTE), 21843, "ImageNet ids are mapped for models with 1,000 outputs only"),
        ([*IMAGENETTE, "n00000001"], 1000, r"1 of 11 are others \(n00000001\)"),
        ([*IMAGENETTE, "cat"], 1000, "class index"),
        (["n0144076", "n014407640"], 1000, "class index"),
    ],
)
def test_what_is_refused(names, outputs, says):
    with pytest.raises(ValueError, match=says) as caught:
        mapped(names, outputs)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_numbers_its_classes_is_taken_at_its_word():
    names = ["truck", "cat", "ant"]
    assert mapped(names, 3, in_order=True).labels == (0, 1, 2)
    assert mapped(list("12345"), 5, in_order=True).labels == (0, 1, 2, 3, 4)
    assert mapped(list(IMAGENETTE), 1000, in_order=True).labels == tuple(IMAGENETTE.values())
    assert mapped(["0", "1", "7"], 10, in_order=True).labels == (0, 1, 7)
    with pytest.raises(ValueError, match="class index"):
        mapped(names, 10, in_order=True)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (sorted(map(str, range(12))), r"numbers, .* \(0, 1, 10, \.\.\.\) than their own"),
        (list("210"), "read in two ways"),
        (list(devkit_wnids()), r"ImageNet ids, .* \(n02119789, n02100735, .* own \(n01440764"),
    ],
)
def test_a_data_set_whose_own_order_is_not_that_of_its_names_is_refused(names, says):
    """TFDS's imagenet_resized is in the order of the development kit; models are not."""
    with pytest.raises(ValueError, match=says):
        mapped(names, len(names), in_order=True)
    given = {name: number for number, name in enumerate(names)}
    assert mapped(names, len(names), given, in_order=True).labels == tuple(range(len(names)))


def test_letters_behind_which_bytes_stand_that_are_no_text():
    """torchvision sorts the names of folders as Python reads them: \xe9 as a lone surrogate."""
    raw = ["a\udce9", "ab", "a~", "z"]
    written = [encodable(name) for name in raw]
    assert mapped(written, 4).labels == tuple(sorted(raw).index(name) for name in raw)


def test_an_index_wins_over_all():
    mapping = mapped(["8", "cat"], 10, {"8": 1, "cat": 1, "other": 99})
    assert (mapping.labels, mapping.output_names[1]) == ((1, 1), "8/cat")
    for index, says in (
        ({"8": 1}, r"every class .* 1 of 2 are not in it \(cat\)"),
        ({"8": 1, "cat": 10}, "outputs from 0 to 9, got cat: 10"),
        ({"8": 1, "cat": -1}, "outputs from 0 to 9, got cat: -1"),
    ):
        with pytest.raises(ValueError, match=says):
            mapped(["8", "cat"], 10, index)
    tens = [str(n) for n in range(1, 11)]
    assert mapped(tens, 10, "sorted").labels == (0, 2, 3, 4, 5, 6, 7, 8, 9, 1)
    with pytest.raises(ValueError, match="as many classes as the model has outputs, 11, got 10"):
        mapped(tens, 11, "sorted")


def test_these_classes_only():
    classes, kept = restricted(mapped(["8", "3", "5"], 10))
    assert (kept, classes.labels) == ((3, 5, 8), (2, 0, 1))
    assert classes.output_names == ("3", "5", "8")
    for one in (mapped(["3"], 10), mapped(["a", "b"], 10, {"a": 3, "b": 3})):
        with pytest.raises(ValueError, match="only_classes: expected at least 2 outputs"):
            restricted(one)
    model = models.create("cifar_resnet20", num_classes=12)
    few = with_outputs(model, (3, 5, 8))
    assert few.num_classes == 3
    assert few.apply_fn is with_outputs(model, (3, 5, 8)).apply_fn  # compiled once
    import jax

    params = drawn_params(model)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    whole = np.asarray(jax.jit(model.apply_fn)(params, images))
    some = np.asarray(jax.jit(few.apply_fn)(params, images))
    np.testing.assert_allclose(some, whole[:, [3, 5, 8]], rtol=1e-6)
    for wrong in ((3, 3), (12,), (-1,)):
        with pytest.raises(ValueError, match="outputs: expected each once, from 0 to 11"):
            with_outputs(model, wrong)
    bagnet = models.create("bagnet9", num_classes=12)
    assert with_outputs(bagnet, (3,)).local.field == bagnet.local.field


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("i.json", json.dumps({"cat": 3, "dog": 5})),
        ("i.json", json.dumps({"3": "cat", "5": "dog"})),
        ("i.json", json.dumps({"3": ["n1", "cat"], "5": ["n2", "dog"]})),
        ("i.json", json.dumps(["a", "b", "c", "cat", "d", "dog"])),
        ("i.csv", "cat,3\ndog,5\n"),
        ("i.csv", "name,output\r\ncat,3\r\ndog,5\r\n"),
        ("i.csv", "\ufeffclass;index\ncat;3\ndog;5\n\n"),
        (
            "i.json",
            json.dumps(
                {"3": ["n1", "cat"], "5": ["n2", "dog"], "4": ["n3", "crane"], "7": ["n4", "crane"]}
            ),
        ),
        ("i.tsv", "3\tcat\n5\tdog"),
        ("i.txt", "a\nb\nc\ncat\nd\ndog\n"),
    ],
)
def test_files_that_say_so(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    index = read_class_index(tmp_path / name)
    assert (index["cat"], index["dog"]) == (3, 5)


def test_kerass_own_index_has_names_that_are_two_classes(tmp_path):
    """crane is a bird and a machine there, maillot two garments: such a name is none."""
    content = {"134": ["n02012849", "crane"], "517": ["n03126707", "crane"], "0": ["n1", "tench"]}
    (tmp_path / "i.json").write_text(json.dumps(content))
    index = read_class_index(tmp_path / "i.json")
    assert index == {"n02012849": 134, "n03126707": 517, "n1": 0, "tench": 0}
    with pytest.raises(ValueError, match=r"1 of 1 are not in it \(crane\)"):
        mapped(["crane"], 1000, index)


def test_titles_say_which_of_two_numbers_is_the_name(tmp_path):
    file = tmp_path / "i.csv"
    for text in ("index,name\n0,3\n1,5\n2,8\n", "name,index\n3,0\n5,1\n8,2\n", "3,0\n5,1\n8,2\n"):
        file.write_text(text)
        assert read_class_index(file) == {"3": 0, "5": 1, "8": 2}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("i.json", b"{", "expected JSON of names"),
        ("i.json", b"3", "got a int"),
        ("i.json", b'{"cat": 3.5}', "got 'cat': 3.5"),
        ("i.json", b'{"cat": true}', "got 'cat': True"),
        ("i.json", b'{"cat": 3, "cat": 4}', "got 'cat' twice"),
        ("i.json", b'{"3": ["n1", "a"], "4": ["n1", "b"]}', "got 3 and 4 for n1"),
        ("i.csv", b'cat,"' + b"x" * 200_000 + b'"\n', "expected name,output in every line"),
        ("i.csv", b"cat,3\ncat,4\n", "one output for each name, got 3 and 4 for cat"),
        ("i.csv", b"cat,3,4\n", "row 1: expected name,output"),
        ("i.csv", b"cat,x\ndog,5\nant,y\n", "expected name,output"),
        ("i.csv", b"\xff\xfe\x00c", "text in UTF-8"),
        ("i.txt", b"\n\n", "expected names and outputs, got none"),
    ],
)
def test_files_that_do_not(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_class_index(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="a class index, found no file"):
        read_class_index(tmp_path / "none")
