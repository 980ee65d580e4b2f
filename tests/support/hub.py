"""A server that speaks what the Hugging Face hub's library asks about datasets."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/datasets/(\w+/\w+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/datasets/(\w+/\w+)/resolve/([^/]+)/(.*)")


@dataclass
class Hub:
    """The hub's datasets.

    Attributes:
        files: Content of the files of each commit, by dataset and the commit's hash.
        branches: Commit of each branch, by dataset.
        asked: Commit and path of each file that was asked for.
        address: Its URL.
        breaks: Whether it hangs up in place of an answer.
    """

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""
    breaks: bool = False

    def commit(self, dataset: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Replaces the files of a branch; the commit's hash."""
        content = repr((dataset, sorted(files.items()), len(self.files)))
        commit = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.files[dataset, commit] = files
        self.branches[dataset, branch] = commit
        return commit

    def sent(self) -> list[str]:
        """Commit and path of each file that was asked for since the last call."""
        sent = self.asked[:]
        self.asked.clear()
        return sent


class _Asked(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.breaks:
            self.close_connection = True
        elif matched := _API.fullmatch(path):
            self._describe(*matched.groups())
        elif matched := _RESOLVE.fullmatch(path):
            self._send(*matched.groups())
        else:
            self._answer(404, b"")

    def _files(self, dataset: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files; None once it is answered that there are none."""
        commit = self.hub.branches.get((dataset, revision or "main"), revision or "")
        if (files := self.hub.files.get((dataset, commit))) is None:
            is_known = any(dataset == known for known, _ in self.hub.files)
            self._answer(
                404, b"", {"X-Error-Code": "RevisionNotFound" if is_known else "RepoNotFound"}
            )
            return None
        return commit, files

    def _describe(
        self, dataset: str, what: str | None, revision: str | None, folder: str | None
    ) -> None:
        if (known := self._files(dataset, revision)) is None:
            return
        commit, files = known
        if what != "tree":
            self._answer(200, {"id": dataset, "sha": commit, "private": False, "siblings": []})
            return
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            if path.startswith(prefix):
                name, *below = path.removeprefix(prefix).split("/")
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
                entry = {"type": "file", "oid": oid.hexdigest(), "size": len(content)}
                if below:
                    entry = {"type": "directory", "oid": "0" * 40, "size": 0}
                entries[name] = entry | {"path": f"{prefix}{name}"}
        if entries:
            self._answer(200, list(entries.values()))
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send(self, dataset: str, revision: str, path: str) -> None:
        if (known := self._files(dataset, revision)) is None:
            return
        self.hub.asked.append(f"{revision}/{path}")
        content = known[1][path]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if asked is None:
            self._answer(200, content)
            return
        start, stop = map(int, asked.groups())
        piece = content[start : stop + 1]
        covered = f"bytes {start}-{start + len(piece) - 1}/{len(content)}"
        self._answer(206, piece, {"Content-Range": covered})

    def _answer(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving_hub() -> Iterator[Hub]:
    """An empty hub, for the block."""
    hub = Hub()
    handler = type("_AskedHere", (_Asked,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
