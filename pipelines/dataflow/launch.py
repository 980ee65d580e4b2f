"""The file that Google's flex template launcher runs."""

from __future__ import annotations

from retro_db_pipelines.dataflow.flex import main

if __name__ == "__main__":
    main()
