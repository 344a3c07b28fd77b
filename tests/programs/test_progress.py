"""The line of a run, and what the program prints: the bar ends in the numbers of the table."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from small_runs import COUNT, DEFENSE, PARAMS, SmallTestSet, compile_once, evaluate, linear

import certmask_jax as cm
from certmask_jax.certification import report, verdicts
from certmask_jax.certification.run_hooks import Hooks, Step
from certmask_jax.programs import certify, merge, printing, progress
from certmask_jax.programs.progress import Progress

TWO = ["--defense", "double_masking:masks_per_axis=2", "--defense", "certmask:tiling=tight"]
SMALL = ["--num-images", "12", "--chunk", "8", *TWO]


class Clock:
    """A time that stands still until it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _accuracies(line):
    return re.findall(r"([\w.:=,]+(?: \d+x\d+)?) (\d+\.\d)/(\d+\.\d)", line)


class OwnLabels(SmallTestSet):
    """The true labels are what the model says, so that some images are certified."""

    def __init__(self):
        super().__init__()
        own = np.asarray(linear(PARAMS, self.images.astype(np.float32) / 255))
        self.labels = own.argmax(axis=1).astype(np.int32)


MASKS = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
DETECTS = cm.defenses.minority_reports(MASKS)


@pytest.mark.parametrize("defense", [DEFENSE, DETECTS])
@pytest.mark.parametrize(("guard", "decide"), [(0.0, False), (0.6, False), (0.0, True)])
def test_the_last_line_has_the_numbers_of_the_table(tmp_path, capsys, guard, decide, defense):
    with Progress([defense], margin_guard=guard) as shown:
        saved = evaluate(tmp_path, OwnLabels(), defense=defense, hooks=shown.hooks(), decide=decide)
    last = capsys.readouterr().err.splitlines()[-1]
    certified = verdicts.certify(saved, [defense], margin_guard=guard)
    assert last.startswith(f"images {COUNT}/{COUNT} 100% ")
    assert "<00:00, " in last
    ((name, *shares),) = _accuracies(last)
    (result,) = certified.defenses
    assert name == defense.name
    expected = {0.0: 0.2, 0.6: 0.1}[guard] if defense is DETECTS else 0.0
    assert result.worst_case_accuracy == expected
    assert shares == [f"{100 * x:.1f}" for x in (result.clean_accuracy, result.worst_case_accuracy)]


def test_a_run_that_goes_on_counts_what_was_there(tmp_path, capsys, clock):
    with pytest.raises(KeyboardInterrupt), Progress([DEFENSE]) as shown:
        evaluate(tmp_path, SmallTestSet(stop_before=2), hooks=shown.hooks())
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"images 6/{COUNT} 60% ")
    lines = []

    def block(table, labels):
        shown.hooks().block(table, labels)
        lines.append(shown.line())

    with Progress([DEFENSE]) as shown:
        hooks = shown.hooks()
        evaluate(
            tmp_path,
            hooks=Hooks(progress=hooks.progress, block=block, warn=hooks.warn, stop=hooks.stop),
        )
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]
    assert shown.settled_now == 4 * 11  # the others were there


@pytest.mark.parametrize("in_terminal", [False, True])
def test_a_run_that_was_complete_says_that_nothing_was_left_to_do(
    tmp_path, monkeypatch, in_terminal
):
    evaluate(tmp_path)
    screen = Terminal() if in_terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    with Progress([DEFENSE]) as shown:
        evaluate(tmp_path, hooks=shown.hooks())
    lines = [line for line in screen.getvalue().splitlines() if line.strip()]
    assert lines
    for line in lines:  # in a terminal one that is drawn again
        assert line.startswith("images 10/10, nothing was left to do, clean/certified ")
        assert not re.search("%|padding|passes|<", line)


def test_no_place_of_a_chunk_is_empty_where_none_was_taken(clock):
    shown = Progress([DEFENSE], quiet=True)
    shown.hooks().progress(Step(5, 0, 0, 10, is_new=True))  # five that were needless
    assert "50%" in shown.line()
    assert "padding" not in shown.line()


def test_time_left_is_that_of_the_work_at_the_speed_of_the_last_minute(clock):
    shown = Progress([DEFENSE], quiet=True)
    advance = shown.hooks().progress
    advance(Step(500, 400, 0, 1000, is_new=False))  # of an earlier session: no speed
    assert "<?, 0 passes/s" in shown.line()
    for second in range(1, 101):  # one a second, then three
        clock.now = second
        advance(Step(1 if second <= 40 else 3, 1, 1, 1000, is_new=True))
    # 500 + 40 + 180 are settled; 280 are left, at 3 a second of the last minute.
    assert "72% 01:40<01:33, 1 passes/s" in shown.line()


def test_a_log_gets_a_line_every_ten_seconds_and_a_last_one(clock, capsys):
    with Progress([DEFENSE]) as shown:
        for second in range(35):
            clock.now = second
            shown.hooks().progress(Step(1, 1, 1, 100, is_new=True))
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert [line.split()[2] for line in printed.splitlines()] == ["11%", "21%", "31%", "35%"]


def test_nothing_is_shown_of_a_run_that_did_not_begin_or_is_quiet(tmp_path, capsys):
    with Progress([DEFENSE]):
        pass
    with Progress([DEFENSE], quiet=True) as shown:
        evaluate(tmp_path, hooks=shown.hooks())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_in_a_terminal_it_is_one_line_cut_between_numbers(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress([DEFENSE] * 3) as shown:
        shown._every = 0.0
        evaluate(tmp_path, hooks=shown.hooks())
    said, _, line = terminal.getvalue().partition("\n")
    assert said.startswith("below: ")
    assert line.count("\n") == 1  # at the end
    states = [state.rstrip() for state in line.rstrip("\n").split("\r") if state.strip()]
    assert max(map(len, states)) < columns
    assert states[-1].startswith("images 10/10 100% ")
    assert len(_accuracies(states[-1])) == {40: 0, 80: 1, 200: 3}[columns]
    if columns == 200:
        assert " clean/certified " in states[-1]
        assert states[-1].endswith("|")  # a bar


def test_rows_of_several_patches_carry_them(tmp_path, capsys):
    out = tmp_path / "run"
    assert certify.main([*SMALL, "--patch", "1,2", "--out", str(out)]) == 0
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("images")][-1]
    names = [name for name, *_ in _accuracies(last)]
    assert names == ["double_masking 1x1", "certmask 1x1", "double_masking 2x2"]
    results = json.loads((out / "results.json").read_text())["defenses"]
    for (_, clean, certified), result in zip(_accuracies(last), results, strict=False):
        assert clean == f"{100 * result['clean_accuracy']:.1f}"
        assert certified == f"{100 * result['worst_case_accuracy']:.1f}"


# --- what the program prints ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, not to be changed."""
    with pytest.MonkeyPatch.context() as patched:
        compile_once(patched)
        out = tmp_path_factory.mktemp("printed") / "run"
        assert certify.main([*SMALL, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("style", ["markdown", "latex", "csv"])
@pytest.mark.parametrize("way", ["again", "from tables", "merge"])
def test_only_the_report_goes_to_stdout(run, tmp_path, capsys, style, way):
    capsys.readouterr()
    if way == "again":
        assert certify.main([*SMALL, "--out", str(run), "--format", style]) == 0
    elif way == "from tables":
        assert certify.main(["--from-tables", str(run), "--format", style]) == 0
    else:
        out = tmp_path / "merged"
        assert merge.main([str(run), "--out", str(out), "--format", style]) == 0
    printed = capsys.readouterr()
    match style:
        case "csv":
            assert printed.out == (run / "results.csv").read_text().replace("\r\n", "\n")
            rows = list(csv.DictReader(io.StringIO(printed.out)))
            assert [row["defense"] for row in rows] == TWO[1::2]
        case "latex":
            assert printed.out.startswith("% 12 images, undefended accuracy")
            assert printed.out.endswith("\\end{tabular}\n")
        case _:
            assert printed.out.startswith("12 images, undefended accuracy")
            assert printed.out.endswith("|\n")
    if way != "from tables":
        assert re.search("complete already|results of 1 shares", printed.err)


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_the_table_is_as_wide_as_the_terminal(run, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    assert certify.main(["--from-tables", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith(("---", "-  ---")) for line in lines)


@pytest.mark.parametrize("given", ["", "0", "-5", "wide", "80.5"])
def test_without_a_terminal_there_are_80_columns(monkeypatch, given):
    monkeypatch.setenv("COLUMNS", given)
    assert printing.width_of(io.StringIO()) == 80


def test_a_dry_run_has_no_results_to_format(capsys):
    assert certify.main([*SMALL, "--dry-run", "--format", "csv"]) == 2
    assert "--dry-run prints no results" in capsys.readouterr().err


def test_the_folder_of_the_version_before_is_completed(run, tmp_path, capsys, monkeypatch):
    compile_once(monkeypatch)
    out = tmp_path / "run"
    assert certify.main([*SMALL, "--out", str(out)]) == 0
    for name in ("results.csv", "README.txt"):
        (out / name).unlink()
    (out / "per_image.csv").write_text("id,label,0:double_masking:answer\n")
    capsys.readouterr()
    assert certify.main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "results in" in printed.out
    assert "warning" not in printed.err
    for name in report.FILES[1:]:
        assert (out / name).read_bytes() == (run / name).read_bytes()


def test_no_names_stand_beside_digits_which_are_their_own(run):
    names = json.loads((run / "results.json").read_text())["provenance"]["class_names"]
    assert names == list("0123456789")
    (row, *_) = csv.DictReader((run / "per_image.csv").open(newline=""))
    assert "label_name" not in row
    worst = [name for name in row if name.endswith(" worst_case")]
    assert worst == [f"{spec} 1x1 worst_case" for spec in TWO[1::2]]
    assert np.isin(row[worst[0]], ["0", "1"])
