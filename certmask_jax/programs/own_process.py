"""How the process of a command begins and ends: Ctrl-C at every moment, its files, its status.

``begin`` is called before anything heavy is imported, and ``leave`` ends the process; between them
``program.run`` does the work. Only the standard library is imported here, and what is as light.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from certmask_jax.programs.program import BAD_INPUT, INTERRUPTED, one_line, say


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """While a program is imported: nothing of that is garbage, and to look takes a quarter of it.

    No later look goes through what is imported either, which would else be looked through at once.
    """
    was, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if was:
            gc.enable()


def begin() -> None:
    """Before the imports, which take seconds: Ctrl-C ends the process at once and without a trace.

    Also takes care that none of the first three files is closed, or one that is written later would
    take the place of the screen; and imports JAX, whose settings may be no settings.
    """
    _open_the_first_three()
    _on_interrupt(lambda: _end_now(INTERRUPTED, "interrupted"))
    try:
        with without_collections():
            import jax  # noqa: F401
    except ImportError as error:
        _end_now(BAD_INPUT, f"error: expected JAX, got {one_line(str(error))}; pip install jax")
    except (ValueError, TypeError, AssertionError) as error:  # of a setting in the environment
        which = _settings_in(str(error)) or "the settings JAX_..."
        _end_now(BAD_INPUT, f"error: {which}: expected what JAX takes ({one_line(str(error))})")


def leave(main: Callable[[], int]) -> NoReturn:
    """Runs a program and ends the process with its status, which nothing after it changes."""
    _on_interrupt(None)
    sys.unraisablehook = _unraisable
    try:
        status: Any = main()
    except SystemExit as asked:  # argparse's, for --help
        status = asked.code
        if isinstance(status, str):
            say(status)
            status = 1
    status = 0 if status is None else int(status)
    # Threads are waited for yet; whoever does not want to wait has what the status says.
    _on_interrupt(lambda: _end_now(status))
    gc.freeze()  # the process ends with all its garbage, which Python would look for first
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # As Python would flush it again at the end, and report that.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _settings_in(text: str) -> str:
    """The settings of JAX that an error names, with their values."""
    known = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
    named = [name for name in known if name in text or name.lower() in text]
    return ", ".join(f"{name}={known[name]}" for name in named)


def _on_interrupt(act: Callable[[], Any] | None) -> None:
    """What Ctrl-C does, None for KeyboardInterrupt; nothing changes where it is ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # as under nohup
        return
    signal.signal(
        signal.SIGINT, signal.default_int_handler if act is None else lambda number, frame: act()
    )


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a callback, such as JAX has of the garbage collector, would be lost there."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
    elif not _is_told_too_late(lost):
        sys.__unraisablehook__(lost)


def _is_told_too_late(lost: sys.UnraisableHookArgs) -> bool:
    """Whether TensorStore tells of a write that was waited for no more.

    Orbax closes its event loop at the first write that fails, of which it raises the error. Those
    that end after it are told to that loop, from threads in which no Python runs.
    """
    trace = lost.exc_traceback
    if lost.exc_type is not RuntimeError or trace is None:
        return False
    code = trace.tb_frame.f_code
    is_asyncio = os.path.basename(os.path.dirname(code.co_filename)) == "asyncio"
    return is_asyncio and code.co_name == "call_soon_threadsafe"


def _end_now(status: int, line: str | None = None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr and line is not None:
                print(line, file=stream)
            stream.flush()
        except (OSError, ValueError, RuntimeError):
            pass
    os._exit(status)


def _open_the_first_three() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
