"""Early exit: what is left out could not have changed an answer or a verdict."""

from __future__ import annotations

import numpy as np
import pytest
from covers import random_cover, with_random_promise
from defense_cases import CASES
from early_exit_cases import CLASSES, evaluated, facts, filled_in, random_table

from certmask_jax import data, defenses, mask_sets, models, predict, weights
from certmask_jax.certification import evaluation
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.inference import early_exit
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.whole_images import masked_forward
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.outputs import SCHEMA, Outputs
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable, from_labels

NAMES = [
    "double_masking", "double_masking smallest", "challenger_masking", "minority_reports",
    "certmask", "certmask_detection", "mrcert",
]  # fmt: skip


def _cover(rng, kind):
    if kind == "grid":  # every location that matters is hidden by one mask alone
        size = (int(rng.integers(4, 9)), int(rng.integers(4, 9)))
        return mask_sets.budgeted_grid(size, 2, masks_per_axis=int(rng.integers(1, 4)))
    if kind == "redundant":  # several masks hide every location, but for none are they the most
        return random_cover(rng, 7, 4, 1)
    masks = random_cover(rng, int(rng.integers(1, 6)), int(rng.integers(2, 7)), 2)
    return with_random_promise(rng, masks)


@pytest.mark.parametrize("kind", ["grid", "random", "redundant"])
@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_those_of_the_whole_table(name, kind):
    rng = np.random.default_rng(sum(map(ord, name + kind)))
    left_out = 0
    for _ in range(2):
        defense = CASES[name].build(_cover(rng, kind))
        table, labels = random_table(rng, defense, 64)
        known = evaluated(rng, defense, table, labels)
        left_out += (~known).sum()
        shape = known.shape
        whole = facts(defense, table, labels)
        fillings = [filled_in(table, known, UNKNOWN, np.inf, 0)]
        for _ in range(4):
            anything = rng.integers(0, CLASSES, shape)
            fillings.append(filled_in(table, known, anything, 1, rng.random(shape)))
        for filled in fillings:
            for fact, values in facts(defense, filled, labels).items():
                np.testing.assert_array_equal(values, whole[fact], err_msg=fact)
    if name.split()[0] in ("double_masking", "challenger_masking") and kind == "grid":
        assert left_out > 0


@pytest.mark.parametrize("name", NAMES)
def test_answers_alone_need_no_label_and_less(name):
    rng = np.random.default_rng(3)
    for kind in ("grid", "random"):
        defense = CASES[name].build(_cover(rng, kind))
        table, labels = random_table(rng, defense, 40)
        known = evaluated(rng, defense, table, [None] * len(labels))
        anything = rng.integers(0, CLASSES, known.shape)
        filled = filled_in(table, known, anything, 1, rng.random(known.shape))
        np.testing.assert_array_equal(defense.rule(filled), defense.rule(table))


def test_a_hand_made_image():
    masks = mask_sets.budgeted_grid((1, 6), (1, 1), masks_per_axis=(1, 3))
    defense = defenses.double_masking(masks)  # masks 0, 1, 2; pairs 00 01 02 11 12 22
    assert len(defense.masked_images) == 6
    margins = np.array([3, 0, 0, 1, 0, 2], np.float16)

    def ask(labels, label):
        predictions = np.array([9 if x is None else x for x in labels], np.int32)
        known = np.array([x is not None for x in labels])
        return defense.open_columns(
            Seen(predictions, np.where(known, margins + 1, 1), known), label
        )

    unseen = [None] * 6
    assert ask(unseen, 1).tolist() == [0, 3, 5]  # the first round
    assert ask([1, None, None, 1, None, 1], None).tolist() == []  # unanimous
    # Pair 12 has the smallest sum of margins, then 01, then 02.
    assert ask([1, None, None, 1, None, 1], 1).tolist() == [4, 1, 2]
    assert ask([1, None, None, 1, 0, 1], 1).tolist() == []  # one wrong label: lost
    assert ask([1, None, None, 1, None, 1], 0).tolist() == []  # wrong, whatever else
    # Mask 2 disagrees: its row, first with mask 0, whose margin is larger.
    assert ask([1, None, None, 1, None, 0], 1).tolist() == [2, 4]
    assert ask([1, None, None, 1, 1, 0], 1).tolist() == []  # and does not stand


def test_a_location_with_several_masks_is_not_lost_with_their_rows():
    # Pixels 0 to 3; mask a hides 0 and 2, b 0 and 3, c 1 to 3. Only the pair ab is wrong.
    hidden = {"a": [0, 2], "b": [0, 3], "c": [1, 2, 3]}
    boxes = np.zeros((3, 3, 4), int)
    for mask, pixels in zip(boxes, hidden.values(), strict=True):
        mask[: len(pixels)] = [[0, pixel, 1, pixel + 1] for pixel in pixels]
    masks = MaskSet(boxes, (1, 4), (1, 1))
    pair = unions(masks, 2)[1]
    labels = np.ones(pair.max() + 1, np.int16)
    labels[pair[0, 1]] = 0
    double = defenses.double_masking(masks)
    table = from_labels([labels], double.masked_images, num_classes=2)
    # At pixel 0 both masks have a wrong label in their row, yet a and b have the majority, and c,
    # which the attacker may change, cannot stand.
    assert double.worst_case(table, [1]).all()
    assert not double.certificate(table, [1]).any()
    known = np.zeros(len(labels), bool)
    known[[*pair.diagonal(), pair[0, 1]]] = True
    seen = Seen(labels, np.ones(len(labels), np.float16), known)
    assert double.open_columns(seen, 1).tolist() == [pair[0, 2]]
    # Challenger masking's worst case is the good-row condition, and that is lost.
    assert not len(defenses.challenger_masking(masks).open_columns(seen, 1))


# --- with a model ---

MASKS = mask_sets.budgeted_grid(8, 1, masks_per_axis=4)


@pytest.fixture(scope="module")
def digits():
    """The shipped model on real digits: its table, and their labels."""
    model = models.create("vit_digits")
    params = weights.load(models.default_weights("vit_digits"), model)
    images, labels = (array[:16] for array in data.digits_arrays("test"))
    defense = defenses.double_masking(MASKS)
    table = predict(
        model.apply_fn, params, images, defense.masked_images,
        preprocessing=_preprocessing(model), chunk=16,
    )  # fmt: skip
    return model, params, images, table, labels


def _preprocessing(model):
    return Preprocessing(model.data_config.mean, model.data_config.std)


def _decided(digits, chunk, images=slice(None), progress=None):
    model, params, all_images, _, labels = digits
    defense = defenses.double_masking(MASKS)
    forward = masked_forward(
        model.apply_fn, params, (8, 8, 1), preprocessing=_preprocessing(model),
        masked_images=defense.masked_images, chunk=chunk,
    )  # fmt: skip
    question = early_exit.Question(defense, np.arange(len(defense.masked_images)))
    return early_exit.evaluate(
        forward, all_images[images], [question], labels[images],
        always=[0], progress=progress,
    )  # fmt: skip


def test_what_is_evaluated_is_what_the_whole_table_holds(digits):
    table, labels = digits[3], digits[4]
    steps = []
    outputs = _decided(digits, chunk=16, progress=lambda *step: steps.append(step))
    known = outputs.predictions != UNKNOWN
    assert known[:, 0].all()
    assert (~known).sum() > 0
    np.testing.assert_array_equal(outputs.predictions[known], table.predictions[known])
    np.testing.assert_array_equal(outputs.margins[known], table.margins[known])
    assert np.isinf(outputs.margins[~known]).all()
    settled, evaluated, slots = np.sum(steps, axis=0).tolist()
    assert (settled, evaluated) == (known.size, known.sum())
    assert evaluated <= slots < evaluated + 16 * 8  # whole chunks, but for the last waves
    assert slots % 16 == 0
    assert np.min(steps) >= 0
    defense = defenses.double_masking(MASKS)
    part = PredictionTable.of(outputs.map(np.asarray), table.masked_images, table.num_classes)
    for fact, values in facts(defense, table, labels).items():
        np.testing.assert_array_equal(facts(defense, part, labels)[fact], values, err_msg=fact)


class _Scripted:
    """An engine that reads its outputs from a table; images are row numbers."""

    by_items = True

    def __init__(self, table, chunk):
        self.answers, self.masked_images, self.chunk = table, table.masked_images, chunk
        self.chunk_sizes = (chunk,)

    def flight(self, rows):
        self.rows, self.sent, self.sizes = rows, [], []
        return self

    def __len__(self):
        return len(self.sent)

    @property
    def has_room(self):
        return len(self.sent) < 2

    def send(self, image_of, columns):
        self.sizes.append(len(columns))
        assert 0 < len(columns) <= self.chunk
        self.sent.append((self.rows[image_of], columns))
        return self.chunk

    def receive(self):
        at = self.sent.pop(0)
        return Outputs(*(getattr(self.answers, name)[at] for name in SCHEMA))


def test_what_is_evaluated_depends_on_the_image_alone():
    rng = np.random.default_rng(0)
    defense = defenses.double_masking(MASKS)
    table, labels = random_table(rng, defense, 60)
    columns = np.arange(len(defense.masked_images))

    def decided(rows, chunk):
        question = early_exit.Question(defense, columns)
        engine = _Scripted(table, chunk)
        predictions = early_exit.evaluate(engine, rows, [question], labels[rows]).predictions
        ragged = [size for size in engine.sizes if size < chunk]
        if len(rows) >= 40 and chunk <= 30:  # there is always work for whole chunks but at the end
            assert len(ragged) <= 3
        return predictions

    whole = decided(np.arange(60), 1000)
    assert 0 < (whole == UNKNOWN).sum() < whole.size
    for chunk, size in ((16, 1), (13, 5), (29, 50), (21, 6), (30, 7), (64, 40), (100, 60)):
        for start in range(0, 60, size):
            rows = np.arange(60)[start : start + size]
            np.testing.assert_array_equal(decided(rows, chunk), whole[rows])


def _asked(defenses_, table_of, *, labelled):
    """How many masked images a lone image asks for in each round; it is right about all."""
    columns, questions = evaluation.merged(defenses_)
    engine = _Scripted(table_of(columns), 1000)
    labels = np.ones(1, np.int32) if labelled else None
    early_exit.evaluate(engine, np.arange(1), questions, labels)
    return engine.sizes


def test_an_image_asks_for_a_quarter_of_what_it_knows_for_the_defense_that_asks():
    """Sixteen masks, and the 120 pairs of them in waves of at least eight."""

    def right(columns):
        return from_labels(np.ones((1, len(columns))), columns, num_classes=CLASSES)

    double = defenses.double_masking(MASKS)
    waves = [16, 8, 8, 8, 10, 12, 15, 19, 24, 16]
    assert _asked([double], right, labelled=True) == waves
    # Another defense knows more, all of it at once, and that does not make the waves larger.
    many = defenses.certmask(mask_sets.budgeted_grid(8, 1, masks_per_axis=8))
    assert len(many.masked_images) == 64
    first, *rest = _asked([double, many], right, labelled=True)
    assert first == 16 + 64
    assert rest == waves[1:]


def test_answers_of_double_masking_take_two_rounds():
    """Without labels all that may matter is asked for at once: whoever waits, waits twice."""

    def disagrees(columns):
        labels = np.ones((1, len(columns)), int)
        labels[0, columns.boxes[:, 0, 0] == 0] = 0  # the top row of masks, and its pairs
        return from_labels(labels, columns, num_classes=CLASSES)

    sizes = _asked([defenses.double_masking(MASKS)], disagrees, labelled=False)
    assert len(sizes) == 2
    assert sizes[0] == len(MASKS)


def test_a_wave_is_a_quarter_of_what_is_known_for_each_defense():
    masks = mask_sets.budgeted_grid(12, 2, masks_per_axis=4)
    one, two = defenses.double_masking(masks), defenses.challenger_masking(masks)
    count = len(one.masked_images)
    assert count == 136
    questions = [early_exit.Question(one, np.arange(count))]

    def seen(known):
        return Seen(np.zeros(count, np.int16), np.ones(count, np.float16), known)

    singles = unions(masks, 2)[1].diagonal()
    nothing = np.zeros(count, bool)
    first = early_exit.next_wave(seen(nothing), questions, 0, [0])
    assert sorted(first) == sorted(singles)  # the first round, and column 0 that is in it
    known = nothing.copy()
    known[singles] = True
    assert len(early_exit.next_wave(seen(known), questions, 0, [0])) == 8  # 16 // 4 are fewer
    known[np.flatnonzero(~known)[:44]] = True
    assert known.sum() == 60
    assert len(early_exit.next_wave(seen(known), questions, 0, [0])) == 15
    # Of two defenses each asks for a quarter of what is known for it, not of what is known at all.
    apart = [
        early_exit.Question(one, np.arange(count)),
        early_exit.Question(two, count + np.arange(count)),
    ]
    twice = seen(known).of(np.tile(np.arange(count), 2))
    twice.known[count:] = False
    twice.known[count + singles] = True
    wave = early_exit.next_wave(twice, apart, 0, [0])
    assert ((wave < count).sum(), (wave >= count).sum()) == (15, 8)


def test_answers_alone_are_had_in_the_fewest_rounds():
    """All that matters to an answer is asked for at once, however much it is."""
    masks = mask_sets.budgeted_grid(12, 2, masks_per_axis=4)
    defense = defenses.double_masking(masks)
    pair = unions(masks, 2)[1]
    questions = [early_exit.Question(defense, np.arange(len(defense.masked_images)))]
    known = np.zeros(len(defense.masked_images), bool)
    known[pair.diagonal()] = True
    labels = np.zeros(len(known), np.int16)
    labels[pair.diagonal()[[3, 9]]] = 1, 2  # two masks disagree
    seen = Seen(labels, np.ones(len(known), np.float16), known)
    wanted = early_exit.next_wave(seen, questions, None, ())
    expected = np.setdiff1d(np.union1d(pair[3], pair[9]), pair.diagonal())
    assert sorted(wanted) == expected.tolist()
    assert len(wanted) == 29  # 15 each, and the pair of the two is one
