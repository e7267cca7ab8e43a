"""The end of the demo: numbers that add up, a verdict that is true, prompts that the model can answer."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.augmentation.merge import MergeManifest, merge
from pipeline.base.config import AnnotateConfig, MergeConfig, MethodConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Document, Text
from pipeline.cli.main import parse
from pipeline.evaluation.predictions import SCHEMA
from pipeline.evaluation.results import BenchmarkResult, Evaluation, ModelResult, PairedTest
from pipeline.evaluation.store import predictions_file
from pipeline.report.demo_summary import (
    commands_to_try,
    from_kept_to_augmented,
    score_table,
    summary,
    verdict,
)
from pipeline.storage.counts import count_rows
from pipeline.storage.manifest import AnnotationManifest, CorpusState
from pipeline.storage.row_files import ROWS

pytestmark = pytest.mark.unit
METHOD = MethodConfig(tools=("Calculator", "WikiSearch"))
TEXT = "The sum is 31, as everybody knows."


def call(tool: str, position: int, gain: float, tool_input: str = "27 + 4") -> Call:
    return Call(tool, position, 0.3, tool_input, "31", 1.0, 1.0 + gain, 1.0 + gain, gain)


def annotation(folder: Path, *calls_by_text: tuple[Call, ...]) -> AnnotationManifest:
    rows = [
        Annotation(
            Text(n, Document("pages", url=f"https://example.org/{n}"), TEXT), "annotated", None, calls
        ).to_row()
        for n, calls in enumerate(calls_by_text)
    ]
    (folder / ROWS).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA), folder / ROWS / "0.parquet")
    manifest = AnnotationManifest(
        state="finished",
        config=AnnotateConfig(method=METHOD),
        versions={},
        corpus=CorpusState(files=1, bytes=1, digest=""),
        sessions=(),
        counts=count_rows(rows, METHOD),
    )
    manifest.write(folder)
    return manifest


def merged(folder: Path, **settings: Any) -> MergeManifest:
    return merge(MergeConfig(annotations=(folder,), output=folder.with_name("augmented"), **settings))


def reasons(folder: Path, manifest: AnnotationManifest, result: MergeManifest) -> dict[str, int]:
    first, *others = from_kept_to_augmented(folder, manifest, result)
    found = {words: int(number) for number, words in (line.strip().split("  ", 1) for line in others)}
    kept = sum(tool.kept for tool in manifest.counts.tools.values()) if manifest.counts else 0
    assert f"C* has {result.calls} calls in {result.texts} texts. Of {kept} kept calls" in first
    assert kept == result.calls + sum(found.values())
    return found


def test_every_kept_call_is_in_c_or_has_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    manifest = annotation(
        folder,
        (call("Calculator", 10, 1.5), call("Calculator", 10, 1.2, "26 + 5"), call("WikiSearch", 10, 2.0)),
        (call("Calculator", 10, 1.1), call("WikiSearch", 4, 3.0)),
        (call("Calculator", 10, 0.2),),
    )
    same = "less useful than another call of the same tool at the same position"
    assert reasons(folder, manifest, merged(folder)) == {same: 1}
    assert reasons(folder, manifest, merged(folder, one_call_per_position=True)) == {
        same: 1,
        "where another tool has a call": 1,
    }
    found = reasons(folder, manifest, merged(folder, tau_f={"Calculator": 1.4}))
    assert found == {"below merge's tau_f": 2}
    found = reasons(folder, manifest, merged(folder, max_examples=1))
    assert found == {same: 1, "for the cap of 1 texts a tool": 2}


def model(right: int, perplexity: float | None = None, p: float | None = None, **others: int) -> ModelResult:
    paired = None if p is None else PairedTest(b=9, c=1, p=p)
    return ModelResult(
        model="m",
        k=10,
        disabled=False,
        tools_off=(),
        benchmarks={
            name: BenchmarkResult(
                accuracy=number / 100, n=100, calls=7, calls_by_tool={}, failed_calls={}, paired=paired
            )
            for name, number in {"sums": right, **others}.items()
        },
        perplexity=perplexity,
    )


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            {"base": model(1, plain=90), "plain": model(2, plain=90), "toolformer": model(46, plain=100)},
            "Toolformer answers 46 of 100 questions that need a tool; the base model answers 1, the base "
            "model fine-tuned on the same texts without calls 2.",
        ),
        (
            {"base": model(9), "toolformer": model(9)},
            "Toolformer answers 9 of 100 questions that need a tool; the base model answers 9: the calls "
            "did not help here.",
        ),
        (
            {"base": model(5), "toolformer": model(9, p=0.2)},
            "Toolformer answers 9 of 100 questions that need a tool; the base model answers 5: so small a "
            "difference may be chance.",
        ),
        ({"toolformer": model(9)}, "Toolformer answers 9 of 100 questions that need a tool."),
        ({"base": model(9)}, "There is no result of Toolformer."),
    ],
)
def test_the_verdict_says_what_the_numbers_say(models: dict[str, ModelResult], said: str) -> None:
    assert verdict(Evaluation(models=models)) == said


def test_the_summary_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    annotation(folder, (call("Calculator", 10, 1.5),), (call("WikiSearch", 10, 1.5),))
    merged(folder)
    models = {"base": model(0, 3.8, plain=100), "toolformer": model(82, plain=100)}
    (tmp_path / "evaluation.json").write_text(Evaluation(models=models).model_dump_json())
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(summary(folder, folder.with_name("augmented"), tmp_path / "evaluation.json"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    table = [line.split() for line in lines]
    assert ["selected", "positions", "calls", "results", "scored", "kept", "in", "C*"] in table
    assert ["Calculator", "0", "0", "0", "0", "0", "1", "1"] in table
    assert ["sums", "0,", "0–4", "82,", "73–88", "7"] in table
    assert ["perplexity", "3.80", "–"] in table
    assert any("The sum is [Calculator(27 + 4) -> 31] 31, as everybody knows." in line for line in lines)
    assert not [line for line in lines if "…" in line or len(line) > 80]


def prediction(name: str, identity: str, text: str, *calls: str, right: bool = True) -> dict[str, Any]:
    written = [{"tool": tool, "input": "1", "result": "1", "position": 0} for tool in calls]
    row = dict.fromkeys(SCHEMA.names) | {
        "benchmark": name,
        "id": identity,
        "prediction": text,
        "right": right,
    }
    return row | {"annotated": text, "calls": written, "failed": [], "answers": [], "prompt": ""}


def test_the_prompts_to_paste_are_questions_that_were_answered_right_with_their_tool(tmp_path: Path) -> None:
    files = {
        "sums": {"tool": "Calculator", "tools_off": ["QA"]},
        "days": {"tool": "Calendar", "date": "2028-03-16"},
        "plain": {},
        "none": {"tool": "MT"},
    }
    for name, fields in files.items():
        lines = [
            {"id": f"{name}{n}", "prompt": f"Eve's {name} {n} is", "answers": ["1"], "scoring": "number"}
            | fields
            for n in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = EvaluateConfig(
        benchmarks=tuple(tmp_path / f"{name}.jsonl" for name in files), output=tmp_path / "e.json"
    )
    assert not list(commands_to_try(config, "generate"))  # an evaluation of an earlier version
    rows = [
        prediction("sums", "sums0", "", "Calculator", right=False),
        prediction("sums", "sums1", "1"),  # without a call
        prediction("sums", "sums2", "1 and more", "Calculator"),
        prediction("sums", "sums3", "1.", "Calculator"),
        prediction("days", "days1", "Monday", "Calendar"),
        prediction("plain", "plain0", "1", "Calculator"),
        prediction("plain", "plain1", "one"),
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), predictions_file(config.output, "toolformer"))
    commands = list(commands_to_try(config, "generate --recipe demo"))
    assert [re.findall(r"Eve's|sums 3|days 1|plain 1", shlex.split(line)[3]) for line in commands] == [
        ["Eve's", "sums 3"],
        ["Eve's", "days 1"],
        ["Eve's", "plain 1"],
    ]
    parsed: Any = [parse(line.split()[0], shlex.split(line)[1:]) for line in commands]
    assert parsed[0].config.tools_off == ("QA",)
    assert [arguments.config.stop for arguments in parsed] == [(), (), (".",)]
    assert [arguments.config.date for arguments in parsed] == [None, "2028-03-16", None]
    assert [arguments.prompts for arguments in parsed] == [
        ("Eve's sums 3 is",),
        ("Eve's days 1 is",),
        ("Eve's plain 1 is",),
    ]


def test_later_rounds_have_a_column_and_a_place_in_the_verdict(tmp_path: Path) -> None:
    models = {
        label: model(n) for label, n in {"base": 1, "toolformer": 50, "round-10": 52, "round-2": 51}.items()
    }
    evaluation = Evaluation(models=models)
    printed = io.StringIO()
    Console(file=printed, width=100).print(score_table(evaluation))
    assert re.search(r"base +Toolformer +round 2 +round 10 +with a call", printed.getvalue())
    assert "the model of round 2 51, the model of round 10 52" in verdict(evaluation)


def test_the_summary_says_what_a_later_round_added(tmp_path: Path) -> None:
    folders = [tmp_path / name / "annotations" for name in ("first", "second")]
    annotation(folders[0], (call("Calculator", 10, 1.5),), ())
    annotation(folders[1], (call("Calculator", 10, 1.2),), (call("WikiSearch", 4, 3.0),))
    both = MergeConfig(
        annotations=tuple(folders), same_texts="unite", output=tmp_path / "second" / "augmented"
    )
    merged(folders[0])
    merge(both)
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(Evaluation(models={"toolformer": model(50)}).model_dump_json())
    printed = io.StringIO()
    later = [(folders[1], both.output)]
    Console(file=printed, width=200).print(
        summary(folders[0], tmp_path / "first" / "augmented", evaluation, later)
    )
    assert (
        "Round 2: the model of the round before writes 2 kept calls; C* of all rounds has 2 calls in 2 texts."
        in (printed.getvalue())
    )
