"""The process of a fake bucket: `python bucket_server.py PORT BUCKET`, in memory, until ended.

The emulator leaves out of a read what TensorStore asks for when it reads an object again: its
generation, and 304 where that is still the one. Both are added here.
"""

import sys
from http import HTTPStatus

from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

_download = objects.download


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


if __name__ == "__main__":
    objects.download = download
    port, bucket = sys.argv[1:]
    create_server("localhost", int(port), in_memory=True, default_bucket=bucket).run()
