"""A Hugging Face Hub on this machine: one repository over HTTP, as `huggingface_hub` asks for it.

What is served: the repository's commit and its list of files, and each file with its ETag and length, from the byte on
that a Range asks for. Every question is written down. A file may be cut off after some bytes, as when a line breaks.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME, COMMIT = "someone/small", "0" * 40


@dataclass(frozen=True)
class Asked:
    """One question: how ("HEAD" or "GET"), for which file (None: about the repository), from which byte, by whom."""

    method: str
    file: str | None
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The repository's folder, what was asked, and how the line is to break: file -> bytes sent, for each GET."""

    folder: Path
    name: str = NAME
    asked: list[Asked] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    url: str = ""

    def files(self) -> list[str]:
        """Name every file of the repository."""
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def fetched(self) -> list[str]:
        """Name the files that were asked for, each GET once."""
        return sorted(asked.file for asked in self.asked if asked.method == "GET" and asked.file)


@contextmanager
def serving(folder: Path, name: str = NAME) -> Iterator[Hub]:
    """Serve a folder as the repository `name`."""
    hub = Hub(folder, name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Answer,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answer(BaseHTTPRequestHandler):
    """One answer."""

    hub: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        file = path.partition(f"/{self.hub.name}/resolve/{COMMIT}/")[2] or None
        self.hub.asked.append(Asked(self.command, file, self.headers["Range"], self.headers["Authorization"]))
        if path == f"/api/models/{self.hub.name}/revision/main":
            self.send_json(
                {"id": self.hub.name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in self.hub.files()]}
            )
        elif path == f"/api/models/{self.hub.name}/tree/{COMMIT}":
            self.send_json([self.entry(file) for file in self.hub.files()])
        elif file in self.hub.files():
            self.send_file(file)
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def entry(self, file: str) -> dict:
        """A file in the repository's list."""
        data = (self.hub.folder / file).read_bytes()
        return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_json(self, content) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, file: str) -> None:
        data = (self.hub.folder / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = self.hub.cuts.get(file) if self.command == "GET" else None
        self.send(data[start:], headers, status, cuts.pop(0) if cuts else None)

    def send(self, data: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        """Send an answer, or of its body only the first `cut` bytes; of a cut at 0 nothing at all."""
        if cut != 0:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[:cut])

    def log_message(self, *args):
        pass
