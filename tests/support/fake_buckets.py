"""Google's and Amazon's object stores in this process, as much of them as TensorStore asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 7  # objects in an answer to what there is, so that small runs take several


class FakeBuckets:
    """What is stored, and which requests are refused.

    Attributes:
      buckets: name -> the objects in it, name -> content.
      refuses: (method, object or "" for a list) -> an HTTP status, or None.
      requests: every method and object that was asked for.
    """

    def __init__(self):
        self.buckets = {}
        self.refuses = lambda method, name: None
        self.requests = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    fake: FakeBuckets
    lock: threading.Lock

    def log_message(self, *_):
        pass

    def _serve(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = url.path[1:]
        google = path.startswith(("storage/v1/b/", "upload/storage/v1/b/"))
        if google:  # b/BUCKET/o/NAME, the name as one part; when written in the query
            bucket, _, name, *_ = [*path.split("/b/", 1)[1].split("/", 2), ""]
            name = asked.get("name") or unquote(name)
        else:
            bucket, _, name = path.partition("/")
            name = unquote(name)
        with self.lock:
            self._answer(*self._do(google, bucket, name, asked, content))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _do(self, google, bucket, name, asked, content):
        if self.command == "HEAD":  # Amazon's: in which region is the bucket?
            return 200, b"", {"x-amz-bucket-region": "eu-central-1"}
        self.fake.requests.append((self.command, name))
        status = self.fake.refuses(self.command, name)
        if status is not None:
            return status, b"{}" if google else b"<Error><Code>AccessDenied</Code></Error>", {}
        objects = self.fake.buckets.get(bucket)
        if objects is None:
            none = b"<Error><Code>NoSuchBucket</Code></Error>"
            return 404, b'{"error": {"message": "no such bucket"}}' if google else none, {}
        if self.command in ("PUT", "POST"):
            objects[name] = content
            return 200, json.dumps(_about(objects, name)).encode(), _stamp(content)
        if self.command == "DELETE":
            return (204 if objects.pop(name, None) is not None else 404), b"", {}
        if not name:
            return 200, (_google_list if google else _amazon_list)(objects, asked).encode(), {}
        if name not in objects:
            return 404, b"", {}
        return 200, objects[name], _stamp(objects[name])

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _stamp(content):
    digest = hashlib.md5(content).hexdigest()
    return {"ETag": f'"{digest}"', "x-goog-generation": str(int(digest[:12], 16))}


def _about(objects, name):
    generation = _stamp(objects[name])["x-goog-generation"]
    return {"name": name, "size": str(len(objects[name])), "generation": generation}


def _google_list(objects, asked):
    start, stop = asked.get("startOffset", ""), asked.get("endOffset")
    names = [n for n in sorted(objects) if n >= start and (stop is None or n < stop)]
    page, after = _page(names, asked.get("pageToken"))
    more = {} if after is None else {"nextPageToken": after}
    return json.dumps({"items": [_about(objects, name) for name in page], **more})


def _amazon_list(objects, asked):
    start, prefix = asked.get("start-after", ""), asked.get("prefix", "")
    names = [n for n in sorted(objects) if n > start and n.startswith(prefix)]
    page, after = _page(names, asked.get("continuation-token"))
    rows = "".join(
        f"<Contents><Key>{escape(name)}</Key><Size>{len(objects[name])}</Size></Contents>"
        for name in page
    )
    more = "" if after is None else f"<NextContinuationToken>{after}</NextContinuationToken>"
    return (
        f"<ListBucketResult><KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{str(after is not None).lower()}</IsTruncated>{more}{rows}"
        "</ListBucketResult>"
    )


def _page(names, token):
    first = int(token or 0)
    after = str(first + PAGE) if first + PAGE < len(names) else None
    return names[first : first + PAGE], after


@contextlib.contextmanager
def serving():
    """Serves; gives the server's URL and its ``FakeBuckets``."""
    fake = FakeBuckets()
    handler = type("Handler", (_Handler,), {"fake": fake, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fake
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()
