"""The versions that a result was produced with, for its manifest.

Out: the versions of Python, of this package and of the packages that the rows depend on.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from tools_service.base.version import __version__


def versions() -> dict[str, str]:
    """Versions by name; "not installed" for a missing package."""
    by_name = {"python": platform.python_version(), "toolformer-on-ray": __version__}
    for package in ("torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy"):
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:
            by_name[package] = "not installed"
    return by_name
