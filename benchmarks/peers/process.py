"""A peer's script in a separate process, which is asked by lines and answers by lines."""

from __future__ import annotations

import subprocess
from pathlib import Path


class PeerProcess:
    """The process of a peer.

    Args:
        python: Interpreter of the peer's environment.
        script: Name of a file in this folder.
        name: Name of the peer, the script's first argument.
        *arguments: Other arguments of the script.
    """

    def __init__(self, python: Path, script: str, name: str, *arguments: object) -> None:
        self.name = name
        command = [python, Path(__file__).with_name(script), name, *arguments]
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> None:
        """Sends a line to the script."""
        if self._process.stdin:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def answer(self, word: str) -> str:
        """Returns the text after a word in the next line that begins with it."""
        for line in self._process.stdout or ():
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise RuntimeError(f"{self.name} ended early")

    def close(self) -> None:
        """Closes the script's input, and waits until it ends."""
        self._process.communicate()
