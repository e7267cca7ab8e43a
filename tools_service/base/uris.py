"""URIs of object stores: what is one, what may be in it, and the file system behind it.

In: a text that names a folder or a URI. Out: a file system of pyarrow and a path in it, or a
ConfigurationError that names the option. pyarrow is imported when a URI is opened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tools_service.base.errors import ConfigurationError, brief

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def is_uri(location: str) -> bool:
    """Whether this is no path."""
    return "://" in location


def require_whole_scheme(location: str) -> None:
    """ValueError for s3:bucket/path, which would be a folder."""
    if re.match(r"[a-z0-9+]+:(?!//)", location):
        raise ValueError(f"{location!r} looks like a URI without its //: write s3://bucket/path or a folder")


def open_uri(uri: str, option: str) -> tuple[FileSystem, str]:
    """The file system of a URI, and the path in it. ConfigurationError, which names `option`."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    _require_no_secret(uri, option)
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (OSError, ValueError, ImportError, ArrowException) as error:
        raise ConfigurationError(
            f"{option} = {uri}: {brief(error)}. Give a folder, or a URI that pyarrow or fsspec "
            "understands (s3://bucket/path, gs://…, fsspec+abfs://…)"
        ) from error
    return filesystem, path.rstrip("/")


def _require_no_secret(uri: str, option: str) -> None:
    """Manifests hold the configuration."""
    if "@" in uri.partition("://")[2].partition("/")[0] or "secret_key" in uri:
        raise ConfigurationError(
            f"{option}: the URI holds a password; give credentials in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) or by the machine's role"
        )
