"""A whole build on Prism, built from its Go module, gives the bytes of a local build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import apache_beam

from runners.builds import check_equals_local

MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"


def built_prism() -> Path:
    """The program of Beam's installed version, built where Go keeps what it has built already."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "retro-db")
    folder = cache / f"prism-{apache_beam.__version__}"
    go = Path(sys.executable).with_name("go")
    command = [str(go), "install", f"{MODULE}@v{apache_beam.__version__}"]
    subprocess.run(command, env=os.environ | {"GOBIN": str(folder)}, check=True)
    return folder / "prism"


def test_the_same_bytes(tmp_path: Path) -> None:
    check_equals_local(tmp_path, "--runner=PrismRunner", f"--prism_location={built_prism()}")
