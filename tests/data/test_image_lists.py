"""Lists of labels beside a folder of images, and subsets of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_tfds
from PIL import Image

from certmask_jax import data
from certmask_jax.data import imagenet_devkit, subsets
from certmask_jax.data.class_mapping import imagenet_wnids
from certmask_jax.models import DataConfig
from certmask_jax.programs import certify

CONFIG = DataConfig((8, 8), (0.5,), (0.5,), channels=1)


@pytest.fixture
def flat(tmp_path):
    """Four images, whose grey levels are their numbers, one of them in a folder."""
    for number, name in enumerate(("a.png", "b.png", "deep/c.jpg", "d.e.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50 * number).save(path)
    return tmp_path / "images"


def _load(folder, text, *, name="l.csv", **options):
    file = folder.parent / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    options = {"num_outputs": 10, **options}
    return data.load("image_list", data_config=CONFIG, data_dir=folder, labels=file, **options)


@pytest.mark.parametrize(
    "text",
    [
        "file,label\nb.png,3\na.png,5\ndeep/c.jpg,0\n",
        "filename,class_index\nb,3\na,5\nc,0\n",
        "\ufeffImage ID;Label\r\nb.png;3\r\na.png;5\r\n\r\ndeep/c.jpg;0\r\n",
        "label\tpath\n3\tb.png\n5\t./a.png\n0\tdeep\\c.jpg\n",
        'file,imagenet_index,author\n"b.png",3,"x, y"\n a.png , 5 ,\nc.jpg,0,z\n',
        "ImageId,TrueLabel,TargetClass\nb,4,7\na,6,7\nc,1,7\n",
    ],
)
def test_lists_as_people_write_them(flat, text):
    dataset = _load(flat, text)
    batch = dataset.read(0, 3)
    assert batch.ids == ("b.png", "a.png", "deep/c.jpg")
    assert batch.labels.tolist() == [3, 5, 0]
    assert batch.images[:, 0, 0, 0].tolist() == [50, 0, 100]
    assert any("1 image is not in l.csv" in note for note in dataset.notes)


def test_names_are_mapped(flat):
    text = "file,wnid\na.png,n01443537\nb.png,n01440764\n"
    assert _load(flat, text, num_outputs=1000).read(0, 2).labels.tolist() == [1, 0]
    kaggle = (
        "ImageId,PredictionString\na,n01443537 1 2 3 4\nb,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
    )
    assert _load(flat, kaggle, num_outputs=1000).read(0, 2).labels.tolist() == [1, 0]
    named = "file,class\na.png,dog\nb.png,cat\n"
    assert _load(flat, named, num_outputs=2).read(0, 2).labels.tolist() == [1, 0]
    index = {"dog": 7, "cat": 8}
    assert _load(flat, named, class_index=index).read(0, 2).labels.tolist() == [7, 8]
    few = _load(flat, named, class_index=index, only_classes=True)
    assert (few.outputs, few.class_names) == ((7, 8), ("dog", "cat"))
    with pytest.raises(ValueError, match="class index"):
        _load(flat, named)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty file"),
        ("\n\n", "an empty file"),
        ("file,label\n", "at least 1 image in the list"),
        ("a.png,3\nb.png,5\n", "a column of files .* and one of labels"),
        ("file,colour\na.png,3\n", "got file, colour"),
        ("file,label\na.png\n", "row 2: expected a file and a label"),
        ("file,label\na.png,3\na.png,4\n", r"each image once, got a\.png"),
        ("file,label\na,3\na.png,3\n", r"each image once, got a\.png"),
        ("file,label\nx.png,3\ny.png,1\n", r"none is there \(x\.png, y\.png\)"),
        ("file,label\na.png,10\n", "numbers from 0 to 9"),
        ("file,label\na.png,1\nb.png,10\n", "seem to begin at 1"),
        ("file,TrueLabel\na.png,0\n", "from 1 in TrueLabel"),
        (b"file,label\n\xff.png,3\n", "text in UTF-8"),
    ],
)
def test_lists_that_cannot_be_read(flat, text, says):
    with pytest.raises(ValueError, match=says) as caught:
        _load(flat, text)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name(flat):
    Image.new("L", (8, 8)).save(flat / "deep" / "a.png")
    with pytest.raises(ValueError, match=r"several files .* meant by a"):
        _load(flat, "file,label\na,3\n")
    assert _load(flat, "file,label\na.png,3\ndeep/a.png,4\n").read(0, 2).labels.tolist() == [3, 4]


def test_imagenets_own_ground_truth(tmp_path):
    from scipy.io import savemat

    for number in (1, 3):
        Image.new("L", (8, 8), number).save(tmp_path / f"ILSVRC2012_val_{number:08}.png")
    (tmp_path / "kit").mkdir()
    truth = tmp_path / "kit" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n171\n822\n297\n")  # as it begins

    def load(**options):
        return data.load(
            "image_list", data_config=CONFIG, data_dir=tmp_path, labels=truth, num_outputs=1000,
            **options,
        )  # fmt: skip

    assert load().read(0, 2).labels.tolist() == [65, 230]  # sea snake, Shetland sheepdog
    synsets = np.array(
        [(1, "n02119789"), (2, "n02100735"), (3, "n01440764")],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")],
    )
    meta = truth.with_name("meta.mat")
    savemat(meta, {"synsets": synsets})  # what lies beside the list is taken at its word
    truth.write_text("2\n1\n3\n")
    assert load().read(0, 2).labels.tolist() == [212, 0]  # English setter, tench
    Image.new("L", (8, 8)).save(tmp_path / "ILSVRC2012_val_00000004.png")
    with pytest.raises(ValueError, match="3 lines, and none for ILSVRC2012_val_00000004"):
        load()
    truth.write_text("2\n1\n9\n4\n")
    with pytest.raises(ValueError, match="numbers of classes from 1 to 3, got 4, 9"):
        load()
    meta.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected meta\.mat of ImageNet's development kit"):
        load()
    meta.unlink()
    truth.write_text("0\n1001\n")
    with pytest.raises(ValueError, match="numbers of classes from 1 to 1000, got 0, 1001"):
        load()
    (tmp_path / "cat.png").write_bytes(b"")
    truth.write_text("1\n2\n3\n4\n")
    with pytest.raises(ValueError, match=r"expected images named ILSVRC2012_val_.* got cat\.png"):
        load()


def test_the_order_of_the_development_kit():
    """Held against the numbers and, from elsewhere, the ids of validation images.

    The numbers: the first and last five lines of ILSVRC2012_validation_ground_truth.txt. The ids:
    the same lines of imagenet_2012_validation_synset_labels.txt in tensorflow/models.
    """
    ids = imagenet_devkit.devkit_wnids()
    assert sorted(ids) == list(imagenet_wnids())
    known = {
        490: "n01751748", 361: "n09193705", 171: "n02105855", 822: "n04263257", 297: "n03125729",
        10: "n02123394", 495: "n01630670", 128: "n02106166", 848: "n10148035", 186: "n02437616",
    }  # fmt: skip
    assert {number: ids[number - 1] for number in known} == known


def test_the_order_of_the_development_kit_is_that_of_another_list():
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra: data")
    name = "image_classification/imagenet_resized_labels.txt"
    other = (Path(tfds.__file__).parent / name).read_text().split()
    assert list(imagenet_devkit.devkit_wnids()) == other


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("file,label\na.png,3.0\nb.png,11.\n", [3, 11]),  # as pandas writes numbers with gaps
        ("file,label\na.png,03\nb.png,+3\n", [3, 3]),
        ("file,label,class\na.png,3,3\nb.png,5,5\n", [3, 5]),
        ("index,file,class_index\n0,a.png,7\n1,b.png,9\n", [7, 9]),
        (",file,label\n0,a.png,7\n1,b.png,9\n", [7, 9]),
        ("label,imagenet_index,file\ncat,7,a.png\ndog,9,b.png\n", [7, 9]),
        ("file,TrueLabel,imagenet_index\na.png,8,7\nb.png,10,9\n", [7, 9]),
    ],
)
def test_the_column_that_says_what_it_is(flat, text, labels):
    assert _load(flat, text, num_outputs=12).read(0, 2).labels.tolist() == labels


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("index,file,label\n0,a.png,3\n1,b.png,5\n", "label and index both may be and differ"),
        ("file,label,class\na.png,3,cat\n", "label and class both may be and differ"),
        ("file,target,category\na.png,3,4\n", "category and target both"),
        ("file,imagenet_index,class_index\na.png,3,4\n", "both may be and differ"),
        ("file,wnid,imagenet_index\na.png,n01440764,5\n", "wnid and imagenet_index both"),
        ("file,label\na.png,-1\nb.png,3\n", "labels from 0, got -1"),
        ("file,TrueLabel\na.png,x\n", "from 1 in TrueLabel, got 'x'"),
        (b"file,label\na.png,\0 1\n", "zero bytes"),
        ('file,label\na.png,"' + "x" * 200_000 + '"\n', "expected a CSV file"),
        ("file,label\nx.heic,3\n", r"a suffix that Pillow reads here.*x\.heic"),
        ("file,label\n" + "x" * 5000 + ",3\n", "none is there"),
    ],
)
def test_lists_that_can_be_read_in_two_ways_or_not_at_all(flat, text, says):
    (flat / "x.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=says):
        _load(flat, text, num_outputs=1000)


def test_numbers_of_a_list_are_outputs_whatever_their_count(flat):
    """As many numbers as outputs, or a number of outputs that nobody names, change nothing."""
    text = "file,label\na.png,1\nb.png,7\n"
    assert _load(flat, text, num_outputs=None).read(0, 2).labels.tolist() == [1, 7]
    twelve = [f"{number}.png" for number in range(12)]
    for name in twelve:
        Image.new("L", (8, 8)).save(flat / name)
    rows = "".join(f"{name},{number}.0\n" for number, name in enumerate(twelve))
    dataset = _load(flat, f"file,label\n{rows}", num_outputs=12)
    assert dataset.read(0, 12).labels.tolist() == list(range(12))


def test_a_path_from_the_root_is_one_in_the_folder(flat):
    text = f"file,label\n{flat.absolute() / 'deep' / 'c.jpg'},3\n/nowhere/a.png,1\n"
    assert set(_load(flat, text).find_unreadable()) == {"/nowhere/a.png"}
    assert _load(flat, text.rsplit("/nowhere", 1)[0]).read(0, 1).ids == ("deep/c.jpg",)


def test_the_list_of_the_shared_photographs(shared):
    folder = shared / "data" / "imagenet_compatible"
    config = DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3)
    dataset = data.load(
        "image_list", data_config=config, data_dir=folder, labels=folder / "labels.csv",
        num_outputs=1000,
    )  # fmt: skip
    batch = dataset.read(0, 2)
    assert len(dataset) == 500
    assert batch.ids[0] == "000b7d55b6184b08.jpg"
    assert batch.labels.tolist() == [388, 576]
    assert dataset.find_unreadable() == {}


# Subsets


def test_evenly_over_classes_against_counting():
    rng = np.random.default_rng(0)
    for _ in range(300):
        classes = rng.integers(0, rng.integers(1, 8), rng.integers(1, 40))
        count = int(rng.integers(1, len(classes) + 1))
        chosen = subsets.evenly(classes, count)
        assert len(set(chosen.tolist())) == count
        assert (np.diff(chosen) > 0).all()
        have = {one: int((classes == one).sum()) for one in classes.tolist()}
        got = {one: int((classes[chosen] == one).sum()) for one in have}
        # No class gets two more than one that has any left.
        for one in have:
            for other in have:
                assert got[one] <= got[other] + 1 or got[other] == have[other]
        for one in have:  # the first of each
            at = np.flatnonzero(classes == one)[: got[one]]
            assert set(at) <= set(chosen.tolist())


def test_a_part_of_the_classes_is_spread_over_all():
    chosen = subsets.evenly(np.repeat(np.arange(100), 5), 10)
    assert chosen.tolist() == [50 * n for n in range(10)]


def test_digits_and_shuffled_sets_keep_their_first_images():
    whole = data.load("digits", data_config=CONFIG)
    part = data.load("digits", data_config=CONFIG, num_images=9)
    assert part.read(0, 9).ids == whole.read(0, 9).ids
    assert part.subset == ("first", 500, None)
    drawn = data.load("digits", data_config=CONFIG, num_images=9, subset_seed=3)
    again = data.load("digits", data_config=CONFIG, num_images=9, subset_seed=3)
    other = data.load("digits", data_config=CONFIG, num_images=9, subset_seed=4)
    assert drawn.read(0, 9).ids == again.read(0, 9).ids != other.read(0, 9).ids
    assert drawn.read(0, 9).ids != whole.read(0, 9).ids
    assert drawn.notes == ("9 of 500 images at random, seed 3",)
    assert not subsets.come_by_class([0, 1, 2, 3])
    assert not subsets.come_by_class([5])
    assert not subsets.come_by_class(list(range(10)) * 2)
    assert subsets.come_by_class([0] * 8)
    assert subsets.come_by_class([0] * 6 + [1] * 3)
    assert subsets.come_by_class([7] * 4 + [2] * 4)  # whatever order the classes are in
    assert not subsets.come_by_class([7] * 3 + [2] * 4 + [7])


def _classes(root, count=8):
    for name in ("0", "3", "7"):
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * number).save(path)
    return root


def test_some_images_of_a_folder_are_of_all_classes(tmp_path):
    options = {"data_config": CONFIG, "data_dir": _classes(tmp_path), "num_outputs": 10}
    dataset = data.load("image_folder", num_images=5, **options)
    assert dataset.read(0, 5).ids == ("0/0.png", "0/1.png", "3/0.png", "3/1.png", "7/0.png")
    assert dataset.read(0, 5).labels.tolist() == [0, 0, 3, 3, 7]
    assert dataset.notes[-1].startswith("5 of 24 images, evenly over 3 classes")
    first = data.load("image_folder", split="[:5]", **options)
    assert first.read(0, 5).ids == tuple(f"0/{n}.png" for n in range(5))


def test_a_sorted_tfds_set_is_sampled_evenly_and_ids_are_mapped(tmp_path):
    """A prepared imagenette, one class after the other."""
    names = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916",
             "n03417042", "n03425413", "n03445777", "n03888257"]  # fmt: skip
    outputs = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    small_tfds.prepare(tmp_path, "sorted_nette", names, [number // 3 for number in range(30)])
    config = DataConfig((8, 8), (0.5,) * 3, (0.5,) * 3)
    options = {"data_config": config, "split": "validation", "data_dir": tmp_path}
    dataset = data.load("tfds:sorted_nette", num_outputs=1000, **options)
    batch = dataset.read(0, 30)
    assert batch.labels[::3].tolist() == outputs
    assert batch.images[:, 0, 0, 0].tolist() == list(range(30))
    assert dataset.class_names[217] == "n02102040"
    ten = data.load("tfds:sorted_nette", num_outputs=10, **options)
    assert ten.read(0, 30).labels[::3].tolist() == list(range(10))
    few = data.load("tfds:sorted_nette", num_images=12, **options)
    assert np.bincount(few.read(0, 12).labels).min() == 1
    assert few.subset.how == "evenly over classes"
    only = data.load("tfds:sorted_nette", num_outputs=1000, only_classes=True, **options)
    assert only.outputs == tuple(outputs)
    assert only.read(0, 30).labels[::3].tolist() == list(range(10))
    with pytest.raises(ValueError, match="class index"):
        data.load("tfds:sorted_nette", num_outputs=12, **options)


# The program


def _certify(root, *options):
    return certify.main(
        ["--dataset", "image_folder", "--data-dir", str(root), "--model", "vit_digits", "--patch",
         "1", "--defense", "minority_reports:masks_per_axis=2", "--chunk", "16", *options]
    )  # fmt: skip


def test_a_split_whose_labels_were_not_published_is_refused(tmp_path):
    """TFDS gives -1 there, which is also how Python counts from the end."""
    small_tfds.prepare(tmp_path, "unlabelled", ["cat", "dog"], [-1, -1])
    dataset = data.load(
        "tfds:unlabelled", data_config=CONFIG, split="validation", data_dir=tmp_path
    )  # fmt: skip
    with pytest.raises(ValueError, match="labels from 0 to 1, got -1 for image validation:0"):
        dataset.read(0, 1)


def test_few_images_of_a_sorted_set_are_of_all_classes(tmp_path):
    small_tfds.prepare(tmp_path, "by_class", ["cat", "dog"], [1] * 10 + [0] * 10)
    dataset = data.load(
        "tfds:by_class", data_config=CONFIG, split="validation", data_dir=tmp_path, num_images=4
    )
    assert dataset.read(0, 4).labels.tolist() == [1, 1, 0, 0]


def test_a_folder_that_appears_between_two_runs_is_noticed(tmp_path, capsys):
    root, out = _classes(tmp_path / "d"), ["--out", str(tmp_path / "r")]
    assert _certify(root, *out) == 0
    captured = capsys.readouterr()
    assert "3 classes of 10 outputs, by names are numbers: 0 is 0, 3 is 3, 7 is 7" in captured.err
    assert _certify(root, *out) == 0
    assert "complete already" in capsys.readouterr().out
    (root / "5").mkdir()
    assert _certify(root, *out) == 2
    assert "classes.5 is None there, 5 here" in capsys.readouterr().err
    (root / "5").rmdir()
    Image.new("L", (8, 8)).save(root / "3" / "new.png")
    assert _certify(root, *out) == 2
    assert "1 are new (3/new.png)" in capsys.readouterr().err


def test_a_subset_goes_on_when_an_image_of_it_vanishes(tmp_path, capsys):
    root, out = _classes(tmp_path / "d"), ["--out", str(tmp_path / "r"), "--num-images", "6"]
    assert _certify(root, *out) == 0
    (root / "3" / "0.png").unlink()
    capsys.readouterr()
    assert _certify(root, *out) == 0
    captured = capsys.readouterr()
    assert "left out: 3/0.png (it is no longer in the data set)" in captured.err
    assert captured.out.strip().startswith("5 of 6 images")


def test_unreadable_images_stop_before_the_work_or_are_skipped(tmp_path, capsys):
    root = _classes(tmp_path / "d")
    for name in ("0/1.png", "7/7.png"):
        (root / name).write_bytes((root / name).read_bytes()[:40])
    assert _certify(root, "--out", str(tmp_path / "r")) == 2
    error = capsys.readouterr().err
    assert "2 of 24 cannot: 0/1.png (" in error
    assert "--on-unreadable skip" in error
    assert not (tmp_path / "r").exists()
    assert _certify(root, "--out", str(tmp_path / "r"), "--on-unreadable", "skip") == 0
    captured = capsys.readouterr()
    assert captured.out.strip().startswith("22 of 24 images")
    assert _certify(root, "--dry-run", "--on-unreadable", "skip") == 0
    assert "22 images" in capsys.readouterr().out


def test_an_image_that_a_list_names_and_that_is_not_there(flat, capsys):
    dataset = _load(flat, "file,label\na.png,3\nx.png,4\nb,5\n")
    assert dataset.read(0, 2).ids == ("a.png", "b.png")
    assert dataset.read(0, 2).labels.tolist() == [3, 5]
    assert dataset.find_unreadable() == {"x.png": "it is in the list, not in the folder"}

    def run(*options):
        return certify.main(
            ["--dataset", "image_list", "--data-dir", str(flat), "--labels",
             str(flat.parent / "l.csv"), "--model", "vit_digits", "--patch", "1", "--defense",
             "minority_reports:masks_per_axis=2", "--out", str(flat.parent / "r"), *options]
        )  # fmt: skip

    assert run() == 2
    assert "1 of 3 cannot: x.png" in capsys.readouterr().err
    assert run("--on-unreadable", "skip") == 0
    printed = capsys.readouterr().out
    assert printed.strip().startswith("2 images")
    said = "1 more in the list of labels, not in the folder, counted nowhere: x.png"
    assert said in " ".join(printed.split())
    (flat / "b.png").unlink()  # between two runs
    assert run("--on-unreadable", "skip") == 0
    assert capsys.readouterr().out.strip().startswith("1 of 2 images")
