"""What a result was made with: versions of Python, of this package and of what the rows depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from tools_service.base.version import __version__


def versions() -> dict[str, str]:
    """Of Python, this package and what the rows depend on."""
    packages = ("torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy")
    return {"python": platform.python_version(), "toolformer-on-ray": __version__} | {
        package: _version(package) for package in packages
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
