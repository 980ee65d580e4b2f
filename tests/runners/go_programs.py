"""Programs of Go modules, built where Go keeps what it has built already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def built(module: str, version: str) -> Path:
    """The program of a module, at a version such as 2.76.0."""
    name = module.rsplit("/", 1)[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "retro-db")
    folder = cache / f"{name}-{version}"
    go = Path(sys.executable).with_name("go")
    command = [str(go), "install", f"{module}@v{version}"]
    subprocess.run(command, env=os.environ | {"GOBIN": str(folder)}, check=True)
    return folder / name
