"""Files of boxes: CSV, COCO's JSON and Pascal VOC's XML say the same of the same images."""

from __future__ import annotations

import json

import pytest

from certmask_jax.data.object_boxes import Objects, read

IDS = ("dog/1.jpg", "dog/2.jpg", "cat/1.jpg", "test:3", "flat.png")
BOXES = {"dog/1.jpg": ((1.0, 2.0, 30.0, 40.0), (5.0, 5.0, 6.5, 7.0)), "cat/1.jpg": ((0, 0, 9, 8),)}


def _xml(boxes, size=(50, 60)):
    objects = "".join(
        "<object><name>x</name><bndbox>"
        + "".join(
            f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), b, strict=True)
        )
        + "</bndbox></object>"
        for b in boxes
    )
    height, width = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}"
        "</annotation>"
    )


def _coco(box, *, twice=False):
    images = [{"id": number, "file_name": "2.jpg"} for number in range(2)]
    annotations = [{"image_id": number, "bbox": box} for number in range(1 + twice)]
    return json.dumps({"images": images, "annotations": annotations})


def test_numbers_of_coco_that_are_text_are_numbers(tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(_coco(["1", "2", "3", "4"]))
    assert read(file, IDS).of_image == {"dog/2.jpg": Objects(((1, 2, 4, 6),), None)}


def test_all_kinds_say_the_same(tmp_path):
    csv = tmp_path / "boxes.csv"
    rows = [f"{one},{','.join(map(str, box))},60,50" for one, own in BOXES.items() for box in own]
    csv.write_text("id,x0,y0,x1,y1,image_width,image_height\n" + "\n".join(rows) + "\n")
    coco = tmp_path / "boxes.json"
    images = [{"id": i, "file_name": n, "width": 60, "height": 50} for i, n in enumerate(BOXES)]
    annotations = [
        {"id": 7, "image_id": i, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for i, own in enumerate(BOXES.values())
        for b in own
    ]
    coco.write_text(json.dumps({"images": images, "annotations": annotations}))
    folder = tmp_path / "Annotations"
    for name, own in BOXES.items():
        file = (folder / name).with_suffix(".xml")
        file.parent.mkdir(parents=True)
        file.write_text(_xml(own))
    wanted = {name: Objects(own, (50, 60)) for name, own in BOXES.items()}
    for path in (csv, coco, folder):
        assert read(path, IDS).of_image == wanted, path


def test_boxes_without_sizes_and_imagenets_own_strings(tmp_path):
    file = tmp_path / "boxes.csv"
    file.write_text("image;xmin;ymin;xmax;ymax\ntest:3;0;1;2;3\n")
    assert read(file, IDS).of_image == {"test:3": Objects(((0, 1, 2, 3),), None)}
    file.write_text("ImageId,PredictionString\n2,n01 0 1 2 3 n01 4 5 6 7 \n")
    boxes = read(file, IDS)
    assert boxes.of_image == {"dog/2.jpg": Objects(((0, 1, 2, 3), (4, 5, 6, 7)), None)}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("dog/2.jpg", "dog/2.jpg"),
        ("dog/2", "dog/2.jpg"),
        ("2", "dog/2.jpg"),
        ("2.png", "dog/2.jpg"),
        ("val/dog/2.jpg", "dog/2.jpg"),
        ("dog\\2.jpg", "dog/2.jpg"),
        ("cow/2.jpg", None),  # another folder: another image
        ("3", None),
        ("test:3", "test:3"),
        ("val/deep/flat.jpg", "flat.png"),
    ],
)
def test_which_image_a_name_means(tmp_path, name, image):
    file = tmp_path / "boxes.csv"
    file.write_text(f"file,left,top,right,bottom\n{name},0,0,1,1\ncat/1.jpg,0,0,1,1\n")
    boxes = read(file, IDS)
    assert set(boxes.of_image) == {"cat/1.jpg", image} - {None}
    assert boxes.others == (() if image else (name,))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("b.csv", "id,x0,y0,x1\na,0,0,1\n", "expected a first line with a column of images"),
        ("b.csv", "", "got an empty file"),
        ("b.csv", "id,x0,y0,x1,y1\n", "expected at least 1 box"),
        ("b.csv", "id,x0,y0,x1,y1\n2,0,0,1\n", "row 2: expected 5 cells"),
        (
            "b.csv",
            "id,x0,y0,x1,y1\n2,0,0,one,1\n",
            "row 2: expected numbers of pixels, got 0, 0, o",
        ),
        ("b.csv", "id,x0,y0,x1,y1\n2,0,0,nan,1\n", "row 2: expected numbers"),
        ("b.csv", "id,x0,y0,x1,y1\n2,5,0,5,1\n", "row 2: expected a box with x0 < x1"),
        ("b.csv", "id,x0,y0,x1,y1\n1,0,0,5,1\n", "several images of the run may be meant by 1"),
        (
            "b.csv",
            "id,x0,y0,x1,y1\na/flat,0,0,5,1\nb/flat,0,0,5,1\n",
            "one name for each image, but a/flat, b/flat all mean flat.png",
        ),
        ("b.csv", "id,x0,y0,x1,y1\n9,0,0,5,1\n", "such as dog/1.jpg, but none of its 1 names is"),
        ("b.csv", "id,PredictionString\n2,n01 0 1 2\n", "row 2: expected a class and 4 numbers"),
        ("b.csv", b"id,x0,y0,x1,y1\n\xff", "expected text in UTF-8"),
        ("b.json", "{", "expected COCO's JSON"),
        ("b.json", "{}", "expected COCO's JSON, images with file_name"),
        ("b.json", '{"images": [], "annotations": []}', "expected at least 1 box"),
        ("b.json", "[" * 100_000, "b.json: expected COCO's JSON"),
        ("b.json", _coco([0, 0, 3]), "annotation 0: expected bbox as [x, y, width, height]"),
        ("b.json", _coco([0, 0, 3, "x"]), "annotation 0: expected numbers of pixels, got 0, 0, 3"),
        ("b.json", _coco([0, 0, 3, 10**400]), "annotation 0: expected numbers of pixels, got 0, 0"),
        ("b.json", _coco([0, 0, 3, 5], twice=True), "expected one image for each file_name"),
        ("d/2.xml", _xml([]), "expected at least 1 box of an image of the run, got none"),
        ("d/2.xml", "<annotation>", "2.xml: expected XML"),
        ("d/2.xml", _xml([(0, 0, 0, 5)]), "2.xml: expected a box with x0 < x1"),
        ("d/2.xml", _xml([(0, 0, 3, 5)], ("?", 3)), "2.xml: expected numbers of pixels, got ?"),
        ("d/2.txt", "", "expected a folder of XML files"),
    ],
)
def test_what_is_no_file_of_boxes_is_said_in_one_line(tmp_path, name, content, line):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r".") as caught:
        read(file.parent if file.parent != tmp_path else file, IDS)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file or folder with boxes"):
        read(tmp_path / "gone.csv", IDS)
