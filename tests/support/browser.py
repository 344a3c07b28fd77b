"""A real browser, driven over a pipe in its own protocol: Chromium, where it is installed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 60
_CODES = {"Escape": 27, "Enter": 13, "Tab": 9}


def executable() -> str | None:
    """Where a Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser that runs."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors of scripts, of the console, and of what could not be loaded."""
        self.asked: list[str] = []
        """Addresses that were asked for."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """The size of the window, in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip

    def open(self, file: Path) -> None:
        """Loads a file, and waits until it has."""
        self._call("Page.navigate", url=file.absolute().as_uri())
        self.ask(
            "new Promise(done => document.readyState === 'complete' ? done(1) "
            ": addEventListener('load', () => done(1)))"
        )

    def ask(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        answer = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"], indent=1)[:2000])
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Waits until an expression is true: some events come long after what causes them."""
        self.ask(
            f"""new Promise((done, failed) => {{
              const end = Date.now() + {_SECONDS * 1000};
              const look = () => ({script}) ? done(1)
                : Date.now() < end ? setTimeout(look, 20)
                : failed(new Error("never true: " + {json.dumps(script)}));
              look();
            }})"""
        )

    def press(self, key: str) -> None:
        """A key, as if it was typed."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES.get(key, 0),
            )  # fmt: skip

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Writes a PNG of what is seen, or of the whole page."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """The page as it is laid out on paper; the window is as wide as that."""
        self._call("Emulation.setEmulatedMedia", media="print")
        yield
        self._call("Emulation.setEmulatedMedia", media="")

    def pdf(self, file: Path) -> None:
        """Prints the page."""
        file.write_bytes(base64.b64decode(self._call("Page.printToPDF")["data"]))

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise AssertionError("the browser has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"].get("text")))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.complaints.append(str(params["args"]))
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """A browser with one page; ends with the block."""
    there = executable()
    assert there is not None
    to_read, to_write = os.pipe()
    answers_read, answers_write = os.pipe()
    # Its helpers may write a little longer than the browser itself lives.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from file 3 and answers into file 4.
        ends = f'exec "$@" 3<&{to_read} 4>&{answers_write}'
        process = subprocess.Popen(
            ["bash", "-c", ends, "bash", there,
             "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-extensions", "--disable-component-update",
             "--disable-background-networking", "--hide-scrollbars",
             f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            pass_fds=(to_read, answers_write),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(answers_write)
        try:
            yield Page(to_write, answers_read)
        finally:
            os.close(to_write)
            process.terminate()
            process.wait(_SECONDS)
            os.close(answers_read)
