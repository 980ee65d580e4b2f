"""The site: Sphinx builds it from the pages of this folder, strictly, by `make docs`."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

import retro_db

project = "retro-db"
author = "The retro-db authors"
version = release = retro_db.__version__
html_title = f"retro-db {release}"
html_theme = "furo"
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# As on GitHub: every heading has an anchor, quotes stay as they are, and only a named language is colored.
myst_heading_anchors = 4
smartquotes_action = "D"
highlight_language = "none"

# Docstrings have Markdown's backticks.
default_role = "code"
autodoc_default_options = {"undoc-members": True}  # which then fail
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

# A reference that leads nowhere fails. But what other packages describe is not looked up, as that takes a
# network, nor what only the library itself uses.
nitpicky = True
nitpick_ignore = [
    ("py:class", "retro_db.reader.removals.Removals"),
    ("py:class", "retro_db.reader.sequences.Run"),
    ("py:class", "retro_db.store.gathering.Table"),
]
nitpick_ignore_regex = [(r"py:.*", r"(numpy|np|pyarrow|pa|os|collections|torch)(\..*)?")]

# Pages outside this folder, which pages here include under these names.
_OUTSIDE = re.compile(r"\]\(\.\./(?:benchmarks/)?(SECURITY|CHANGELOG|CONTRIBUTING|RESULTS)\.md\b")

_log = logging.getLogger(__name__)


def _lead_inside(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Links to pages outside this folder, which GitHub follows, lead to those that include them."""
    source[0] = _OUTSIDE.sub(lambda match: f"]({match[1].lower()}.md", source[0])


def _expect_docstring(
    _app: Sphinx, what: str, name: str, _thing: Any, _options: Any, lines: list[str]
) -> None:
    """Warns of a public name that nothing describes: a warning is an error here."""
    if not any(line.strip() for line in lines):
        _log.warning("the %s %s has no docstring", what, name)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _lead_inside)
    app.connect("autodoc-process-docstring", _expect_docstring, priority=1)
