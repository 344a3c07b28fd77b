"""A TFDS data set as it lies on the disk once it is prepared, made without TensorFlow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image


def prepare(root: Path, name: str, class_names: list[str], labels: list[int]) -> None:
    """Writes split ``validation``: 8x8 images whose grey level is their number, in order."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra: data")
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    image = tfds.features.Image(shape=(None, None, 3))
    label = tfds.features.ClassLabel(names=class_names)
    features = tfds.features.FeaturesDict({"image": image, "label": label})
    features.save_config(str(folder))
    rows = []
    for number, one in enumerate(labels):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (number, number, number)).save(content, "PNG")
        content.seek(0)
        row = features.encode_example({"image": content, "label": one})
        rows.append(features.serialize_example(row))
    file = f"{name}-validation.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(folder / file), "group_size:1")
    for row in rows:
        writer.write(row)
    writer.close()
    split = {
        "name": "validation",
        "numBytes": str(sum(map(len, rows))),
        "shardLengths": [str(len(rows))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    about = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "moduleName": "m"}
    (folder / "dataset_info.json").write_text(json.dumps({**about, "splits": [split]}))
