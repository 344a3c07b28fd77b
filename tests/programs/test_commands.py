"""The installed command: what it says before a program is known, and how each is begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from certmask_jax import _version
from certmask_jax.programs import commands, convert_weights, program

ROOT = Path(__file__).resolve().parents[2]
# What pip makes of the entry point.
SCRIPT = "import sys; from certmask_jax.programs.commands import main; sys.exit(main())"


def _begun(words, *, cwd, before=""):
    """Runs ``certmask WORDS`` from another folder, as the installed script does."""
    script = Path(cwd) / "certmask"
    script.write_text(before + SCRIPT)
    return subprocess.run(
        [sys.executable, "-P", str(script), *words],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# In the order of --help.
NAMES = (
    "certify, choose, report, compare, leaderboard, attack, audit, merge, train, export, "
    "convert-weights, benchmark"
)


def _ended(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/certmask", *words])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["certfy"], f"expected one of {NAMES}, got 'certfy' (did you mean certify?)"),
        (["convert"], f"expected one of {NAMES}, got 'convert' (did you mean convert-weights?)"),
        (["x\ny"], f"expected one of {NAMES}, got 'x\\ny'"),
        (
            ["--dataset", "digits"],
            f"expected the name of a program first ({NAMES}), got '--dataset'",
        ),
    ],
)
def test_a_name_that_there_is_not_is_one_line(monkeypatch, capsys, words, line):
    assert _ended(words, monkeypatch, capsys) == (2, "", f"error: {line}\n")


def test_help_names_every_program_and_version_the_version(monkeypatch, capsys):
    for words in (["--help"], ["-h"], ["help"]):
        status, out, err = _ended(words, monkeypatch, capsys)
        assert (status, err) == (0, "")
        assert out.startswith("usage: certmask NAME [options]\n")
        for name, about in commands.PROGRAMS.items():
            assert f"  {name} " in out
            assert about in out
        assert max(map(len, out.splitlines())) <= 80
    assert _ended(["--version"], monkeypatch, capsys)[:2] == (
        0, f"certmask_jax {_version.__version__}\n"
    )  # fmt: skip
    assert _ended([], monkeypatch, capsys) == (2, "", out)  # nothing was asked for


def test_nothing_heavy_is_imported_before_a_program_is_known(tmp_path):
    process = _begun(
        ["--help"], cwd=tmp_path,
        before="import atexit, sys; atexit.register(lambda: print(sorted({'jax', 'numpy', "
        "'certmask_jax.data'} & set(sys.modules)))); ",
    )  # fmt: skip
    assert process.stdout.endswith("[]\n"), process.stderr


def test_programs_know_how_they_were_begun(monkeypatch):
    ways = {
        "certmask": ("certmask merge", "certmask convert-weights"),
        "module": ("python -m certmask_jax merge", "python -m certmask_jax convert-weights"),
        "clone": ("python -m experiments.merge", "python -m experiments.convert_weights"),
    }
    for way, (merge, convert) in ways.items():
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [f"/bin/{way}"])
            if way == "module":
                patched.setattr(sys.modules["__main__"], "__spec__", _Spec())
            assert program.command("merge") == merge
            assert program.command("convert_weights") == convert
            assert program.typed("merge", ["a b", "\udce9"]) == f"{merge} 'a b' '\\udce9'"
            assert convert_weights.parser().prog == convert


class _Spec:
    name = "certmask_jax.__main__"


def test_the_installed_command_from_another_folder(tmp_path):
    for name in ("convert_weights", "convert-weights"):
        process = _begun([name, "--help"], cwd=tmp_path)
        assert process.returncode == 0
        assert process.stdout.startswith("usage: certmask convert-weights IN OUT [options]\n")
    process = _begun(["merge", "no"], cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: ")
    module = subprocess.run(
        [sys.executable, "-m", "certmask_jax", "merge", "--nope"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert module.returncode == 2
    assert module.stderr == "error: --nope: there is no such option (see --help)\n"
