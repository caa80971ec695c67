"""The process of a fake bucket: `python bucket_server.py PORT BUCKET`, in memory, until ended.

The emulator leaves out of a read what TensorStore asks for when it reads an object again: its
generation, and 304 where that is still the one. Both are added here, and so is what it never does: it
serves several readers at once, and late or wrongly on request. `PUT /faults` takes a JSON list of
{match, share, kind, secs, most}: of the reads of objects whose URL has `match` in it that share, and no
more than `most`, is answered after so many seconds, and by its kind `slow` (rightly), with the status that it is, `broken` (no
answer), `cut` (half of one) or `flipped` (with one other bit). `GET /faults` counts them.
"""

import io
import json
import random
import sys
import threading
import time
from collections import Counter
from http import HTTPStatus, server

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects

_download = objects.download
_storage_lock = threading.Lock()
_faults, _counts, _random = [], Counter(), random.Random(0)


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
        if handler.path == "/faults":
            handler.wfile.write(self._exchange_faults(method))
            return
        faults = self._choose_faults(method)
        time.sleep(sum(fault.get("secs", 0.0) for fault in faults))
        socket, handler.wfile = handler.wfile, io.BytesIO()
        try:
            with _storage_lock:
                super().handle(method)
            answer = handler.wfile.getvalue()
        finally:
            handler.wfile = socket
        for fault in faults:
            answer = _spoil(answer, fault["kind"])
        socket.write(answer)

    def _choose_faults(self, method):
        path = self._request_handler.path
        if method != "GET" or "alt=media" not in path:
            return []
        _counts["reads"] += 1
        chosen = []
        for fault in _faults:
            left = fault.get("most", sys.maxsize) - _counts[str(fault["kind"])]
            if fault["match"] in path and _random.random() < fault["share"] and left > 0:
                chosen.append(fault)
                _counts[str(fault["kind"])] += 1
        return chosen

    def _exchange_faults(self, method):
        counts = json.dumps(_counts).encode()
        if method == "PUT":
            length = int(self._request_handler.headers["Content-Length"])
            _faults[:] = json.loads(self._request_handler.rfile.read(length))
            _counts.clear()
            _random.seed(0)
        return b"HTTP/1.0 200 OK\r\n\r\n" + counts


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
