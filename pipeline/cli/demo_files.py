"""The files of the recipe `demo` are in a checkout of the repository, not in the installed package.

In: the arguments of a command. Raises ConfigurationError, before the command runs, if they name files
of demo/ in a folder without it. The files of tools are not checked here: the registry refuses a tool
that cannot start.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.cli.arguments import Arguments
from tools_service.base.errors import ConfigurationError

_ALTERNATIVE = "annotate --recipe single_gpu --corpus TEXTS --tools Calculator Calendar"
_TOOLS = {"tools": True, "generation": {"tools"}, "annotate": {"tools"}, "generate": {"tools"}}
_TOOLS |= {"evaluate": {"generation": {"tools"}}}


def require_demo_files(arguments: Arguments[Any], program: str) -> None:
    """Raise ConfigurationError if corpus, model, prompts or questions are those of a missing demo/."""
    if arguments.recipe != "demo" or Path("demo").is_dir():
        return
    config = arguments.config.model_dump_json(exclude=_TOOLS)
    if missing := dict.fromkeys(re.findall(r'"(demo/[^"]*)"', config)):
        raise ConfigurationError(
            f"{', '.join(missing)}: missing here; the recipe `demo` needs a checkout of the repository, so "
            f"run it there, or use another recipe with your own texts: {program} {_ALTERNATIVE}"
        )
