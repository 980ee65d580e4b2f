"""The report of a database, in the browser of the desktop."""

from __future__ import annotations

import os

import click

from retro_db.reader.database import Database
from retro_db.report.page import write_report

from ..engine.console import Console


def show_report(
    database: Database, out: str | None, other: Database | None, console: Console, *, opens: bool
) -> None:
    """Writes the page about a database, says where, and opens it if asked to.

    Args:
        database: The database.
        out: Path or URL of the page; None for its place in the database.
        other: A database to show beside it; None for none.
        console: What people see.
        opens: Whether to open the page in a browser.
    """
    page = write_report(database, out, other)
    console.say(f"report     {page}")
    if not opens:
        return
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        console.say("           there is no desktop here: open the page in a browser elsewhere")
    elif click.launch(page):
        console.say("           xdg-open is not installed: open the page in a browser")
