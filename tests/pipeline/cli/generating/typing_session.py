"""An interactive session over a fake engine, for a pseudo-terminal (test_interactive.py).

The answer to "wait" begins and never ends; that to every other prompt repeats it.
"""

from __future__ import annotations

import fcntl
import termios
from pathlib import Path
from typing import cast

from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.generating.interactive import InteractiveSession
from pipeline.cli.generating.line_history import LineHistory, history_file
from pipeline.inference.generation import EndEvent, Generation, TextEvent
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import EventStream, StreamingEngine


class RepeatingEngine:
    """Answers as an engine does."""

    def submit(self, prompt: str, params: DecodingParams, date: str | None = None) -> EventStream:
        stream = EventStream()
        if prompt == "wait":
            stream.put(TextEvent(" begun"))
            return stream
        text = f" <{prompt}|k={params.k}>"
        stream.put(TextEvent(text))
        stream.put(EndEvent(Generation(text, (), (), "eos", 1)))
        return stream


def run(history: Path) -> None:
    """Read this process's terminal until Ctrl-D."""
    engine = cast("StreamingEngine", RepeatingEngine())
    InteractiveSession(engine, GenerateConfig(), ("QA",), LineHistory(history)).run()


if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is sent to this process
    run(history_file())
