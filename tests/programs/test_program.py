"""What all programs share: screens, errors of one line, Ctrl-C, and what decides the status."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import pwd
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from certmask_jax._settings import (
    FolderTakenError,
    NotPreparedError,
    SettingError,
    WritingError,
)
from certmask_jax.programs import certify, jax_settings, own_process, program, runtime

ROOT = Path(__file__).resolve().parents[2]


class Failing(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    flush = write


def printing(*texts):
    def work():
        for text in texts:
            print(text, flush=True)
        return 0

    return work


# --- screens ---


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", r"\u7d50 \xe4 \udce9"), ("cp1252", "\\u7d50 \xe4 \\udce9"),
     ("utf-8", "\u7d50 \xe4 \\udce9")],
)  # fmt: skip
def test_what_a_screen_cannot_show_is_escaped(monkeypatch, encoding, shown):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline=""))
    assert program.run(printing("\u7d50 \xe4 \udce9")) == 0
    assert raw.getvalue().decode(encoding) == shown + "\n"


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("I/O operation on closed file"),
     OSError(errno.ENOSPC, "No space left on device")],
)  # fmt: skip
def test_a_screen_that_takes_no_more_decides_nothing(monkeypatch, capsys, error):
    screen = Failing(error)
    monkeypatch.setattr(sys, "stdout", screen)
    assert program.run(printing("a", "b")) == 0
    assert sys.stdout is screen
    told = capsys.readouterr().err
    full = "warning: the screen cannot be written to (No space left on device)\n"
    assert told == (full if getattr(error, "errno", None) == errno.ENOSPC else "")


def test_no_screen_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def fails():
        print("x")
        raise ValueError("y")

    assert program.run(fails) == 2


# --- errors ---


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x"), "x"),
        (ValueError("a\nb\x1b[31m\r\u2028\udce9"), r"a\nb\x1b[31m\r\u2028\udce9"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\nb"), r"a\nb: No such file"),
        (OSError(errno.ENOSPC, "runs/x: ours"), "runs/x: ours"),
        (OSError("only text"), "only text"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (MemoryError("no room"), "expected more memory (no room)"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"),
         "'utf-8' codec can't decode byte 0xe9 in position 0: bad"),
        # The library's own words are settings; a program's are its options.
        (SettingError(lambda say: f"d: no folders; {say('split', 'a b')}, {say('chunk', None)}"),
         "d: no folders; --split 'a b', --chunk"),
        (FolderTakenError(lambda say: f"r: taken; another {say('folder', None)}"),
         "r: taken; another --out"),
        (NotPreparedError(lambda say: f"give {say('data_dir', 'DIR')}"), "give --data-dir DIR"),
        (WritingError(errno.ENOSPC, lambda say: f"full; {say('resume', True)}"), "full; --resume"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(capsys, error, line):
    def work():
        raise error

    assert program.run(work) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_warning_is_one_line(capsys):
    def work():
        warnings.warn("a\nb", RuntimeWarning, stacklevel=1)
        return 0

    shown = warnings.showwarning
    assert program.run(work) == 0
    assert capsys.readouterr().err == "warning: a\\nb\n"
    assert warnings.showwarning is shown


def test_an_error_of_the_program_itself_is_not_hidden():
    def work():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        program.run(work)


def test_interrupted_says_what_to_do(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(certify, "read_config", interrupt)
    assert certify.main([]) == 130
    assert capsys.readouterr().err == "interrupted; give the same command again to go on\n"


# --- whole processes ---


def started(code):
    """A process of Python in which SIGINT is what it is in a terminal."""
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    return subprocess.Popen(
        [sys.executable, "-c", restore + code],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_ctrl_c_while_modules_are_imported():
    code = (
        "import sys, runpy; sys.argv = ['-m', '--help']; import experiments; "
        "print('begun', flush=True); import time; time.sleep(60)"
    )
    process = started(code)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_ctrl_c_while_threads_end_leaves_the_status():
    code = (
        "import threading, time; from certmask_jax.programs import own_process, program; "
        "threading.Thread(target=time.sleep, args=(60,)).start(); "
        "own_process.leave(lambda: program.run(lambda: print('results', flush=True) or 0))"
    )
    process = started(code)
    assert process.stdout.readline() == "results\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_ctrl_c_in_a_callback_is_not_lost():
    code = (
        "import signal, time, weakref; from certmask_jax.programs import own_process, program\n"
        "class A: pass\n"
        "def work():\n"
        "    a = A(); kept = weakref.ref(a, lambda _: signal.raise_signal(signal.SIGINT)); del a\n"
        "    for _ in range(3000): time.sleep(0.01)\n"
        "    return 0\n"
        "own_process.leave(lambda: program.run(work))"
    )
    process = started("pass\n" + code)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_nobody_reads_on_and_no_screen():
    code = (
        "import sys; from certmask_jax.programs import own_process, program; "
        "own_process._open_the_first_three(); "
        "own_process.leave(lambda: program.run(lambda: print('x' * 200_000) or 0))"
    )
    for how in ("| head -c 1; exit ${PIPESTATUS[0]}", ">&-", ">&- 2>&- <&-"):
        process = subprocess.run(
            ["bash", "-c", f'{sys.executable} -c "{code}" {how}'],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (process.returncode, process.stderr) == (0, ""), how


# --- the cache of compiled programs ---


def test_no_home_no_cache_and_no_error(monkeypatch):
    def missing(_):
        raise KeyError("no entry")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)
    assert runtime.default_cache() is None
    monkeypatch.setenv("HOME", "/home/x")
    assert runtime.default_cache() == Path("/home/x/.cache/certmask_jax/compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # "considered invalid and ignored"
    assert runtime.default_cache() == Path("/home/x/.cache/certmask_jax/compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert runtime.default_cache() == Path("/c/certmask_jax/compiled")


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    assert runtime._unwritable(tmp_path / "new" / "folder") is None
    assert (tmp_path / "new" / "folder").is_dir()
    assert runtime._unwritable(tmp_path / "file" / "x") == "Not a directory"


# --- JAX's settings ---


@pytest.mark.parametrize(
    ("setting", "text"),
    [("JAX_NUM_CPU_DEVICES=abc", 'Invalid value "abc" for JAX flag jax_num_cpu_devices'),
     ("JAX_ENABLE_X64=maybe", "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'")],
)  # fmt: skip
def test_settings_that_jax_refuses_are_named(monkeypatch, setting, text):
    monkeypatch.setenv(*setting.split("="))
    monkeypatch.setenv("JAX_LOG_COMPILES", "0")
    assert own_process._settings_in(text) == setting


def test_a_setting_that_jax_refuses_is_one_line():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "abc"}
    command = [sys.executable, "-m", "experiments.merge", "x"]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: JAX_NUM_CPU_DEVICES=abc: expected what JAX takes (")
    assert process.stderr.count("\n") == 1


def test_flags_that_would_end_the_process(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_there_is_no_such_flag=1")
    with pytest.raises(ValueError, match=r"^XLA_FLAGS=--xla_there_is_no_such_flag=1: .*Unknown"):
        jax_settings.check()
    good = "--xla_cpu_enable_fast_math=false"
    monkeypatch.setenv("XLA_FLAGS", good)
    jax_settings.check()
    monkeypatch.setattr(jax_settings.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    jax_settings.check()
    monkeypatch.setenv("XLA_FLAGS", f"{good} ")
    with pytest.raises(pytest.fail.Exception, match="tried again"):  # others are
        jax_settings.check()


@pytest.mark.parametrize(
    ("environment", "error", "said"),
    [
        ({"JAX_PLATFORMS": "CPU"}, RuntimeError("no 'CPU'\nmore"),
         r"^JAX_PLATFORMS=CPU: .*no 'CPU'; JAX_PLATFORMS=cpu\?$"),
        ({"JAX_PLATFORMS": "cuda"}, AssertionError(), r"^JAX_PLATFORMS=cuda: .* finds none"),
        ({"JAX_PLATFORM_NAME": "gpu"}, RuntimeError("none"), r"^JAX_PLATFORM_NAME=gpu: "),
        ({}, RuntimeError("libtpu is in use"), r"libtpu is in use \(JAX_PLATFORMS=cpu chooses"),
    ],
)  # fmt: skip
def test_a_backend_that_does_not_start(monkeypatch, environment, error, said):
    import jax

    def fails():
        raise error

    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, "local_devices", fails)
    with pytest.raises(ValueError, match=said):
        jax_settings.wake()


def test_what_is_told_to_a_closed_loop_is_no_news_and_all_else_is(monkeypatch, capsys):
    """As TensorStore tells a loop that Orbax has closed, from a thread where no Python runs."""
    told = []
    monkeypatch.setattr(own_process.sys, "__unraisablehook__", told.append)
    loop = asyncio.new_event_loop()
    loop.close()

    def lost(act):
        try:
            act()
        except Exception as error:
            # The first frame is this one, and the next that of the callback.
            trace = error.__traceback__.tb_next.tb_next
            return SimpleNamespace(
                exc_type=type(error),
                exc_value=error,
                exc_traceback=trace,
                object=None,
                err_msg=None,
            )

    own_process._unraisable(lost(lambda: loop.call_soon_threadsafe(print)))
    assert told == []
    others = [lost(lambda: loop.run_until_complete(None)), lost(lambda: int("x"))]
    for other in others:
        own_process._unraisable(other)
    assert told == others
