"""Strings of strangers (keys, titles, file names) as they may be written to rows, logs and terminals.

In: any string. Out: one line of valid Unicode with a bounded length. Texts do not pass through here.
"""

from __future__ import annotations

import re

# Control characters (ANSI sequences, line breaks, NUL), halves of surrogate pairs, line separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str, limit: int = 200) -> str:
    """Escape what breaks a line, a terminal or UTF-8 (``\\x1b``, ``\\n``); cut after `limit` characters."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
