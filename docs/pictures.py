"""`make pictures`: the pictures of the README, made from the demo's database.

The picture of a query needs nothing else. That of the report needs a Chromium; without one, this ends with an
error, and the old picture stays.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console as RichConsole

import retro_db
from retro_db.report.page import write_report
from retro_db_pipelines.commands.query import show_near_text
from retro_db_pipelines.engine.console import Console

IMAGES = Path(__file__).resolve().parent / "images"
BROWSERS = (
    "chromium",
    "chromium-headless-shell",
    "chromium-browser",
    "google-chrome",
    "chrome",
)
_COLUMNS = 100
_PIXELS = "1200,1790"
# The sections that fit one picture.
_STYLE = "<style>section:not(#overview, #chunks), #sources, #flow { display: none }</style>"
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def picture_of_query(database: str, text: str, k: int) -> str:
    """A terminal that shows a query, as SVG.

    Args:
        database: Path of the database.
        text: What is asked for.
        k: Number of neighbors.
    """
    console = Console()
    console.rich = RichConsole(
        record=True, width=_COLUMNS, force_terminal=True, highlight=False, file=io.StringIO()
    )
    console.say(f'$ retro-db query {database} "{text}" -k {k}')
    show_near_text(database, text, k, None, console, as_json=False)
    # Without the web fonts that it names: a picture asks no server for anything.
    return _FONTS.sub("", console.rich.export_svg(title="retro-db query"))


def photograph_report(database: str, browser: str, picture: Path) -> None:
    """Writes a picture of the report's first sections, as PNG.

    Args:
        database: Path of the database.
        browser: Program of a Chromium.
        picture: File to write.

    Raises:
        subprocess.CalledProcessError: The browser failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        write_report(retro_db.open(database), str(page))
        page.write_text(page.read_text("utf-8").replace("</head>", f"{_STYLE}</head>", 1), "utf-8")
        # Chromium has no sandbox for root, and the page is our own.
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={_PIXELS}"]
        command = [browser, *options, *as_root, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


@click.command()
@click.argument("database")
@click.option("--text", default="read the lines of a compressed file", show_default=True)
def main(database: str, text: str) -> None:
    """Write the pictures of the README, from the database DATABASE of the demo."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "query.svg").write_text(picture_of_query(database, text, 3), "utf-8")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        click.echo(
            f"error: report.png needs a browser: install one of {', '.join(BROWSERS)}", err=True
        )
        sys.exit(3)
    photograph_report(database, browser, IMAGES / "report.png")


if __name__ == "__main__":
    main()
