"""The process of a fake bucket: `python bucket_server.py PORT BUCKET`, in memory, until ended.

The emulator leaves out of a read what TensorStore asks for when it reads an object again: its
generation, and 304 where that is still the one. Both are added here, and so are 412 where a write or a
deletion names a generation that is no longer the one (ifGenerationMatch), and what it never does: it
serves several readers at once, and late or wrongly on request. `PUT /faults` takes a JSON list of
{match, share, kind, secs, most}: of the reads and lists whose URL has `match` in it that share, and no
more than `most`, is answered after so many seconds, and by its kind: `slow` (rightly), with the status
that it is, `broken` (no answer), `cut` (half of one) or `flipped` (with one other bit). `GET /faults`
counts them.
`PUT /pretended` takes {prefix, items: [{name, size}], head}, the list of a directory whose objects are
not there, and how each of them begins, in hexadecimal digits.
"""

import io
import json
import random
import sys
import threading
import time
import urllib.parse
from collections import Counter
from http import HTTPStatus, server

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_download = objects.download
_storage_lock = threading.Lock()
_faults, _counts, _random = [], Counter(), random.Random(0)
_pretended = {"prefix": None}


def download(request, response, storage, *args, **kwargs):
    _download(request, response, storage, *args, **kwargs)
    if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    place = request.params["bucket_name"], request.params["object_id"]
    generation = storage.get_file_obj(*place)["generation"]
    response["x-goog-generation"] = generation
    if request.query.get("ifGenerationNotMatch") == [generation]:
        response.status = HTTPStatus.NOT_MODIFIED
        response.write_file(b"")


class Router(emulator.Router):
    """Answers a request: rightly, from a storage that knows one reader, then as faults say."""

    def handle(self, method):
        handler = self._request_handler
        if handler.path in ("/faults", "/pretended"):
            body = self._read_json() if method == "PUT" else None
            tell = self._exchange_faults if handler.path == "/faults" else _pretended.update
            handler.wfile.write(_answer(tell(body)))
            return
        faults = self._choose_faults(method)
        time.sleep(sum(fault.get("secs", 0.0) for fault in faults))
        socket, handler.wfile = handler.wfile, io.BytesIO()
        try:
            answer = _pretend(urllib.parse.urlsplit(handler.path))
            if answer is None:
                with _storage_lock:
                    if self._is_outdated(method):
                        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                        handler.wfile.write(b"HTTP/1.0 412 No\r\nContent-Length: 0\r\n\r\n")
                    else:
                        super().handle(method)
                answer = handler.wfile.getvalue()
        finally:
            handler.wfile = socket
        for fault in faults:
            answer = _spoil(answer, fault["kind"])
        socket.write(answer)

    def _is_outdated(self, method):
        url = urllib.parse.urlsplit(self._request_handler.path)
        query = urllib.parse.parse_qs(url.query)
        if method == "GET" or "ifGenerationMatch" not in query:
            return False
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        name = query.get("name", [urllib.parse.unquote(name.lstrip("/"))])[0]
        try:
            found = self._request_handler.storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            found = "0"
        return query["ifGenerationMatch"] != [found]

    def _choose_faults(self, method):
        path, chosen = self._request_handler.path, []
        if method != "GET":
            return []
        _counts["requests"] += 1
        _counts["reads"] += "alt=media" in path
        for fault in _faults:
            left = fault.get("most", sys.maxsize) - _counts[str(fault["kind"])]
            if fault["match"] in path and _random.random() < fault["share"] and left > 0:
                chosen.append(fault)
                _counts[str(fault["kind"])] += 1
        return chosen

    def _exchange_faults(self, faults):
        counts = dict(_counts)
        if faults is not None:
            _faults[:] = faults
            _counts.clear()
            _random.seed(0)
        return counts

    def _read_json(self):
        length = int(self._request_handler.headers["Content-Length"])
        return json.loads(self._request_handler.rfile.read(length))


def _answer(content):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def _pretend(url):
    """Returns an answer about objects that are only listed, 1,000 at a time; None about others."""
    prefix, query = _pretended["prefix"], urllib.parse.parse_qs(url.query)
    if prefix is None:
        return None
    if query.get("prefix") == [prefix]:
        first = int(query.get("pageToken", ["0"])[0])
        page = {"kind": "storage#objects", "items": _pretended["items"][first : first + 1000]}
        more = first + 1000 < len(_pretended["items"])
        return _answer(page | ({"nextPageToken": str(first + 1000)} if more else {}))
    name = urllib.parse.unquote(url.path).partition("/o/")[2]
    listed = name.startswith(prefix) and name.endswith(".npy")
    return _answer(bytes.fromhex(_pretended["head"])) if listed else None


def _spoil(answer, kind):
    head = answer.index(b"\r\n\r\n") + 4 if answer else 0
    middle = (head + len(answer)) // 2
    if kind == "broken":
        return b""
    if kind == "cut":
        return answer[:middle]
    if kind == "flipped":
        return answer[:middle] + bytes([answer[middle] ^ 1]) + answer[middle + 1 :]
    return answer if kind == "slow" else f"HTTP/1.0 {kind} No\r\nContent-Length: 0\r\n\r\n".encode()


if __name__ == "__main__":
    port, bucket = sys.argv[1:]
    objects.download, emulator.Router = download, Router
    server.HTTPServer = server.ThreadingHTTPServer
    server.HTTPServer.request_queue_size = 512
    emulator.create_server("localhost", int(port), in_memory=True, default_bucket=bucket).run()
