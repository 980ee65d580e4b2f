"""`make schemas`: writes the JSON Schemas of the manifest and the configuration from their classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from retro_db.config import Config
from retro_db.config_files import INCLUDE, INCLUDE_SCHEMA
from retro_db.manifest.model import Manifest

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas of the configuration and the manifest, by file name."""
    manifest = TypeAdapter(Manifest).json_schema()
    for definition in (manifest, *manifest["$defs"].values()):
        definition["additionalProperties"] = False
    return {
        "config.schema.json": {"$schema": _DIALECT} | _config_schema(),
        "manifest.schema.json": {"$schema": _DIALECT} | manifest,
    }


def _config_schema() -> dict[str, Any]:
    """The schema of a configuration file, which may leave to the files that it includes what is required."""
    schema = Config.model_json_schema()
    required = schema.pop("required")
    properties = {INCLUDE: INCLUDE_SCHEMA} | schema["properties"]
    either = [{"required": [INCLUDE]}, {"required": required}]
    return schema | {"properties": properties, "anyOf": either}


def rendered() -> dict[str, str]:
    """The text of both schema files, by file name."""
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}


if __name__ == "__main__":
    for name, text in rendered().items():
        Path(sys.argv[1], name).write_text(text, "utf-8")
