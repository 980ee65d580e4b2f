"""The command `retro-db`."""

from __future__ import annotations

import os
import sys

_EXTRA = "error: retro-db's commands need the extra build: pip install 'retro-db[build]'"
_BAD_USAGE = 2
_INTERRUPTED = 130


def main() -> None:
    """Runs the command line, which needs more than the library does."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        print(f"{_EXTRA} (missing: {error.name})", file=sys.stderr)  # noqa: T201 - rich may be missing
        sys.exit(_BAD_USAGE)
    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if code == _INTERRUPTED:
        # Threads of native libraries may still run, and would abort an orderly exit.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
