"""Folders as people have them: what is a class, what is an image, what is left out."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certmask_jax import data
from certmask_jax.data import folders
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.models import DataConfig

CONFIG = DataConfig((8, 8), (0.5,), (0.5,), channels=1)


def _image(path: Path, level: int = 100, file_format: str | None = None, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), level if mode == "L" else None).save(path, file_format)


def _notes(dataset):
    """Those about files: how class names were read stands in a line of its own."""
    return tuple(note for note in dataset.notes if ", by sorted names: " not in note)


def _load(root, split=None, **options):
    return data.load("image_folder", data_config=CONFIG, data_dir=root, split=split, **options)


HIDDEN = [
    ".ipynb_checkpoints", "__MACOSX", "@eaDir", ".Trash-1000", "$RECYCLE.BIN", ".git",
          "System Volume Information", "lost+found", "__pycache__", "#recycle", ".DS_Store",
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_and_system_folders_are_no_classes_and_hold_no_images(tmp_path, name):
    for kind in ("a", "b"):
        _image(tmp_path / kind / "1.png")
    for place in (tmp_path, tmp_path / "a", tmp_path / "b" / "deep" / "er"):
        _image(place / name / "2.png")
        _image(place / name / "deep" / "3.png")
    dataset = _load(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.read(0, 9).ids == ("a/1.png", "b/1.png")
    assert any("3 hidden or of the system" in note for note in _notes(dataset))


def test_names_that_only_look_like_the_systems_are_classes(tmp_path):
    names = ("$1", "$10", "@home", "recycle", "tmp")
    for name in names:
        _image(tmp_path / name / "1.png")
    dataset = _load(tmp_path)
    assert (dataset.class_names, _notes(dataset)) == (names, ())


def test_what_is_left_out_is_counted_in_one_line(tmp_path):
    for name in ("a/1.png", "a/._1.png", "a/.hidden.png", "b/2.JPG"):
        _image(tmp_path / name, file_format="PNG")
    for name in ("a/notes.txt", "b/x.TXT", "b/Thumbs.db", "b/raw", "readme.md", "b/x.heic"):
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    _image(tmp_path / "loose.png")
    dataset = _load(tmp_path)
    assert len(dataset) == 2
    assert _notes(dataset)[0] == "1 class folder has no images: empty"
    assert _notes(dataset)[1] == (
        f"left out of {tmp_path}: 1 .heic, 1 .md, 2 .txt, 3 hidden or of the system, "
        "1 in no class folder, 1 links that lead nowhere, 1 without a suffix"
    ) or sorted(_notes(dataset)[1].split(": ", 1)[1].split(", ")) == sorted(
        ["1 .heic", "1 .md", "2 .txt", "3 hidden or of the system", "1 in no class folder",
         "1 links that lead nowhere", "1 without a suffix"]
    )  # fmt: skip
    assert dataset.class_names == ("a", "b", "empty")


def test_links_are_followed_and_circles_end(tmp_path):
    _image(tmp_path / "elsewhere" / "x" / "1.png")
    _image(tmp_path / "elsewhere" / "2.png")
    root = tmp_path / "root"
    _image(root / "a" / "0.png")
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "round").symlink_to(root / "a")
    (tmp_path / "elsewhere" / "x" / "up").symlink_to(tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")  # a class that is a link
    _image(tmp_path / "one.png")
    (root / "b2").mkdir()
    (root / "b2" / "linked.png").symlink_to(tmp_path / "one.png")
    dataset = _load(root)
    assert dataset.class_names == ("a", "b", "b2")
    assert dataset.read(0, 99).ids == (
        "a/0.png", "a/more/2.png", "a/more/x/1.png", "b/2.png", "b/x/1.png", "b2/linked.png",
    )  # fmt: skip


@pytest.mark.parametrize("up", ["..", "../..", "../../.."])
def test_a_link_that_leads_up_brings_no_images_of_other_classes(tmp_path, up):
    root = tmp_path / "data" / "val"
    for name in ("cat", "dog"):
        _image(root / name / "1.png")
    _image(tmp_path / "data" / "train" / "cat" / "1.png")
    (root / "cat" / "up").symlink_to(up)
    dataset = _load(root)
    assert dataset.read(0, 9).ids == ("cat/1.png", "dog/1.png")
    assert _notes(dataset) == (
        f"left out of {root}: 1 links to folders that lead up or were read already",
    )


def test_links_that_lead_to_themselves(tmp_path):
    _image(tmp_path / "cat" / "1.png")
    for place in ("me", "cat/me", "cat/me.png"):
        (tmp_path / place).symlink_to(Path(place).name)
    dataset = _load(tmp_path)
    assert dataset.read(0, 9).ids == ("cat/1.png",)
    assert _notes(dataset) == (f"left out of {tmp_path}: 3 links that lead nowhere",)


def test_a_folder_and_a_link_to_it_are_read_once_under_the_folders_name(tmp_path):
    """Whatever order the disk lists them in."""
    _image(tmp_path / "cat" / "z" / "1.png")
    (tmp_path / "cat" / "a").symlink_to("z")
    assert _load(tmp_path).read(0, 9).ids == ("cat/z/1.png",)


READ = {".png": "PNG", ".PNG": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".JPEG": "JPEG",
        ".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF",
        ".pgm": "PPM", ".ppm": "PPM", ".pnm": "PPM", ".bmp": "BMP", ".webp": "WEBP",
        ".tga": "TGA", ".jp2": "JPEG2000", ".avif": "AVIF", ".ico": "ICO",
        ".mpo": "JPEG"}  # fmt: skip


@pytest.mark.parametrize("suffix", READ)
def test_every_suffix_that_pillow_reads_counts(tmp_path, suffix):
    if suffix.lower() not in folders.suffixes():
        pytest.skip(f"this Pillow reads no {suffix}")
    for kind in ("a", "b"):
        _image(tmp_path / kind / f"1{suffix}", 100, READ[suffix])
    dataset = _load(tmp_path)
    assert abs(int(dataset.read(0, 2).images[0, 4, 4, 0]) - 100) <= 3
    assert _notes(dataset) == ()
    assert dataset.find_unreadable() == {}


@pytest.mark.parametrize(
    "names", [("train", "val"), ("TEST", "Train"), ("val",), ("fold1", "fold2")]
)
def test_a_root_of_splits_is_refused_with_the_hint(tmp_path, names):
    for name in names:
        for kind in ("a", "b"):
            _image(tmp_path / name / kind / "1.png")
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=f"hold only folders .a, b.; .*split='{names[0]}'"):
        _load(tmp_path)
    assert _load(tmp_path, split=names[0]).class_names == ("a", "b")
    assert set(names) < set(_load(tmp_path, split=".").class_names)
    with pytest.raises(FileNotFoundError, match=r"found none \(did you mean.*holds .*" + names[0]):
        _load(tmp_path, split=names[0][:-1] + "x" if len(names[0]) > 3 else "vall")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        # A test set without labels beside a training set.
        (("train/cat/1.png", "train/dog/1.png", "test/1.png"), r"\(split='train'\), or say"),
        (("train/1.png", "test/2.png"), "hold images in no class folders; .* image_list"),
        (("train/cat/1.png", "train/dog/1.png", "extra/1.png"), r"\(split='train'\), or say"),
        # Office-31: the images of a domain lie one folder deeper.
        (
            ("amazon/images/bag/1.png", "amazon/images/pen/1.png", "dslr/images/bag/1.png",
             "dslr/images/pen/2.png"),
            "split='amazon' or split='dslr'",
        ),
        # Tiny ImageNet: only the training set has class folders.
        (
            ("train/n01443537/images/1.png", "train/n01629819/images/1.png", "val/images/1.png",
             "test/images/1.png"),
            r"\(split='train'\), or say",
        ),
    ],
)  # fmt: skip
def test_other_roots_of_splits(tmp_path, files, says):
    for file in files:
        _image(tmp_path / file)
    with pytest.raises(ValueError, match=says):
        _load(tmp_path)
    assert len(_load(tmp_path, split=".")) == len(files)


def test_a_hint_is_looked_at_as_the_root_was(tmp_path):
    """One folder down there may be splits again: ILSVRC/Data/CLS-LOC/train."""
    for split in ("train", "val"):
        for kind in ("a", "b"):
            _image(tmp_path / "CLS-LOC" / split / kind / "1.png")
    with pytest.raises(ValueError, match=r"split='CLS-LOC'\), or say split='\.' if these are"):
        _load(tmp_path)
    with pytest.raises(ValueError, match=r"split='CLS-LOC/train' or split='CLS-LOC/val'\)"):
        _load(tmp_path, split="CLS-LOC")
    assert _load(tmp_path, split="CLS-LOC/val").class_names == ("a", "b")
    assert _load(tmp_path, split="CLS-LOC/.").class_names == ("train", "val")


def test_classes_of_classes_are_said_to_be_taken_as_one(tmp_path):
    for name in ("animals/cat", "animals/dog", "cars/bmw", "cars/vw"):
        _image(tmp_path / name / "1.png")
    dataset = _load(tmp_path)
    assert dataset.class_names == ("animals", "cars")
    assert "lie only in folders inside them (bmw, cat, dog, vw)" in _notes(dataset)[0]


def test_class_folders_whose_images_lie_deeper_are_classes(tmp_path):
    for name in ("n01443537", "n01629819"):
        _image(tmp_path / name / "images" / "1.png")  # as Tiny ImageNet has them
    dataset = _load(tmp_path)
    assert (dataset.class_names, _notes(dataset)) == (("n01443537", "n01629819"), ())


def test_images_in_no_class_folder(tmp_path):
    _image(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1 image in none; .* are the data set image_list"):
        _load(tmp_path)
    with pytest.raises(FileNotFoundError, match="one subfolder a class, got a file"):
        _load(tmp_path / "1.png")


def test_names_that_are_no_text(tmp_path):
    for name in (b"1.png", b"caf\xe9.png", b"a\nb.png", b'q"u,o.png', b"\xf0\x9f\x98\x80.png"):
        folder = os.fsencode(tmp_path) + b"/kl\xe4sse"
        os.makedirs(folder, exist_ok=True)
        Image.new("L", (8, 8), 7).save(os.fsdecode(folder + b"/" + name), "PNG")
    dataset = _load(tmp_path)
    batch = dataset.read(0, 9)
    assert len(set(batch.ids)) == 5
    for text in (*batch.ids, *dataset.class_names):
        text.encode()
    assert (batch.images == 7).all()


def test_names_that_are_written_alike_stay_apart(tmp_path):
    """A byte that is no text, and the six characters that it is written as."""
    for level, name in enumerate((b"\xe9", rb"\udce9", b"z"), 1):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.makedirs(folder)
        Image.new("L", (8, 8), level).save(os.fsdecode(folder + b"/1.png"), "PNG")
    dataset = _load(tmp_path)
    batch = dataset.read(0, 3)
    assert len(set(batch.ids)) == len(set(dataset.class_names)) == 3
    by_level = dict(zip(batch.images[:, 0, 0, 0].tolist(), batch.labels.tolist(), strict=True))
    assert sorted(by_level.values()) == [0, 1, 2]
    assert by_level[3] == 0  # torchvision sorts the byte behind z
    assert folders.unique_names(["a", "b"]) == ["a", "b"]
    assert folders.unique_names(["\udce9", r"\udce9", r"\udce9 (2)"]) == [
        r"\udce9 (3)", r"\udce9", r"\udce9 (2)",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "cut jpeg", "cut webp", "gone"])
def test_what_cannot_be_read_is_found_before_and_named(tmp_path, kind):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("a/0.png", "b/1.png"):
        _image(tmp_path / name)
    path = tmp_path / "b" / {"cut jpeg": "2.jpg", "cut webp": "2.webp"}.get(kind, "2.png")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image")
    else:
        noise.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if kind != "gone" else content)
    dataset = _load(tmp_path)
    if kind == "gone":
        path.unlink()
    (name,) = dataset.find_unreadable()
    assert name == f"b/{path.name}"
    with pytest.raises(UnreadableImage, match="expected an image that can be decoded") as caught:
        dataset.read(0, 3)
    assert caught.value.image_id == name
    assert "\n" not in str(caught.value)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    for kind in ("a", "b"):
        _image(tmp_path / kind / "1.png")
    dataset = _load(tmp_path)
    bomb = Image.DecompressionBombError("z")
    for error in (RuntimeError("x"), NotImplementedError(), SyntaxError("y"), KeyError(3), bomb):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr(Image, "open", broken)
        assert set(dataset.find_unreadable()) == {"a/1.png", "b/1.png"}
        with pytest.raises(UnreadableImage, match=r"a/1\.png: expected an image"):
            dataset.read(0, 2)


LEVELS = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040  # up to 65,520


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.tiff", "x.pgm", "big.tif"])
def test_pixels_of_16_bits_are_scaled(tmp_path, name):
    if name == "x.pgm":
        content = b"P5 8 8 65535\n" + LEVELS.astype(">u2").tobytes()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / name).write_bytes(content)
    else:
        (tmp_path / "a").mkdir()
        mode = "I;16B" if name == "big.tif" else "I;16"
        order = ">u2" if name == "big.tif" else "<u2"
        Image.frombytes(mode, (8, 8), LEVELS.astype(order).tobytes()).save(tmp_path / "a" / name)
    _image(tmp_path / "b" / "1.png")
    dataset = _load(tmp_path)
    np.testing.assert_array_equal(dataset.read(0, 1).images[0, :, :, 0], LEVELS >> 8)
    assert dataset.find_unreadable() == {}


def test_a_pgm_of_12_bits_has_its_own_range(tmp_path):
    (tmp_path / "a").mkdir()
    levels = np.full((8, 8), 4095, ">u2")
    (tmp_path / "a" / "x.pgm").write_bytes(b"P5 8 8 4095\n" + levels.tobytes())
    assert _load(tmp_path).read(0, 1).images.max() == 255


def _write_tiff(path: Path, bits: int, photometric: int, level: int) -> None:
    """A grey TIFF of 8x8 pixels of one level, by hand: Pillow writes neither kind."""
    raw = sum(level << bits * place for place in range(64)).to_bytes(8 * bits, "big")
    if bits == 16:
        raw = struct.pack("<64H", *[level] * 64)
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
            (278, 8), (279, len(raw))]  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))


@pytest.mark.parametrize(
    ("bits", "photometric", "level", "grey"),
    [
        (12, 1, 4095, 255), (12, 1, 2048, 128), (12, 1, 0, 0),
        (16, 1, 65535, 255), (16, 1, 32768, 128),
        (16, 0, 0, 255), (16, 0, 65535, 0), (16, 0, 16384, 191),  # counts from white
    ],
)  # fmt: skip
def test_tiffs_of_their_own_range(tmp_path, bits, photometric, level, grey):
    _write_tiff(tmp_path / "a" / "1.tif", bits, photometric, level)
    dataset = _load(tmp_path)
    assert (dataset.read(0, 1).images == grey).all()
    assert dataset.find_unreadable() == {}


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_whose_range_nobody_knows_are_refused_by_name(tmp_path, mode):
    (tmp_path / "a").mkdir()
    Image.new(mode, (8, 8), 3).save(tmp_path / "a" / "x.tiff")
    dataset = _load(tmp_path)
    assert f"Pillow's mode {mode}" in dataset.find_unreadable()["a/x.tiff"]
    with pytest.raises(UnreadableImage, match=f"32-bit .* .Pillow's mode {mode}.*8 bits"):
        dataset.read(0, 1)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "RGBX"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_of_8_bits_become_what_the_model_sees(mode, channels):
    config = DataConfig((4, 4), (0.5,) * channels, (0.5,) * channels, channels=channels)
    image = Image.new("RGB", (4, 4), (255, 255, 255))
    image = image.convert("L").convert("LA") if mode == "LA" else image
    image = (
        Image.new("PA", (4, 4)) if mode == "PA" else image.convert(mode) if mode != "LA" else image
    )
    pixels = data.preprocess(image, config)
    assert pixels.shape == (4, 4, channels)
    assert pixels.dtype == np.uint8
    if mode != "PA":
        assert pixels.min() >= 254


def test_lab_images_are_read(tmp_path):
    path = tmp_path / "a" / "x.tif"
    path.parent.mkdir()
    Image.new("LAB", (8, 8), (200, 10, 30)).save(path)
    dataset = _load(tmp_path)
    assert dataset.find_unreadable() == {}
    expected = np.asarray(Image.open(path).convert("RGB").convert("L"))
    np.testing.assert_array_equal(dataset.read(0, 1).images[0, :, :, 0], expected)


def test_names_in_the_order_of_their_letters_are_said(tmp_path):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for name in words:
        _image(tmp_path / name / "1.png")
    dataset = _load(tmp_path)
    assert dataset.notes[-1].startswith("10 classes of ")
    assert dataset.notes[-1].endswith("by sorted names: eight is 0, five is 1, four is 2, ...")
