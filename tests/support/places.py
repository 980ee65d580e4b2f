"""Where things are."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
SHARED = ROOT.parent / "shared"
COMMAND = Path(sys.executable).with_name("retro-db")
