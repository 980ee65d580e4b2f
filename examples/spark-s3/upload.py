"""Makes the bucket of the example, and puts modules of Python's standard library there, as JSON lines.

    python upload.py [--documents 100]

The server is the one that AWS_ENDPOINT_URL names.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path

import s3fs

BUCKET = "retro-db"
FILES = 4


def main() -> None:
    """Reads the arguments, and uploads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100)
    options = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    modules = [path for path in sorted(library.glob("*.py")) if path.stat().st_size > 2_000]
    lines = [
        json.dumps({"id": path.name, "text": path.read_text("utf-8")}) + "\n"
        for path in modules[: options.documents]
    ]
    store = s3fs.S3FileSystem()
    store.makedirs(BUCKET, exist_ok=True)
    for number in range(FILES):
        store.pipe(f"{BUCKET}/corpus/{number}.jsonl", "".join(lines[number::FILES]).encode())
    print(f"{len(lines)} documents in {FILES} files of s3://{BUCKET}/corpus")


if __name__ == "__main__":
    main()
