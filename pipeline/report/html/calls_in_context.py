"""Scored calls to be read in their texts: the best, the worst, the nearest to tau_f, and a random sample.

In: batches of annotation rows with their `CallBatch`. Out: `CallInContext` and `TextInContext`. At most
`MAX_SHOWN` calls are held, whatever the size of the annotation. Long texts are cut to a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.report.html.data import CallInContext, TextInContext
from pipeline.report.html.scored_calls import CallBatch, hash64
from tools_service.syntax.calls import linearise

MAX_SHOWN = 1_000
MAX_PER_CHOICE = 50  # of one tool
WINDOW = 700  # characters shown on either side of a call in a text longer than both sides together

Choice = Literal["best", "worst", "near", "random"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
_Key = tuple[int, int]  # text_id, position


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the page needs of a call and its text."""

    call: Mapping[str, Any]
    text: str  # or a window of it
    start: int  # characters before the window
    end: int  # characters after it
    source: str
    url: str | None


class ContextCalls:
    """The calls to be shown among those that were added."""

    def __init__(self, tools: Sequence[str], tau_f: Mapping[str, float]) -> None:
        number = min(MAX_PER_CHOICE, MAX_SHOWN // (len(CHOICES) * max(1, len(tools))))
        self._of_tool = [_ToolCalls(tau_f[tool], max(1, number)) for tool in tools]
        self._tools = tools

    def add(self, rows: pa.RecordBatch, calls: CallBatch) -> None:
        """Add the calls of `rows` (document, text, calls)."""
        for tool, of_tool in enumerate(self._of_tool):
            of_tool.add(rows, calls, np.flatnonzero(calls.tool == tool))

    def contexts(self) -> tuple[tuple[TextInContext, ...], tuple[CallInContext, ...]]:
        """The texts, and the calls by tool, largest gain first."""
        texts: dict[tuple[int, int], int] = {}  # (text_id, start of the window) → index
        shown_texts: list[TextInContext] = []
        shown_calls: list[CallInContext] = []
        for of_tool in self._of_tool:
            for (text_id, position), shown, chosen in of_tool.shown():
                key = text_id, shown.start
                if key not in texts:
                    texts[key] = len(shown_texts)
                    shown_texts.append(
                        TextInContext(
                            text_id=str(text_id),
                            text=shown.text,
                            source=shown.source,
                            url=shown.url,
                            left_out_before=shown.start,
                            left_out_after=shown.end,
                        )
                    )
                before = shown.text[: position - shown.start]
                shown_calls.append(
                    CallInContext(
                        text=texts[key],
                        position=_utf16_units(before),
                        call=linearise(shown.call["tool"], shown.call["input"], shown.call["result"]),
                        kept=shown.call["gain"] >= of_tool.tau_f,
                        chosen=chosen,
                        **{name: shown.call[name] for name in _CALL_FIELDS},
                    )
                )
        return tuple(shown_texts), tuple(shown_calls)


_CALL_FIELDS = ("tool", "input", "result", "p_api", "l_plus", "l_empty", "l_call", "gain")


class _ToolCalls:
    """The calls of one tool to be shown."""

    def __init__(self, tau_f: float, number: int) -> None:
        self.tau_f = tau_f
        self._number = number  # for each choice
        self._text_id = np.empty(0, np.int64)
        self._position = np.empty(0, np.int64)
        self._gain = np.empty(0)
        self._shown: dict[_Key, _Shown] = {}

    def add(self, rows: pa.RecordBatch, calls: CallBatch, of_tool: NDArray[np.intp]) -> None:
        """Add calls number `of_tool` of a batch, and drop those that no choice takes any more."""
        if not len(of_tool):
            return
        held = len(self._gain)
        self._text_id = np.concatenate([self._text_id, calls.text_id[of_tool]])
        self._position = np.concatenate([self._position, calls.position[of_tool]])
        self._gain = np.concatenate([self._gain, calls.gain[of_tool]])
        stay = np.unique(np.concatenate(list(self._chosen().values())))
        for number in stay[stay >= held]:
            call = of_tool[number - held]
            key = int(self._text_id[number]), int(self._position[number])
            self._shown[key] = _shown(rows, int(calls.row[call]), int(calls.call[call]))
        self._text_id, self._position = self._text_id[stay], self._position[stay]
        self._gain = self._gain[stay]
        self._shown = {key: self._shown[key] for key in self._keys()}

    def shown(self) -> list[tuple[_Key, _Shown, tuple[Choice, ...]]]:
        chosen = {choice: set(numbers.tolist()) for choice, numbers in self._chosen().items()}
        keys = self._keys()
        return [
            (keys[number], self._shown[keys[number]], tuple(c for c in CHOICES if number in chosen[c]))
            for number in np.lexsort((self._position, self._text_id, -self._gain)).tolist()
        ]

    def _keys(self) -> list[_Key]:
        return list(zip(self._text_id.tolist(), self._position.tolist(), strict=True))

    def _chosen(self) -> dict[Choice, NDArray[np.intp]]:
        """The numbers of the calls by choice. Of equals the text's id decides, not the order of files."""
        by_choice: dict[Choice, NDArray[Any]] = {
            "best": -self._gain,
            "worst": self._gain,
            "near": np.abs(self._gain - self.tau_f),
            "random": hash64(hash64(self._text_id).astype(np.int64) + self._position),
        }
        return {
            choice: np.lexsort((self._position, self._text_id, key))[: self._number]
            for choice, key in by_choice.items()
        }


def _shown(rows: pa.RecordBatch, row: int, call: int) -> _Shown:
    fields = rows["calls"].flatten()[call].as_py()
    text, document = rows["text"][row].as_py(), rows["document"][row].as_py()
    start, end = 0, len(text)
    if len(text) > 2 * WINDOW:
        start = max(0, min(fields["position"] - WINDOW, len(text) - 2 * WINDOW))
        end = start + 2 * WINDOW
    return _Shown(fields, text[start:end], start, len(text) - end, document["source"], document["url"])


def _utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
