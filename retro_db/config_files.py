"""Files of settings: what a YAML file says together with the files that it includes.

A key `include` and deepmerge do it: inside one file YAML has anchors, OmegaConf would read `${` in patterns
that stand in configurations, Hydra brings a command line, and pyyaml-include is under the GPL.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import yaml
from deepmerge import Merger

from retro_db.errors import ConfigError
from retro_db.explaining import explain_yaml
from retro_db.store.filesystems import unopened

INCLUDE = "include"
# What stands behind it, for the JSON Schema of a configuration.
INCLUDE_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "A file of settings, or a list of them; later ones win, and the file that includes them "
    "wins over all. Relative paths start at the folder of that file.",
}
# Sections are merged setting by setting; lists and everything else are replaced.
_MERGER = Merger([(dict, ["merge"])], ["override"], ["override"])

Location = Sequence[int | str]


@dataclass(frozen=True)
class _File:
    """One file: its name, its settings, and the YAML nodes that these were made of."""

    name: str
    settings: dict[str, Any]
    root: yaml.Node


@dataclass(frozen=True)
class Composition:
    """The settings of a file and of all that it includes.

    Attributes:
        settings: Merged settings, without `include`.
        files: The files, each behind those that it includes: a later one wins.
    """

    settings: dict[str, Any]
    files: list[_File]

    def where(self, location: Location) -> str:
        """File and line that say what a setting is, as `file:line`.

        Args:
            location: Names of the sections and of the setting, and positions in lists. If no file has the
                setting, the line is that of the section it is missing from.
        """
        file, node, _ = max(
            ((file, *_deepest(file.root, location)) for file in reversed(self.files)),
            key=lambda reached: reached[2],
        )
        return f"{file.name}:{node.start_mark.line + 1}"


def compose(path: str) -> Composition:
    """Reads a file of settings, and the files that it includes.

    Args:
        path: The YAML file: a path or an fsspec URL.

    Raises:
        ConfigError: A file cannot be read, holds no settings, or includes itself.
    """
    files = _files(path, path, ())
    settings: dict[str, Any] = {}
    for file in files:
        # Merging changes sections in place, and anchors may have made one object of two of them.
        own = {name: copy.deepcopy(value) for name, value in file.settings.items()}
        settings = _MERGER.merge(settings, own)
    return Composition(settings, files)


def _files(path: str, named: str, including: tuple[str, ...]) -> list[_File]:
    """A file behind those that it includes.

    Args:
        path: The file.
        named: The file as whoever asks for it names it, for error messages.
        including: The files that include it, from the outermost.
    """
    identity = os.path.realpath(path) if _is_local(path) else path
    if identity in including:
        raise ConfigError(f"{named} again: files of settings cannot include each other in a circle")
    file, included = _read(path, named)
    above = (*including, identity)
    files = []
    for name in included:
        files += _files(_beside(path, name), f"{path}: {INCLUDE}: {name}", above)
    return [*files, file]


def _read(path: str, named: str) -> tuple[_File, list[str]]:
    """A file, and the names of the files that it includes."""
    try:
        with fsspec.open(path, "rb") as stream:
            loader = yaml.SafeLoader(stream.read().decode("utf-8"))
        root = loader.get_single_node()
        data = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named}: {explain_yaml(error)}") from error
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{named}: {unopened(error)}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{named}: cannot be read ({reason}); check the path") from error
    if root is None or not isinstance(data, dict):
        raise ConfigError(f"{named}: must hold settings, such as the line 'output: db'")
    included = data.pop(INCLUDE, [])
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{named}: {INCLUDE}: must be a file, or a list of files")
    return _File(path, data, root), names


def _beside(path: str, name: str) -> str:
    """The file that a name in another file means: relative ones start at the folder of that file."""
    name = os.path.expanduser(name)
    if "://" in name or os.path.isabs(name):
        return name
    # Behind "::" a URL names the filesystem that holds the first one.
    inner, joint, outer = path.partition("::") if "://" in path else (path, "", "")
    protocol, separator, below = inner.rpartition("://")
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(below), name))
    return f"{protocol}{separator}{beside}{joint}{outer}"


def _is_local(path: str) -> bool:
    return fsspec.core.split_protocol(path)[0] in (None, "file", "local")


def _deepest(node: yaml.Node, location: Location) -> tuple[yaml.Node, int]:
    """The innermost node on the way to a location, and how many steps lead to it."""
    for steps, part in enumerate(location):
        child = _child(node, part)
        if child is None:
            return node, steps
        node = child
    return node, len(location)


def _child(node: yaml.Node, part: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    if isinstance(node, yaml.MappingNode):
        # Of keys that stand twice, YAML takes the last.
        return next((value for key, value in reversed(node.value) if key.value == str(part)), None)
    return None
