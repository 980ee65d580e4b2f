"""The command `retro-db`."""

from __future__ import annotations

import sys

_EXTRA = (
    "error: retro-db's commands need the extra build: pip install -e '.[build]' in a clone of the "
    "repository"
)
_BAD_USAGE = 2


def main() -> None:
    """Runs the command line, which needs more than the library does."""
    try:
        from .commands import cli
    except ModuleNotFoundError as error:
        print(f"{_EXTRA} (missing: {error.name})", file=sys.stderr)  # noqa: T201 - rich may be missing
        sys.exit(_BAD_USAGE)
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
