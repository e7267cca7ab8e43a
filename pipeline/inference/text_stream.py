"""The text of a request while it grows: what is certain, and where a stop string begins.

In: tokens, one at a time. Out: text that later tokens cannot change. Only the last few tokens are
decoded again, so the cost of a token does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """The text of tokens, with the part that has been handed out."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        # Tokens from `_context` on are decoded; those before `_done` are in `text` already.
        self._context = 0
        self._done = 0
        self.text = ""
        self._handed_out = 0

    def push(self, token: int) -> int | None:
        """Add a token. Where the first stop string begins in the text, if one is complete now."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._context : self._done])
        longer = self._decode(self._tokens[self._context :])
        # The bytes so far may be the first ones of a character: its other bytes are still to come.
        if longer.endswith("\ufffd") or not longer.startswith(known):
            return None
        before = len(self.text)
        self.text += longer[len(known) :]
        self._context, self._done = self._done, len(self._tokens)
        longest = max(map(len, self._stop), default=1)
        from_here = max(0, before - longest + 1)
        found = [start for string in self._stop if (start := self.text.find(string, from_here)) >= 0]
        return min(found, default=None)

    def hand_out(self) -> str:
        """The text that is new and certain: no stop string can begin in it."""
        certain = len(self.text)
        for string in self._stop:
            for size in range(1, min(len(string), len(self.text) - self._handed_out + 1)):
                if self.text.endswith(string[:size]):
                    certain = min(certain, len(self.text) - size)
        return self.hand_out_until(max(certain, self._handed_out), self.text)

    def hand_out_until(self, end: int, text: str) -> str:
        """The rest of `text` up to `end`, which has not been handed out."""
        new = text[self._handed_out : end]
        self._handed_out = max(end, self._handed_out)
        return new
