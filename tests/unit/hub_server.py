"""A hub with one repository, ``owner/name``, as far as its clients need one: for tests without a network."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

NAME = "owner/name"
COMMIT = "c0ffee" + "0" * 34


class _Handler(BaseHTTPRequestHandler):
    files: Mapping[str, bytes]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        if "/resolve/" in path:
            self._send_file(path.partition("/resolve/")[2].partition("/")[2])
        elif path.startswith(f"api/datasets/{NAME}/tree/"):
            self._send_json(self._tree(path.partition("/tree/")[2].partition("/")[2]))
        elif path == f"api/datasets/{NAME}" or path.startswith(f"api/datasets/{NAME}/revision/"):
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = [name for name in self.files if not folder or PurePosixPath(name).is_relative_to(folder)]
        folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents} - {".", folder}
        files = [
            {"type": "file", "path": name, "size": len(self.files[name]), "oid": _digest(self.files[name])}
            for name in inside
        ]
        return files + [{"type": "directory", "path": name, "oid": _digest(name.encode())} for name in sorted(folders)]

    def _send_file(self, name: str) -> None:
        if name in self.files:
            data = self.files[name]
            self._send(200, data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers.items(), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub_with(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve `files` (name in the repository: content); gives the address for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
