"""A server on this machine that answers as the Hugging Face Hub does, for a few small files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


class Repository(NamedTuple):
    """Files of each revision; ``gated`` and ``private`` ones open to ``TOKEN`` alone."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    private: bool = False


@functools.cache
def _digest(content: bytes) -> str:
    """Asked for at every request, of megabytes."""
    return hashlib.sha256(content).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's hash: 40 hexadecimal digits that depend on the files."""
    named = sorted((name, _digest(content)) for name, content in files.items())
    return hashlib.sha1(repr(named).encode()).hexdigest()


@contextlib.contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[tuple[str, list[str]]]:
    """Serves them while the context lasts: the endpoint, and the requests as they come."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.removeprefix("/cdn")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(?:\?.*)?", path)
            if match is None:  # what else the client would like to know
                return self._refuse(404, None, "Not found")
            token = self.headers.get("Authorization")
            if token not in (None, f"Bearer {TOKEN}"):
                return self._refuse(401, None, "Invalid credentials in Authorization header")
            repository = repositories.get(match[1])
            if repository is None or (repository.private and token is None):
                return self._refuse(401, "RepoNotFound", "Repository not found")
            if repository.gated and token is None:
                return self._refuse(401, "GatedRepo", "Access to it is restricted")
            commits = {commit_of(files): files for files in repository.revisions.values()}
            files = {**commits, **repository.revisions}.get(match[2])
            if files is None:
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
            if match[3] not in files:
                return self._refuse(404, "EntryNotFound", "Entry not found", commit_of(files))
            return self._give(files[match[3]], commit_of(files), body=body)

        def _refuse(self, status: int, code: str | None, text: str, commit: str = "") -> None:
            self.send_response(status)
            for name, value in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
                if value:
                    self.send_header(name, value)
            self.send_header("X-Error-Message", text)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _give(self, content: bytes, commit: str, *, body: bool) -> None:
            etag = f'"{_digest(content)}"'
            if len(content) > 10_000 and not self.path.startswith("/cdn"):  # large files: elsewhere
                self.send_response(302)
                self.send_header("Location", f"{endpoint}/cdn{self.path}")
                self.send_header("X-Linked-ETag", etag)
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", etag)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
