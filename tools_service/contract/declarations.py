"""Which tools are declared: by this package, by others (entry points), by a file.

In: declarations from a file, if there are any. Out: specifications by name, in a fixed order, and the
class of a tool's settings. An entry point of the group `toolformer.tools` names a ToolSpec or several.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from tools_service.base.errors import ConfigurationError, brief
from tools_service.contract.builtin import BUILTIN
from tools_service.contract.settings import ToolSettings
from tools_service.contract.spec import ToolSpec, hashed_stream

logger = logging.getLogger(__name__)

GROUP = "toolformer.tools"
PACKAGED = tuple(spec.name for spec in BUILTIN)
"""The names of this package's tools, in the order of their random streams."""


class DeclarationError(ConfigurationError):
    """A declaration of a tool cannot be used; the message names the tool and the key."""


class OpenSettings(ToolSettings):
    """Settings of a class that cannot be imported here, as a stored run has them."""

    model_config = ConfigDict(extra="allow")


@cache
def installed_tools() -> dict[str, ToolSpec]:
    """The tools of this package, then those of installed packages by name.

    An entry point that cannot be used costs a warning, because it need not concern this run.
    """
    specs = {spec.name: spec for spec in BUILTIN}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            specs |= _named(_specs_of(point.load()), specs)
        except (Exception, SystemExit) as error:  # another package's code
            logger.warning("entry point %s = %s is left out: %s", point.name, point.value, brief(error))
    return specs


def _specs_of(loaded: object) -> tuple[ToolSpec, ...]:
    specs = tuple(loaded) if isinstance(loaded, tuple | list) else (loaded,)
    for spec in specs:
        if not isinstance(spec, ToolSpec):
            raise DeclarationError(f"it must name a ToolSpec or a list of them, not {type(spec).__name__}")
    return specs


def _named(specs: Iterable[ToolSpec], taken: Mapping[str, ToolSpec]) -> dict[str, ToolSpec]:
    """`specs` by name. Raises DeclarationError if two have one name, in small letters."""
    sections = {spec.section: spec.name for spec in taken.values()}
    named = {}
    for spec in specs:
        if spec.section in sections:
            raise DeclarationError(f"tools.{spec.name}: there is a tool {sections[spec.section]} already")
        sections[spec.section] = spec.name
        named[spec.name] = spec
    return named


def known_tools(declared: Iterable[ToolSpec] = ()) -> dict[str, ToolSpec]:
    """The installed tools, then those that a file declares; the latter replace equal names."""
    installed, new = dict(installed_tools()), []
    for spec in declared:
        if spec.name in installed:
            installed[spec.name] = spec
        else:
            new.append(spec)
    return installed | _named(new, installed)


def undeclared(names: Iterable[str], specs: Collection[str]) -> str | None:
    """What is wrong with `names` of tools that are not among `specs`; None if all are."""
    unknown = [name for name in names if name not in specs]
    if not unknown:
        return None
    near = get_close_matches(unknown[0], specs, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no tool is called {' or '.join(unknown)}; {hint}there are {', '.join(specs)}"


@dataclass(frozen=True)
class Declarations:
    """What a tools file says about tools: those that it declares, and what it changes of others."""

    declared: tuple[ToolSpec, ...] = ()
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of ToolMethod, by the name of a tool that is declared elsewhere."""


def stream_number(tool: str) -> int:
    """A tool's number in the random streams of draws. Its name alone determines it."""
    return PACKAGED.index(tool) if tool in PACKAGED else hashed_stream(tool)


def with_installed(tools: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the installed tools, then those of `tools` that are not among them."""
    return tuple(dict.fromkeys((*installed_tools(), *tools)))


def in_order(tools: Iterable[str]) -> list[str]:
    """Names of tools in one fixed order: this package's first, then by name."""
    return sorted(tools, key=lambda tool: (PACKAGED.index(tool) if tool in PACKAGED else len(PACKAGED), tool))


def import_object(reference: str, field: str) -> Any:
    """The object that ``module:name`` names. Raises DeclarationError, which begins with `field`.

    Modules of the working folder are found, too: commands that are installed do not look there.
    """
    module_name, _, name = reference.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise DeclarationError(
            f"{field} = {reference!r}: there is no module {error.name}; install its package, or start in the "
            "folder that holds it"
        ) from error
    except AttributeError as error:
        raise DeclarationError(f"{field} = {reference!r}: {error}") from error
    except (Exception, SystemExit) as error:  # the module is a stranger's
        raise DeclarationError(
            f"{field} = {reference!r}: importing {module_name} failed: {type(error).__name__}: {brief(error)}"
        ) from error
    return found


def settings_class(spec: ToolSpec) -> type[ToolSettings]:
    """The class of a tool's settings. Raises DeclarationError."""
    if spec.config is not None:
        found = import_object(spec.config, f"tools.{spec.name}.config")
    else:
        implementation = import_object(spec.implementation, f"tools.{spec.name}.class")
        found = getattr(implementation, "Config", ToolSettings)
    if not (isinstance(found, type) and issubclass(found, ToolSettings)):
        raise DeclarationError(
            f"tools.{spec.name}: the class of its settings must derive from {ToolSettings.__module__}:"
            "ToolSettings"
        )
    return found


def settings_class_if_known(spec: ToolSpec) -> type[ToolSettings]:
    """The same, but OpenSettings where the class cannot be imported: a stored run can still be read."""
    try:
        # This package's tools without a class of their own need no import.
        return ToolSettings if spec.config is None and spec in BUILTIN else settings_class(spec)
    except DeclarationError:
        return OpenSettings
