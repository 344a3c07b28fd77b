"""Programs on models of other frameworks: the examples, resumed, and what such a model cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certmask_jax.data import attacked_sets, digits_arrays
from certmask_jax.programs import attack, certify, imported, opened_training, train
from certmask_jax.tables import saved_table

ROOT = Path(__file__).resolve().parents[2]
MINE = """
import numpy as np
from certmask_jax import models

def logits(images):
    return images.reshape(len(images), -1)[:, :10]

made = []

def create():
    made.append(1)
    return models.from_function(logits, num_classes=10, input_size=(8, 8), channels=1, sha256="1")

def of_levels():
    made = models.from_function(
        logits, num_classes=10, input_size=(8, 8), channels=1, sha256="1", dtype="uint8"
    )
    return made

def unsteady():
    random = np.random.default_rng(0)
    return models.from_function(
        lambda images: logits(images) + 1e-6 * random.normal(size=(len(images), 10)),
        num_classes=10, input_size=(8, 8), channels=1, sha256="2",
    )

def in_training():
    return models.from_function(
        lambda images: logits(images) - logits(images).mean(axis=0),
        num_classes=10, input_size=(8, 8), channels=1, sha256="3",
    )

def sized(*, input_size=(8, 8)):
    def some(images):
        assert images.shape[1:] == (*input_size, 1) and input_size != (9, 9)
        return logits(images)
    return models.from_function(
        some, num_classes=10, input_size=input_size, channels=1, sha256="4"
    )

def nameless():
    return models.from_function(logits, num_classes=10, input_size=(8, 8), channels=1)
"""
WEIGHTS = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
DEFENSE = ["--defense", "pair_cover:partition=2/3", "--patch", "1", "--num-images", "8"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "function_of_theirs.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT))
    imported.attribute.cache_clear()
    yield tmp_path
    for name in [n for n in sys.modules if n.endswith("_of_theirs") or n.startswith("examples")]:
        del sys.modules[name]
    imported.attribute.cache_clear()


def _certify(*options):
    return certify.main(["--model", *options, *DEFENSE])


@pytest.mark.parametrize("decide", [[], ["--decide"]])
def test_a_function_is_certified_and_found_complete_when_asked_again(here, capsys, decide):
    command = ["function_of_theirs:create", "--out", "run", *decide]
    assert _certify(*command) == 0
    first = capsys.readouterr().out
    assert "pair_cover" in first
    assert sys.modules["function_of_theirs"].made == [1]  # it may load a large file
    assert _certify(*command) == 0
    assert "this run was complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "status", "said"),
    [(("3", "7"), 0, ""), (("cat", "dog"), 2, "--class-index"), (("3", "12"), 2, "--class-index")],
)
def test_fewer_classes_than_a_model_of_fixed_outputs_has(here, capsys, names, status, said):
    for name in names:  # names that are numbers are those outputs
        (here / "photographs" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 40).save(here / "photographs" / name / "1.png")
    there = ["--dataset", "image_folder", "--data-dir", "photographs", "--no-page"]
    command = ["--model", "function_of_theirs:create", *there, *DEFENSE[:4], "--out", "run"]
    assert certify.main(command) == status
    assert said in capsys.readouterr().err


def test_a_dry_run(here, capsys):
    assert _certify("function_of_theirs:create", "--dry-run") == 0
    assert "operations: unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["function_of_theirs:create", "--precision", "bfloat16"], "--precision: expected only"),
        (
            ["function_of_theirs:create", "--weights", "function_of_theirs.py"],
            "--weights: expected",
        ),
        (["function_of_theirs:create", "--views", "mirror"], "--views: expected only for models"),
        (["function_of_theirs:create", "--attention", "cudnn"], "--attention: expected only where"),
        (["function_of_theirs:in_training"], "error: logits: expected that what the function says"),
        (["function_of_theirs:nameless"], "sha256: expected what tells the weights"),
    ],
)
def test_what_a_function_cannot_is_one_line(here, capsys, options, said):
    assert _certify(*options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]


def test_a_function_that_says_this_and_that_is_warned_of_in_one_line(here, capsys):
    assert _certify("function_of_theirs:unsteady") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "arning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: logits: the function gave two answers for one batch; is")


def test_a_function_of_another_input_size(here, capsys):
    assert _certify("function_of_theirs:sized", "--out", "run", "--input-size", "12") == 0
    assert saved_table.load(here / "run" / "tables").table.masked_images.image_size == (12, 12)
    capsys.readouterr()
    assert _certify("function_of_theirs:sized", "--out", "other", "--input-size", "9") == 2
    assert "error: logits: the function failed on images" in capsys.readouterr().err
    assert _certify("function_of_theirs:create", "--input-size", "12") == 2
    assert "error: --input-size: expected only where it is taken" in capsys.readouterr().err


def test_the_example_of_pytorch(here, capsys):
    pytest.importorskip("torch", reason="needs PyTorch")
    assert _certify("examples.torch_model:create") == 0
    assert "pair_cover" in capsys.readouterr().out


def _assert_certified_as_the_linear_model(here):
    """What is in ``run`` is what ``WEIGHTS`` say of the digits."""
    table = saved_table.load(here / "run" / "tables").table
    images, _ = digits_arrays("test")
    logits = (images[:8].reshape(8, 64) / 255).astype(np.float32) @ WEIGHTS
    np.testing.assert_array_equal(table.predictions[:, 0], logits.argmax(axis=1))


def _write_linear_onnx(file, *, shape=("B", 1, 8, 8), outputs=("logits",), beside=()):
    """``WEIGHTS`` as one product; ``beside``: names of inputs that it has no use for."""
    onnx = pytest.importorskip("onnx", reason="needs onnx, which writes the model")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    sizes = {"logits": ["B", 10], "flat": ["B", 64], "images": shape}
    graph = make.make_graph(
        [
            make.make_node("Flatten", ["images"], ["flat"]),
            make.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [
            make.make_tensor_value_info(name, kind, sizes.get(name, [1]))
            for name in ("images", *beside)
        ],
        [make.make_tensor_value_info(name, kind, sizes[name]) for name in outputs],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [(["logits"], None), (["flat", "logits"], "logits"), (["logits", "flat"], "logits")],
)
def test_the_example_of_onnx_runtime(here, monkeypatch, outputs, chosen):
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
    _write_linear_onnx("linear.onnx", outputs=outputs)
    monkeypatch.setenv("ONNX_MODEL", "linear.onnx")
    if chosen is not None:
        monkeypatch.setenv("ONNX_OUTPUT", chosen)
    assert _certify("examples.onnx_model:create", "--out", "run") == 0
    _assert_certified_as_the_linear_model(here)


@pytest.mark.parametrize(
    ("graph", "output", "said"),
    [
        (None, None, "ONNX_MODEL: expected an ONNX file, got none; give ONNX_MODEL=FILE"),
        ({"outputs": ["flat", "logits"]}, None,
         "ONNX_MODEL: expected one output, got flat, logits; give ONNX_OUTPUT=NAME"),
        ({}, "probabilities", "ONNX_OUTPUT: expected one of logits, got probabilities"),
        ({"beside": ["scale"]}, None,
         "ONNX_MODEL: expected one input, the images, got images, scale"),
        ({"shape": ["B", 8, 8, 1]}, None,
         "images: expected images [B, c, h, w] with 1 or 3 channels, got ['B', 8, 8, 1]; one of"),
        ({"shape": ["B", 1, "h", "w"]}, None,
         "images: expected images [B, c, h, w] with c, h and w as numbers, got ['B', 1, 'h', 'w']"),
        ({"shape": ["B", 64]}, None, "images: expected images [B, c, h, w] with c, h and w as"),
        ({"outputs": ["images"]}, None, "images: expected logits [B, K] with a number of classes"),
    ],
)  # fmt: skip
def test_an_onnx_file_that_is_no_classifier_is_one_line(
    here, monkeypatch, capsys, graph, output, said
):
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
    monkeypatch.delenv("ONNX_MODEL", raising=False)
    if graph is not None:
        _write_linear_onnx("linear.onnx", **graph)
        monkeypatch.setenv("ONNX_MODEL", "linear.onnx")
    if output is not None:
        monkeypatch.setenv("ONNX_OUTPUT", output)
    assert _certify("examples.onnx_model:create") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --model: {said}")


def _write_linear_tflite(file, *, batch=-1, pixels="FLOAT32", ends=((), ()), channels=1):
    """``WEIGHTS`` as one product; of -1 images, any number.

    ``pixels``: the type of the images, quantised in integers unless it is ``"plain ..."``.
    ``ends``: tensors that are inputs and outputs beside the first, 0 the images and 2 the logits.
    """
    flatbuffers = pytest.importorskip("flatbuffers", reason="needs flatbuffers, which write it")
    from ai_edge_litert import schema_py_generated as schema

    def made(record, **fields):
        for name, value in fields.items():
            assert hasattr(record, name)
            setattr(record, name, value)
        return record

    def tensor(name, shape, buffer=0, *, kind="FLOAT32", quantization=None):
        return made(
            schema.TensorT(), name=name, shape=[abs(size) for size in shape], buffer=buffer,
            shapeSignature=list(shape), type=getattr(schema.TensorType, kind),
            quantization=quantization,
        )  # fmt: skip

    def operator(number, inputs, outputs, options=None):
        made_options = {} if options is None else options
        return made(
            schema.OperatorT(), opcodeIndex=number, inputs=inputs, outputs=outputs, **made_options
        )

    def code(name):
        number = getattr(schema.BuiltinOperator, name)
        return made(
            schema.OperatorCodeT(), builtinCode=number, deprecatedBuiltinCode=number, version=1
        )

    product = {
        "builtinOptionsType": schema.BuiltinOptions.FullyConnectedOptions,
        "builtinOptions": schema.FullyConnectedOptionsT(),
    }
    shape = (batch, 8, 8 // channels, channels)
    tensors = [
        tensor("images", shape),
        tensor("weights", (10, 64), 1),
        tensor("logits", (batch, 10)),
    ]
    operators, first = [operator(0, [0, 1, -1], [2], product)], 0
    kind = pixels.removeprefix("plain ")
    if pixels != kind:
        tensors.append(tensor("levels", shape, kind=kind))
        operators.insert(0, operator(2, [3], [0]))
        first = 3
    elif pixels != "FLOAT32":
        zero = {"UINT8": 0, "INT8": -128}[pixels]
        kept = made(schema.QuantizationParametersT(), scale=[1 / 255], zeroPoint=[zero])
        tensors.append(tensor("bytes", shape, kind=pixels, quantization=kept))
        operators.insert(0, operator(1, [3], [0]))
        first = 3
    graph = made(
        schema.SubGraphT(), tensors=tensors, inputs=[first, *ends[0]], outputs=[2, *ends[1]],
        operators=operators,
    )  # fmt: skip
    data = np.frombuffer(np.ascontiguousarray(WEIGHTS.T).tobytes(), np.uint8)
    model = made(
        schema.ModelT(), version=3, subgraphs=[graph],
        operatorCodes=[code("FULLY_CONNECTED"), code("DEQUANTIZE"), code("CAST")],
        buffers=[schema.BufferT(), made(schema.BufferT(), data=data)],
    )  # fmt: skip
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    Path(file).write_bytes(bytes(builder.Output()))


@pytest.mark.parametrize(
    ("batch", "pixels"),
    [(-1, "FLOAT32"), (1, "FLOAT32"), (3, "FLOAT32"), (-1, "UINT8"), (3, "INT8"),
     (-1, "plain UINT8"), (3, "plain INT32")],
)  # fmt: skip
def test_the_example_of_tflite(here, monkeypatch, batch, pixels):
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    _write_linear_tflite("linear.tflite", batch=batch, pixels=pixels)
    monkeypatch.setenv("TFLITE_MODEL", "linear.tflite")
    assert _certify("examples.tflite_model:create", "--out", "run") == 0
    _assert_certified_as_the_linear_model(here)


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (None, "TFLITE_MODEL: expected a TFLite file, got none; give TFLITE_MODEL=FILE"),
        ({"ends": ((1,), ())}, "TFLITE_MODEL: expected one input, the images, got images, weights"),
        ({"ends": ((), (0,))}, "TFLITE_MODEL: expected one output, the logits, got logits, images"),
        (
            {"pixels": "plain INT8"},
            "levels: expected floating, quantised or uint8 images, got",
        ),
        ({"channels": 2}, "images: expected images [B, h, w, c] of one size with 1 or 3 channels"),
    ],
)
def test_a_tflite_file_that_is_no_classifier_is_one_line(here, monkeypatch, capsys, graph, said):
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    monkeypatch.delenv("TFLITE_MODEL", raising=False)
    if graph is not None:
        _write_linear_tflite("linear.tflite", **graph)
        monkeypatch.setenv("TFLITE_MODEL", "linear.tflite")
    assert _certify("examples.tflite_model:create") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --model: {said}")


@pytest.mark.parametrize(("quantization", "expected"), [((0.0, 0), [3, -4]), ((0.5, 1), [1, -2.5])])
def test_integers_of_logits_that_are_not_quantised_are_as_they_are(here, quantization, expected):
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    from examples import tflite_model

    for kind in (np.int8, np.int32):
        stored = tflite_model._real(np.array([3, -4], kind), {"quantization": quantization})
        assert stored.dtype == np.float32
        assert stored.tolist() == expected


def test_a_function_is_attacked_by_asking_it_and_by_patches_that_are_given(here, capsys):
    right = {"--patch": "2", "--num-images": "60", "--defense": "pair_cover:partition=2/2"}
    words = [word for pair in right.items() for word in pair]
    assert certify.main(["--model", "function_of_theirs:create", *words, "--out", "run"]) == 0
    assert attack.main(["run"]) == 2
    assert "--search square does without" in capsys.readouterr().err
    assert attack.main(["run", "--search", "square", "--queries", "30", "--locations", "2"]) == 0
    lines = attacked_sets.read_lines(here / "run" / "attack").lines
    assert any(line["broken"] for line in lines)
    assert not any(line["broken"] and line["certified"] for line in lines)
    assert all(line["broken"] == (line["after"] != line["label"]) for line in lines
               if line["broken"] is not None)  # fmt: skip
    np.savez("p.npz", patches=np.full((1, 1, 1, 1), 1.0))
    assert attack.main(["run", "--patch-images", "p.npz"]) == 0
    lines = attacked_sets.read_lines(here / "run" / "patches").lines
    assert len(lines) == 120
    images, labels = digits_arrays("test")
    for line in lines:
        if line["defense"] != "undefended":  # whose logits are the first ten pixels
            continue
        [[_, _, row, column]] = line["place"]
        image = images[line["number"], ..., 0].copy()
        image[row, column] = 255
        assert line["after"] == image.reshape(-1)[:10].argmax()
        assert line["label"] == labels[line["number"]]


def test_levels_are_not_resized_after_masking(here, capsys):
    assert _certify("function_of_theirs:of_levels", "--patch-lives", "native") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: --patch-lives: expected only for models of JAX")
    assert "masked ones are resized in float32; leave it out" in said


def test_training_refuses_a_function_before_it_reads_images(here, capsys, monkeypatch):
    monkeypatch.setattr(opened_training, "_data_set", lambda *_: pytest.fail("images are read"))
    assert train.main(["--model", "function_of_theirs:create", "--dataset", "digits"]) == 2
    assert "it can be certified and guarded, not trained" in capsys.readouterr().err
