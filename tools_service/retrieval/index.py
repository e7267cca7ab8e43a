"""The manifest of an index folder: what the index was built from, and whether it can be opened.

In: an index folder. Out: its manifest, or an error that says what to do. indexing/build.py builds
the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools_service.base.errors import ConfigurationError

MANIFEST = "manifest.json"
FORMAT = 2  # version of the files in an index folder; an index of another version is built again


class IndexFolderError(ConfigurationError):
    """An index cannot be opened, or its folder not be written; names it and what to do."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index; IndexFolderError if it is missing or of another version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["settings"]["format"]
    except FileNotFoundError:
        raise IndexFolderError(
            f"tools.wikisearch.index: no index at {folder}; build one with python -m tools_service index"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFolderError(
            f"tools.wikisearch.index: {folder}/{MANIFEST} cannot be read ({error}); build the index again"
        ) from error
    if version != FORMAT:
        raise IndexFolderError(
            f"tools.wikisearch.index: {folder} is of another version of this program; build it again with "
            "python -m tools_service index"
        )
    return dict(manifest)
