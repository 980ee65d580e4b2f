"""A web server with files."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


class Served(http.server.SimpleHTTPRequestHandler):
    """Files over HTTP, with or without what tells their versions."""

    tells = True

    def send_header(self, keyword: str, value: str) -> None:
        if self.tells or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves a folder for the block, which gets the address."""

    def handle(*arguments: object) -> Served:
        return Served(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
