"""The annotation prompts P(x), one file per tool (paper section 2, "Sampling API Calls"; Appendix A).

In: a tool's name and, for a user's own prompts, a folder. Out: what stands before and after the text. A
file is an instruction and a few demonstrations, then ``Input: {text}`` and ``Output:``; the slot takes ``"
" + x``, so the space in front of it belongs to the text. Tokens are the model's business, not this
module's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.tools.contract import TOOL_NAMES, ToolName

FOLDER = Path(__file__).parent / "prompt_files"
_SLOT = "{text}"


class PromptError(ConfigurationError):
    """A prompt file that is missing or does not fit its tool."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """P(x) is `prefix`, a space, x, `suffix`; then the model writes x again, with calls."""

    tool: ToolName
    prefix: str
    suffix: str


def load_prompt(tool: ToolName, folder: Path | None = None) -> PromptTemplate:
    """The prompt of `tool` from ``FOLDER/tool-in-lower-case.txt``.

    Raises PromptError unless the file has exactly one ``{text}``, a space in front of it, at least one
    demonstrated call of this tool and no call of another.
    """
    path = (folder or FOLDER) / f"{tool.lower()}.txt"
    try:
        template = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt for {tool}: cannot read {path}: {error}") from error
    if template.count(_SLOT) != 1:
        raise PromptError(f"{path}: needs exactly one {_SLOT}, has {template.count(_SLOT)}")
    prefix, suffix = template.split(_SLOT)
    if not prefix.endswith(" ") or not prefix.strip() or not suffix:
        raise PromptError(f"{path}: write the slot as 'Input: {_SLOT}', then 'Output:' on a line of its own")
    named = {other for other in TOOL_NAMES if re.search(rf"\[{other}\(", template)}
    if named != {tool}:
        raise PromptError(f"{path}: must show calls of {tool} and of no other tool, shows {sorted(named)}")
    return PromptTemplate(tool, prefix[:-1], suffix)
