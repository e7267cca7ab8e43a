"""The annotation prompts P(x), one file per tool (paper section 2; Appendix A).

In: a tool's name and, for a user's own prompts, a folder. Out: the strings before and after the
text. A prompt file has an instruction, a few demonstrations, then ``Input: {text}`` and
``Output:``. The space in front of ``{text}`` belongs to the text. This module does not tokenize.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.contract.declarations import with_installed

PROMPT_FOLDER = Path(__file__).parent / "prompt_files"
_PLACEHOLDER = "{text}"


class PromptError(ConfigurationError):
    """A prompt file that is missing or does not fit its tool."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """P(x) is `prefix`, a space, x, `suffix`. The model continues it with x and its calls."""

    tool: str
    prefix: str
    suffix: str


def load_prompt(tool: str, folder: Path | None = None, file: Path | None = None) -> PromptTemplate:
    """The prompt of `tool`: `file`, or the file in `folder` with its name in lower case and ``.txt``.

    Raises PromptError unless the file has exactly one ``{text}`` with a space in front of it, at
    least one demonstrated call of this tool, and no call of another tool.
    """
    path = file or (folder or PROMPT_FOLDER) / f"{tool.lower()}.txt"
    try:
        template = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt for {tool}: cannot read {path}: {error}") from error
    if (count := template.count(_PLACEHOLDER)) != 1:
        raise PromptError(f"{path}: needs exactly one {_PLACEHOLDER}, has {count}")
    prefix, suffix = template.split(_PLACEHOLDER)
    if not prefix.endswith(" ") or not prefix.strip() or not suffix:
        raise PromptError(f"{path}: write 'Input: {_PLACEHOLDER}', then 'Output:' on a line of its own")
    shown = {name for name in with_installed([tool]) if re.search(rf"\[{name}\(", template)}
    if shown != {tool}:
        raise PromptError(f"{path}: must show calls of {tool} and of no other tool, shows {sorted(shown)}")
    return PromptTemplate(tool, prefix[:-1], suffix)
