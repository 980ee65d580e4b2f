"""The command `retro-db`."""

from __future__ import annotations

import sys

_EXTRA = "error: retro-db's commands need the extra build: pip install 'retro-db[build]'"


def main() -> None:
    """Runs the command line, which needs more than the library does."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        sys.exit(f"{_EXTRA} (missing: {error.name})")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
