"""The versions that a result was produced with, for its manifest.

Out: the versions of Python, of this package and of the packages that the rows depend on.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from tools_service.base.version import __version__


def versions() -> dict[str, str]:
    """Versions by name; "not installed" for a missing package."""
    packages = ("torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy")
    own = {"python": platform.python_version(), "toolformer-on-ray": __version__}
    return own | {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
