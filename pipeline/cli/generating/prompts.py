"""The prompts of the command `generate`: arguments, the lines of a file, or those of standard input.

In: the arguments of the command. Out: prompts. Whether a model can continue a prompt is decided in
pipeline/inference.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.standard_streams import standard_input

_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def prompts_of(prompts: Sequence[str], file: Path | None) -> list[str]:
    """`prompts`, else the lines of `file`, else those of standard input.

    Raises ConfigurationError if there is no prompt, or two sources of prompts.
    """
    if prompts and file:
        raise ConfigurationError("give prompts as arguments or with --file, not both")
    if not all(map(str.strip, prompts)):
        raise ConfigurationError("a prompt is empty; is a variable of the shell unset?")
    if prompts:
        return list(prompts)
    source = file or "standard input"
    if file is None and standard_input().isatty():
        print("prompts, one per line; end with Ctrl-D:", file=sys.stderr)
    try:
        content = standard_input().read() if file is None else file.read_bytes()
        # Not splitlines, which also splits at U+2028 and other characters of a text.
        lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source}: cannot be read as prompts in UTF-8: {error}") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigurationError(f"no prompt in {source}")
    return found


def unescape(text: str) -> str:
    r"""`text` with \n, \t and \\ as the characters that they stand for."""
    return re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)
