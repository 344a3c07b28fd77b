"""A budget of milliseconds: chunks are timed, and answers are counted by what they ask for."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import small_runs
from small_runs import PARAMS, SmallTestSet, linear

import certmask_jax as cm
from certmask_jax.certification.answer_passes import answer_waves, first_wave
from certmask_jax.inference.defended_model import DefendedPredictor
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import choose
from certmask_jax.programs.choosing import budget_times, wave_times
from certmask_jax.programs.choosing.wave_times import WaveTimes

GRID = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=3)
DEFENSES = [cm.defenses.double_masking(GRID), cm.defenses.challenger_masking(GRID)]
TIMES = WaveTimes((1, 4, 16), (2.0, 5.0, 14.0), (1, 4, 16))


@pytest.mark.parametrize(
    ("waves", "first", "milliseconds"),
    [
        ([], 4, 0),
        ([1, 1], 4, 4),
        ([3], 4, 6),  # one place of four would be left empty, so three chunks of one
        ([2], 4, 4),  # two would be, so two chunks of one
        ([20], 16, 19),  # a full one, and four more
        ([9, 1], 9, 5 + 9 * 5 / 12 + 2),  # a program of its own, between 4 and 16
        ([], 9, 0),
        ([2], 2, 2 + 3 / 3),  # and between 1 and 4
    ],
)
def test_an_answer_takes_what_its_chunks_take(waves, first, milliseconds):
    assert TIMES.of_answer(waves, first) == pytest.approx(milliseconds)


class _Recorded:
    """An engine that notes the places of every chunk that is sent."""

    def __init__(self, engine):
        self._engine, self.places = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def flight(self, images):
        flight, real = self._engine.flight(images), None
        real = flight.send
        recorded = self

        class Flight:
            def __getattr__(self, name):
                return getattr(flight, name)

            def __len__(self):
                return len(flight)

            def send(self, image_of, columns):
                recorded.places.append(real(image_of, columns))
                return recorded.places[-1]

        return Flight()


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda one: one.name)
def test_waves_and_chunks_are_those_that_the_guard_itself_sends(defense):
    images = SmallTestSet(count=8).images
    engine = engine_for(
        linear, PARAMS, (8, 8, 1), defense.masked_images, preprocessing=Preprocessing(),
        chunk=(8, 32),
    )  # fmt: skip
    first = first_wave(defense)
    recorded = _Recorded(engine.for_blocks(None).for_few(first))
    guard = DefendedPredictor(defense, recorded)
    sizes = engine.chunk_sizes
    times = WaveTimes(sizes, tuple(size + 1 for size in sizes), sizes, engine.mesh.size)
    table = cm.predict(linear, PARAMS, images, defense.masked_images)
    waves = answer_waves(table, defense, None)
    assert len({tuple(one) for one in waves}) > 1
    for image, of_one in zip(images, waves, strict=True):
        recorded.places.clear()
        answers = guard(image[None])
        assert sum(of_one) == answers.masked_images[0]
        sent = sum(1 + places for places in recorded.places)  # by the times above
        assert times.of_answer(of_one, first) == pytest.approx(sent)


def test_a_size_that_others_guards_have_is_no_size_of_ones_own():
    times = WaveTimes((2, 8), (3.0, 9.0), (8,))
    assert times.of_answer([8, 1], 8) == 18
    assert times.of_answer([2, 1], 2) == 6


def test_chunks_are_timed_in_turn_and_the_first_does_not_count():
    now, asked, rising = [0.0], [], True

    class Engine:
        chunk_sizes = (8,)
        mesh = types.SimpleNamespace(size=1)
        masked_images = range(3)

        def for_few(self, items):
            assert items == 2
            few = Engine()
            few.chunk_sizes = (2, 8)
            return few

        def upload(self, image):
            return image

        def evaluate(self, images, image_of, columns):
            assert len(image_of) == len(columns)
            assert set(columns) <= {0, 1, 2}
            asked.append(len(columns))
            slow = 100 if len(asked) <= 2 else (1, 9, 5, 1, 9)[(len(asked) - 3) // 2]
            now[0] += slow * (len(columns) if rising else 10 - len(columns))
            return types.SimpleNamespace(predictions=[0])

    image = np.zeros((1, 2, 2, 1), np.uint8)
    times = wave_times.measured(Engine(), image, 2, clock=lambda: now[0])
    assert times.ladder == (8,)
    assert asked == [2, 8] * 6
    assert times.sizes == (2, 8)
    assert times.milliseconds == pytest.approx((5e3 * 2, 5e3 * 8))
    asked.clear()
    rising = False  # eight take as long as two would: less than two did
    times = wave_times.measured(Engine(), image, 2, clock=lambda: now[0])
    assert times.milliseconds == pytest.approx((5e3 * 2, 5e3 * 2))


def test_times_are_kept_for_a_choice_that_goes_on(tmp_path):
    def never():
        raise AssertionError("they are there")

    assert wave_times.kept(tmp_path / "new", "a", lambda: TIMES) == TIMES
    assert wave_times.kept(tmp_path / "new", "a", never) == TIMES
    other = WaveTimes((1, 3), (3.5, 4.5), (3,), 2)
    assert wave_times.kept(tmp_path / "new", "b", lambda: other) == other
    assert wave_times.kept(tmp_path / "new", "b", never) == other
    assert wave_times.kept(tmp_path / "new", "a", never) == TIMES
    (tmp_path / "new" / wave_times.FILE).write_text("{")
    with pytest.raises(ValueError, match=r"milliseconds\.json: is damaged"):
        wave_times.kept(tmp_path / "new", "a", never)


def test_with_chunks_of_one_milliseconds_choose_what_passes_do(tmp_path, capsys, monkeypatch):
    """Two milliseconds a masked image: a budget of 28 ms is one of 14 passes."""
    times = WaveTimes((1,), (2.0,), (1,))
    monkeypatch.setattr(wave_times, "measured", lambda engine, image, least: times)
    words = ["--model", "nearest_mean:create", "--num-images", "40", "--patch", "1"]
    for spec in ("pair_cover:partition=2/3", "double_masking:masks_per_axis=2"):
        words += ["--defense", spec]
    by = {}
    for budget in ("14", "28ms", "7ms"):
        out = tmp_path / budget
        status = choose.main([*words, "--budget", budget, "--out", str(out)])
        assert status == (2 if budget == "7ms" else 0)
        if status == 0:
            by[budget] = json.loads((out / "choice.json").read_text())
    captured = capsys.readouterr()
    assert "--budget 7ms: expected at least 8 ms an image" in captured.err
    assert "2 candidates" in captured.out
    printed = " ".join(captured.out.split())
    assert "at most 28 ms an image" in printed
    passes, milliseconds = by["14"], by["28ms"]
    assert [one["candidate"] for one in passes["front"]] == [
        one["candidate"] for one in milliseconds["front"]
    ]
    for one, other in zip(passes["front"], milliseconds["front"], strict=True):
        for part in ("chosen_on", "reported_on"):
            assert other[part]["milliseconds"] == pytest.approx(2 * one[part]["passes"])
            assert "passes" not in other[part]
        assert "timed" not in one
        assert other["timed"]["images"] == 20
        assert 0 < other["timed"]["least"] <= other["timed"]["mean"] <= other["timed"]["most"]
    assert milliseconds["milliseconds_a_chunk"] == {
        "mean-none": {"chunks": {"1": 2.0}, "ladder": [1], "devices": 1}
    }
    assert milliseconds["budget_unit"] == "ms"
    assert "ms: what an answer asks for at once, by the time" in printed
    words += ["--budget-of", "table", "--budget", "28ms", "--out", str(tmp_path / "table")]
    assert choose.main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ms: a whole table, by the time of a chunk" in printed
    assert "one at a time, which ends before its whole table where it can; another" in printed


def test_times_of_another_choice_in_the_same_folder_are_not_taken(tmp_path, capsys, monkeypatch):
    slow = []

    def measured(engine, image, least):
        slow.append(least)
        return WaveTimes((1,), (100.0 * len(slow),), (1,))

    monkeypatch.setattr(wave_times, "measured", measured)
    words = ["--model", "nearest_mean:create", "--num-images", "8", "--budget", "9ms"]
    words += ["--defense", "double_masking:masks_per_axis=2", "--out", str(tmp_path / "run")]
    for patch, least in (("1", 400), ("2", 800), ("1", 400)):
        assert choose.main([*words, "--patch", patch]) == 2
        assert f"expected at least {least} ms an image" in capsys.readouterr().err
    assert slow == [4, 4]


def test_a_second_choice_times_nothing_in_the_folder_of_the_first(tmp_path, capsys, monkeypatch):
    """Else each would count by times of its own, of which one alone is kept."""
    words = ["--model", "nearest_mean:create", "--num-images", "8", "--budget", "9ms"]
    words += ["--defense", "double_masking:masks_per_axis=2", "--patch", "1"]
    words += ["--out", str(tmp_path / "run")]
    begun = []

    def measured(engine, image, least):
        begun.append(least)
        if len(begun) == 1:
            assert choose.main(words) == 2
            assert "another process is writing this choice" in capsys.readouterr().err
        return WaveTimes((1,), (100.0,), (1,))

    monkeypatch.setattr(wave_times, "measured", measured)
    assert choose.main(words) == 2
    assert "expected at least 400 ms an image" in capsys.readouterr().err
    assert begun == [4]


def test_a_model_that_evaluates_all_of_an_image_together_has_no_such_budget(monkeypatch, tmp_path):
    class Engine:
        by_items = False

        def for_blocks(self, images):
            return self

    monkeypatch.setattr(budget_times, "engine_for", lambda *given, **how: Engine())
    words = ["--model", "nearest_mean:create", "--num-images", "4", "--patch", "1"]
    words += ["--defense", "double_masking:masks_per_axis=2", "--budget", "9ms"]
    options = choose.choose_options.read(choose.parser().parse_args(words))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--budget 9ms: expected a model that evaluates masked"):
        choose.run(options, words)
    assert not any(tmp_path.iterdir())


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
    with pytest.MonkeyPatch.context() as patched:
        small_runs.compile_once(patched)
        yield
