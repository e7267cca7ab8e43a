"""datatrove on the same files, in an environment of its own (0.10.1 was used).

In, as one line of JSON: files with the name of their text field, and a tokenizer.json or null. Out, as one
line of JSON: documents and characters, the CPU seconds of reading and parsing with JsonlReader or
ParquetReader, and of the same with TokensCounter behind it. Each is timed after a first pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def documents(files: list[list[str]]) -> Iterator[Any]:
    """The documents of all files."""
    from datatrove.pipeline.readers import JsonlReader, ParquetReader

    for name, text_field in files:
        path = Path(name)
        reader = ParquetReader if path.suffix == ".parquet" else JsonlReader
        folder, pattern = str(path.parent), path.name
        yield from reader(folder, glob_pattern=pattern, recursive=False, text_key=text_field).run()


def timed(stream: Any) -> tuple[float, int, int]:
    """CPU seconds, documents and characters of a stream."""
    began = time.process_time()
    number = characters = 0
    for document in stream:
        number += 1
        characters += len(document.text)
    return time.process_time() - began, number, characters


def main() -> None:
    """Answer one request on standard input."""
    from datatrove.pipeline.tokens import TokensCounter

    request = json.loads(sys.stdin.readline())
    files, tokenizer = request["files"], request["tokenizer"]
    timed(documents(files))
    reading_s, number, characters = timed(documents(files))
    response = {"documents": number, "characters": characters, "reading_s": reading_s}
    if tokenizer:
        counter = TokensCounter(tokenizer, batch_size=64)
        timed(counter.run(documents(files[:1])))
        response["counting_s"] = timed(counter.run(documents(files)))[0]
    print(json.dumps(response))
