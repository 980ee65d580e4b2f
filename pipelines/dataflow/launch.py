"""The file that Google's flex template launcher runs."""

from __future__ import annotations

from .flex import main

if __name__ == "__main__":
    main()
