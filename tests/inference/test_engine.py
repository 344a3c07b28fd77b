"""The protocol of engines: one in two parts fits it, and whoever asks sees no difference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from exact_model import CLASSES, DEFENSE, IMAGES, MASKS, RNG, SIZE, WEIGHTS, exact

from certmask_jax import defenses, distinct_unions
from certmask_jax.certification import evaluation
from certmask_jax.inference import early_exit, whole_images
from certmask_jax.inference.defended_model import DefendedPredictor
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.item_stream import evaluate_items, table_by_items
from certmask_jax.inference.masked_pass import outputs_of
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import UNKNOWN


@dataclasses.dataclass(frozen=True, eq=False)
class TwoParts:
    """The same model: what each pixel adds, once an image, and a sum of these for every mask."""

    masked_images: distinct_unions.MaskedImages
    chunk: int = 16
    num_classes: int = CLASSES
    image_shape: tuple[int, int, int] = (*SIZE, 1)
    by_items: bool = True
    stems: list[int] = dataclasses.field(default_factory=list)

    @property
    def mesh(self):
        return device_mesh(jax.devices()[:1])

    def images_at_once(self):
        return 5

    def masked_at_once(self):
        return self.chunk

    def flops_an_image(self, count):
        return None

    def halved(self):
        return dataclasses.replace(self, chunk=self.chunk // 2)

    @property
    def chunk_sizes(self):
        return (self.chunk,)

    def for_few(self, items):
        return self

    def for_blocks(self, images):
        return self

    def warm_up(self):
        pass

    def checked_cells(self, params):
        return None

    def facts(self):
        return {"chunk": self.chunk, "preprocessing": {}, "parts": 2}

    def tried(self, image):
        return self.table(image)

    def stem_slots(self, images):
        return images

    def upload(self, images):
        self.stems.append(len(images))
        return images[..., None].astype(np.float32) * WEIGHTS

    def flight(self, images):
        return _Flight(self, images if images.dtype == np.float32 else self.upload(images))

    def table(self, images, progress=None):
        return table_by_items(self, images, progress)

    def evaluate(self, images, image_of, columns):
        return evaluate_items(self, images, image_of, columns)


class _Flight:
    def __init__(self, engine, stems):
        self.engine, self.stems, self.sent = engine, stems, []

    def __len__(self):
        return len(self.sent)

    @property
    def has_room(self):
        return len(self.sent) < 2

    def send(self, image_of, columns):
        assert 0 < len(image_of) == len(columns) <= self.engine.chunk
        boxes = self.engine.masked_images.boxes[columns]
        hidden = np.stack([oracle.paint(one, SIZE) for one in boxes])
        seen = np.where(hidden[..., None, None], 0, self.stems[image_of])
        self.sent.append(outputs_of(jnp.asarray(seen.sum(axis=(1, 2, 3)))))
        return len(columns)

    def receive(self):
        return jax.device_get(self.sent.pop(0))


def _engines(masks, chunk=16):
    whole = engine_for(
        exact, WEIGHTS, (*SIZE, 1), masks, preprocessing=Preprocessing(), chunk=chunk
    )
    return whole, TwoParts(masks, chunk)


def _same(one, other):
    for name in ("predictions", "margins", "confidences"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_an_engine_in_two_parts_gives_the_same_table_and_items():
    whole, parts = _engines(DEFENSE.masked_images)
    _same(parts.table(IMAGES), whole.table(IMAGES))
    image_of = RNG.integers(0, len(IMAGES), 37)
    columns = RNG.integers(0, len(DEFENSE.masked_images), 37)
    _same(
        parts.evaluate(IMAGES, image_of, columns),
        whole.evaluate(whole.upload(IMAGES), image_of, columns),
    )
    _same(whole.evaluate(IMAGES, image_of[:0], columns[:0]), Outputs.unknown((0,)))


def test_early_exit_asks_it_for_the_same_and_the_stem_is_run_once():
    columns, questions = evaluation.merged([DEFENSE, defenses.challenger_masking(MASKS)])
    labels = RNG.integers(0, CLASSES, len(IMAGES)).astype(np.int32)
    whole, parts = _engines(columns)
    labels[:6] = whole.tried(IMAGES[:1]).predictions[0]
    outputs = [
        early_exit.evaluate(engine, engine.upload(IMAGES), questions, labels, always=[0])
        for engine in (whole, parts)
    ]
    _same(*outputs)
    known = outputs[0].predictions != UNKNOWN
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(
        outputs[0].predictions[known], whole.table(IMAGES).predictions[known]
    )
    assert parts.stems == [len(IMAGES)]


def test_it_guards_a_classifier_and_is_halved():
    whole, parts = _engines(DEFENSE.masked_images)
    answers = [DefendedPredictor(DEFENSE, engine)(IMAGES) for engine in (whole, parts)]
    np.testing.assert_array_equal(answers[0].labels, answers[1].labels)
    np.testing.assert_array_equal(answers[0].masked_images, answers[1].masked_images)
    assert parts.stems == [5, 5, 2]  # as many as its devices hold
    warned = []

    def work(engine):
        if engine.chunk > 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return engine.table(IMAGES)

    _same(Guarded(parts, warned.append).run(work), whole.table(IMAGES))
    assert [line.split("going on with ")[1].split()[0] for line in warned] == ["8", "4"]


def test_facts_are_those_that_decide_numbers():
    whole, _ = _engines(DEFENSE.masked_images)
    assert whole.facts() == {
        "chunk": 16,
        "preprocessing": {
            "mean": (0.0,), "std": (1.0,), "fill": None, "precision": "highest", "resize_to": None
        },
    }  # fmt: skip


def test_masks_that_the_program_was_not_compiled_for():
    whole, _ = _engines(defenses.minority_reports(MASKS).masked_images)
    assert whole.boxes_per_mask == 1
    with pytest.raises(ValueError, match=r"at most 1 boxes a mask, .* got 2; build another"):
        whole.for_masks(DEFENSE.masked_images)
    with pytest.raises(ValueError, match=r"expected those of images of \(8, 8\), got \(9, 9\)"):
        whole.for_masks(distinct_unions.unmasked((9, 9)))


@pytest.mark.parametrize(("items", "few"), [(1, 2), (8, 8), (9, 10), (63, None), (64, None)])
def test_the_small_chunk_is_for_work_of_its_size_and_less(monkeypatch, items, few):
    sizes, real = [], whole_images.WholeImages.executable

    def noted(engine, size, images):
        sizes.append(size)
        return real(engine, size, images)

    monkeypatch.setattr(whole_images.WholeImages, "executable", noted)
    whole = engine_for(
        exact, WEIGHTS, (*SIZE, 1), DEFENSE.masked_images,
        preprocessing=Preprocessing(), chunk=64,
    )  # fmt: skip
    small = whole.for_few(items)
    assert small.chunk_sizes == ((few, 64) if few else (64,))
    assert (small is whole) == (few is None)
    for count in (1, few or 8, 64):
        nothing = np.zeros(count, int)
        small.evaluate(IMAGES, nothing, nothing)
    assert sizes == ([few, few, 64] if few else [64] * 3)
