"""A whole build on Prism, built from its Go module, gives the bytes of a local build."""

from __future__ import annotations

from pathlib import Path

import apache_beam

from runners.builds import check_equals_local
from runners.go_programs import built

MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"


def test_the_same_bytes(tmp_path: Path) -> None:
    """With the program of Beam's installed version."""
    prism = built(MODULE, apache_beam.__version__)
    check_equals_local(tmp_path, "--runner=PrismRunner", f"--prism_location={prism}")
