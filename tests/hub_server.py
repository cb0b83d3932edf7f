"""A model hub on the loopback interface: enough of the Hugging Face hub's API for `huggingface_hub` to use it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves repositories; tests set what goes wrong.

    Attributes:
        repositories, datasets: files by repository and name.
        gated: repositories whose files are refused.
        cut_after: each answer breaks off after so many bytes; None: never.
        refuse_ranges: answers to requests that go on somewhere are errors of this status.
        corrupt: files whose bytes are not those that were announced.
        requests: what was asked for: (method, path, the header Range).
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.datasets: dict[str, Mapping[str, bytes]] = {}
        self.gated: set[str] = set()
        self.corrupt: set[str] = set()
        self.cut_after: int | None = None
        self.refuse_ranges: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""

    def files_of(self, repo: str) -> Mapping[str, bytes]:
        return self.repositories[repo] if repo in self.repositories else self.datasets[repo]

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


def _siblings(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    listed = []
    for name, data in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith((".gguf", ".safetensors", ".bin")):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        listed.append(entry)
    return listed


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith(("/api/models/", "/api/datasets/")):
                self.send_listing("/".join(path.split("/")[3:5]), path.split("/")[2])
            else:
                self.send_file(*path.removeprefix("/datasets").split("/", 5)[1:])

        def send_listing(self, repo: str, kind: str) -> None:
            if repo not in (hub.datasets if kind == "datasets" else hub.repositories):
                self.refuse(404, "RepoNotFound")
            else:
                self.send_json({"id": repo, "sha": COMMIT, "siblings": _siblings(hub.files_of(repo))})

        def send_file(self, owner: str, name: str, _: str, revision: str, file: str) -> None:
            assert revision == COMMIT
            wanted = self.headers.get("Range")
            if f"{owner}/{name}" in hub.gated:
                self.refuse(403, "GatedRepo")
            elif wanted and hub.refuse_ranges:
                self.refuse(hub.refuse_ranges, "Unavailable")
            else:
                self.send_data(owner, name, file, wanted)

        def send_data(self, owner: str, name: str, file: str, wanted: str | None) -> None:
            data = hub.files_of(f"{owner}/{name}")[file]
            if file in hub.corrupt:
                data = bytes(len(data))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:] if hub.cut_after is None else data[start : start + hub.cut_after])
            if hub.cut_after is not None:
                self.close_connection = True

        def send_json(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """A hub that runs as long as the `with` block."""
    hub = FakeHub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
