"""Texts per second of one core from corpus files to the model, and the cores that feed a GPU actor.

    python -m bench.corpus [--model FOLDER] [--paths FILES…] [--max-tokens 200] [--datatrove-python PYTHON]

Without --paths, files in the shapes of CCNet, Dolma, C4 and FineWeb are made from a seed. Reported, as
medians of `--rounds`, in CPU seconds: megabytes and documents per second of reading and parsing for each
file; milliseconds a text, share and texts per second of every step; and with --datatrove-python
(an environment with `pip install "datatrove[io,processing]"`) the same files read by its readers, and
counted by its TokensCounter, in turns with ours. Last: how many cores keep an actor busy that eats
`--actor-texts` texts a second, for each tool. Out: tables, and runs/bench/corpus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core; read when tokenizers is imported

from bench import results
from bench.corpus.made_files import write_files
from bench.corpus.stages import Stages, read_lines, run_stages, timed
from pipeline.base.config import CorpusConfig, MethodConfig
from pipeline.corpus.documents import TEXT_FIELDS, lines_with_content, read_records
from pipeline.corpus.files import CorpusFile, list_files
from tools_service.base.json_lines import parse_json

ROOT = Path(__file__).parents[2]
DEMO = "demo/models/annotator"
ACTORS = (23.0, 60.0, 130.0)
"""Texts a second of an actor on an H100: GPT-J 6B at its limit; a 1 B Llama, reachable and at its limit."""


SOURCE_STEPS = ("reading", "parsing", "splitting", "blocks")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=DEMO, help="folder with the tokenizer")
    parser.add_argument("--paths", nargs="+", help="corpus files instead of made ones")
    parser.add_argument("--megabytes", type=float, default=4, help="characters to make, in millions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=200, help="corpus.max_tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove-python", help="interpreter of an environment with datatrove")
    parser.add_argument("--actor-texts", type=float, nargs="+", default=ACTORS, help="texts/s of an actor")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = args.paths or [
            str(path) for path in write_files(Path(folder), args.seed, int(args.megabytes * 1e6))
        ]
        config = CorpusConfig(paths=tuple(paths), max_tokens=args.max_tokens)
        measured = measure(list_files(config), config, args)
    print(results.write("corpus", vars(args), measured))


def measure(files: Sequence[CorpusFile], config: CorpusConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Time everything, print the tables, and return them."""
    method, rounds = MethodConfig(), range(args.rounds)
    run_stages(files[:1], config, method, args.model)  # imports and loads
    files_s: dict[str, list[dict[str, float]]] = {file.label: [] for file in files}
    passes, theirs = [], []
    for _ in rounds:
        for file in files:
            files_s[file.label].append(read_and_parse(file, config, args.datatrove_python))
        passes.append(run_stages(files, config, method, args.model))
        if args.datatrove_python:
            theirs.append(run_datatrove(args.datatrove_python, files, Path(args.model) / "tokenizer.json"))
    stages = middle(passes)
    print(files_table({name: medians(times) for name, times in files_s.items()}))
    print(stages_table(stages))
    if theirs:
        print(comparison(stages, medians(theirs)))
    every_text = [tool for tool in method.tools if method.of(tool).select.rule == "all"]
    print(actors_table(stages, args.actor_texts, every_text))
    return {"files": files_s, "stages": [vars(stage) for stage in passes], "datatrove": theirs}


def read_and_parse(file: CorpusFile, config: CorpusConfig, datatrove: str | None) -> dict[str, float]:
    """Characters and documents of one file, and the seconds it takes."""
    reading_s, _ = timed(lambda: read_lines(file))
    parsing_s, records = timed(lambda: list(read_records(file, config)))
    measured = {
        "characters": sum(len(record.text) for record in records),
        "documents": len(records),
        "reading_s": reading_s,
        "reading_and_parsing_s": parsing_s,
    }
    if datatrove:
        measured["datatrove_s"] = run_datatrove(datatrove, [file], None)["reading_s"]
    return measured


def run_datatrove(python: str, files: Sequence[CorpusFile], tokenizer: Path | None) -> dict[str, float]:
    """What the worker measured. SystemExit, with the end of its log, if it failed."""
    named = [[str(Path(file.path).resolve()), text_field(file)] for file in files]
    request = {"files": named, "tokenizer": str(tokenizer.resolve()) if tokenizer else None}
    worker = "from bench.corpus.datatrove_worker import main; main()"
    try:
        ended = subprocess.run(
            [str(Path(python).absolute()), "-c", worker],
            input=json.dumps(request) + "\n",
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    except OSError as error:
        raise SystemExit(f"--datatrove-python {python}: {error}") from error
    if ended.returncode:
        tail = "\n".join(ended.stderr.splitlines()[-10:])
        raise SystemExit(f"--datatrove-python {python}: the process ended:\n{tail}")
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def text_field(file: CorpusFile) -> str:
    """The field of a file that holds the text, which datatrove must be told."""
    if file.format == "parquet":
        return "text"
    first = parse_json(next(islice(lines_with_content(file), 1)).text)
    return next(name for name in TEXT_FIELDS if name in first)


def medians(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {key: median(values[key] for values in measured) for key in measured[0]}


def middle(passes: Sequence[Stages]) -> Stages:
    """The counts, with the median seconds of each step."""
    first = passes[0]
    seconds = medians([stage.seconds for stage in passes])
    return replace(
        first, seconds=seconds, plain_splitting_s=median(stage.plain_splitting_s for stage in passes)
    )


def files_table(files: Mapping[str, Mapping[str, float]]) -> str:
    """A line per file."""
    lines = ["file: million characters/s of reading; and parsing; documents/s; datatrove's reader"]
    for name, times in files.items():
        characters, parsing_s = times["characters"] / 1e6, times["reading_and_parsing_s"]
        parts = [
            f"{characters / times['reading_s']:.0f}" if not name.endswith(".parquet") else "-",
            f"{characters / parsing_s:.0f}",
            f"{times['documents'] / parsing_s:,.0f}",
        ]
        if "datatrove_s" in times:
            theirs = times["datatrove_s"]
            parts.append(f"{characters / theirs:.0f}, ours / datatrove {theirs / parsing_s:.2f}")
        lines.append(f"{name}: {'; '.join(parts)}")
    return "\n".join(lines)


def stages_table(stages: Stages) -> str:
    """A line per step: milliseconds a text, share, texts per second of all steps up to it."""
    total = sum(stages.seconds.values())
    lines = [
        f"\n{stages.documents:,} documents, {stages.characters / 1e6:.1f} million characters, "
        f"{stages.texts:,} texts\nstep: ms a text; share; texts/s with all steps before it"
    ]
    so_far = 0.0
    for step, seconds in stages.seconds.items():
        so_far += seconds
        parts = f"{1e3 * seconds / stages.texts:.3f}; {seconds / total:.0%}; {stages.texts / so_far:,.0f}"
        lines.append(f"{step}: {parts}")
    factor = stages.plain_splitting_s / stages.seconds["splitting"]
    lines.append(f"splitting with a tokenization of every slice that is tried: {factor:.1f} times as long")
    return "\n".join(lines)


def comparison(stages: Stages, theirs: Mapping[str, float]) -> str:
    """Ratios of CPU seconds, datatrove's to ours."""
    reading = stages.seconds["reading"] + stages.seconds["parsing"]
    splitting = reading + stages.seconds["splitting"]
    everything = sum(stages.seconds.values())
    return (
        "\ntexts per CPU second, ours / datatrove's, of the same files\n"
        f"reading and parsing: {theirs['reading_s'] / reading:.2f}\n"
        f"and counting a document's tokens (datatrove) or splitting (ours): "
        f"{theirs['counting_s'] / splitting:.2f}\n"
        f"all of our steps / its reading alone: {theirs['reading_s'] / everything:.3f}"
    )


def actors_table(stages: Stages, rates: Sequence[float], every_text: Collection[str]) -> str:
    """Cores that read for one actor, by tool, and those that select and tokenize in the actor.

    `every_text` are the tools that take every text. Alone, the others' texts are selected where they are
    read, and those that are selected once more in the actor.
    """
    source_s = sum(stages.seconds[step] for step in SOURCE_STEPS) / stages.texts
    tokenize_s = stages.seconds["tokenizing"] / stages.texts
    select_s = {tool: stages.seconds[f"select {tool}"] / stages.texts for tool in stages.selected}
    lines = [
        "\ncores that read + cores in the actor, for an actor of so many texts/s\n"
        f"tool: share selected; {', '.join(f'{rate:g} texts/s' for rate in rates)}"
    ]
    for tool, selected in stages.selected.items():
        if not selected:
            lines.append(f"{tool}: none selected")
            continue
        share = selected / stages.texts
        read_s = source_s if tool in every_text else source_s + select_s[tool]
        actor_s = select_s[tool] + tokenize_s
        lines.append(f"{tool}: {share:.1%}; {cores(rates, read_s / share, actor_s)}")
    everything = cores(rates, source_s, sum(select_s.values()) + tokenize_s)
    lines.append(f"all, every text selected: 100%; {everything}")
    return "\n".join(lines)


def cores(rates: Sequence[float], read_s: float, actor_s: float) -> str:
    """The cores for each rate, from the seconds of a text."""
    return ", ".join(f"{rate * read_s:.2f} + {rate * actor_s:.2f}" for rate in rates)


if __name__ == "__main__":
    main()
