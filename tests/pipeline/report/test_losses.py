"""What the end of a command says: every loss with its number and an option, and else nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fixtures import small_run
from pipeline.augmentation.merge import MergeManifest, merge
from pipeline.base.config import AnnotateConfig, CorpusConfig, MergeConfig, MethodConfig, PlanConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.base.records import Annotation, Call, Document, Funnel, Status, Text
from pipeline.cli.arguments import ReportedArguments, ToolsArguments
from pipeline.cli.handlers import merge as merge_command
from pipeline.cli.handlers import plan as plan_command
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.evaluation.results import BenchmarkResult, ModelResult, PerplexityResult
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest
from pipeline.inference.call_parser import FailedCall
from pipeline.inference.generation import Generation
from pipeline.planning.estimate import plan
from pipeline.report import losses
from pipeline.storage.counts import Counts, count_rows
from pipeline.storage.manifest import AnnotationManifest, CorpusState
from tools_service.syntax.calls import insert_calls, remove_calls

pytestmark = pytest.mark.unit

NONE: Sequence[Funnel] = ()


def annotation(
    funnels: Sequence[Funnel] = NONE,
    gains: Sequence[tuple[str, float, bool]] = (),
    *,
    status: Status | None = None,
    reason: str | None = None,
    text: str = "A text.",
) -> Annotation:
    """A row; `gains` have for each scored call its tool, its gain and whether l_call was computed."""
    calls = tuple(
        Call(tool, 0, 0.1, "1+1", "2", 1.0, 1.0 + gain, 1.0 + gain if exact else None, gain)
        for tool, gain, exact in gains
    )
    status = status or ("annotated" if calls else "no_calls")
    return Annotation(Text(1, Document("f#1"), text), status, reason, calls, tuple(funnels))


def manifest(rows: Sequence[Annotation], **corpus: Any) -> AnnotationManifest:
    tools = {funnel.tool for row in rows for funnel in row.funnel} or {"QA"}
    method = MethodConfig(tools=tuple(sorted(tools)))
    return AnnotationManifest(
        state="finished",
        config=AnnotateConfig(method=method, corpus=CorpusConfig(**corpus)),
        versions={},
        corpus=CorpusState(files=1, bytes=1, digest=""),
        sessions=(),
        counts=count_rows([row.to_row() for row in rows], method),
    )


def sentences(rows: Sequence[Annotation], **corpus: Any) -> list[str]:
    return list(losses.annotation_losses(manifest(rows, **corpus)))


def skipped(reason: str) -> Annotation:
    return annotation(status="skipped", reason=reason)


GOOD = annotation([Funnel("QA", "every text", 1, 5, 1, 1, 1)], [("QA", 1.5, True)])
"""A row with a kept call: nothing is lost."""
DAMAGED = "damaged file: gzip stream ends too early; nothing after line 6 can be read at b/{}.jsonl.gz#7"


def tried(tool: str, **stages: Any) -> Funnel:
    return Funnel(tool, "every text", **stages)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # Files and texts
        ([GOOD, skipped(DAMAGED.format(1))], ["1 file was not read to the end", "b/1.jsonl.gz"]),
        (
            [GOOD, *(skipped(DAMAGED.format(n)) for n in (1, 2))],
            ["2 files were not", "b/1.jsonl.gz, b/2.jsonl"],
        ),
        ([GOOD, *(skipped(DAMAGED.format(n)) for n in range(9))], ["9 files were not", "b/4.jsonl.gz, …"]),
        ([GOOD, skipped("short passage: 3 at f#1")], ["1 text of 2 skipped", "--corpus.min-characters"]),
        ([GOOD, skipped("long word: 9,000 at f#1")], ["1 x long word", "--corpus.max-tokens"]),
        ([GOOD, skipped("no text field: looked for text at f#1")], ["--corpus.text-field"]),
        ([GOOD, skipped("document too long: 9 at f#1")], ["--corpus.max-document-characters"]),
        ([GOOD, skipped("call syntax: at f#1")], ["1 x call syntax"]),
        ([GOOD, skipped("not JSON: at f#1"), skipped("not UTF-8: at f#1")], ["2 texts of 3 skipped"]),
        ([GOOD, annotation(status="failed", reason="E: x")], ["1 text failed (1 x E)", "--retry-failed"]),
        ([skipped("not JSON: at f#1")], ["Nothing could be annotated: every text was skipped or failed"]),
        # Texts with call syntax
        (
            [GOOD, annotation(text="It is [QA(x) -> y] so.")],
            ["1 text with call syntax", "--corpus.skip-call-"],
        ),
        # Tools that were tried on nothing
        (
            [annotation([Funnel("Calendar", "no: no URL")])],
            ["Calendar was tried on no text: no URL (1 of 1)", "--corpus.url-field", "no tool was tried"],
        ),
        (
            [GOOD, annotation([Funnel("Calendar", "no: no date in the URL")])],
            ["whole date, like /2023/01/30/"],
        ),
        ([GOOD, annotation([Funnel("MT", "no: not within English")])], ["MT was tried on no text"]),
        ([GOOD, annotation([Funnel("MT", "no: no chunk in another language")])], ["or leave MT out of"]),
        ([GOOD, annotation([Funnel("Calculator", "no: fewer than three numbers")])], ["with arithmetic"]),
        (
            [GOOD, annotation([Funnel("Calculator", "no: numbers without a sign of arithmetic")])],
            ["--method.calculator.select.random-share"],
        ),
        (
            [annotation([Funnel("QA", "no: context: the text has 500 tokens")])],
            ["QA was tried on no text: context (1 of 1)", "--corpus.max-tokens", "--method.prompts"],
        ),
        ([GOOD, annotation([Funnel("QA", "no: context: 9")])], ["QA was not tried on 1 text of 2: no room"]),
        # Tools that kept nothing
        (
            [
                annotation(
                    [tried("QA", positions=1, draws=5, candidates=1, executed=1, scored=1)],
                    [("QA", 0.62, True)],
                )
            ],
            ["QA: no call kept; tau_f is 1, and the largest gain is 0.62 nats", "--method.qa.tau-f 0.62"],
        ),
        (
            [annotation([tried("QA", scored=2)], [("QA", 0.5, True), ("QA", 0.7, False)])],
            ["no gain is above 0.7 nats (an upper bound)", "--method.qa.tau-f below that"],
        ),
        ([annotation([tried("QA", scored=1)], [("QA", -0.2, True)])], ["no gain is above -0.2 nats"]),
        (
            [annotation([tried("QA")])],
            ["no position has p(<API>) above tau_s = 0.05; lower --method.qa.tau-s"],
        ),
        (
            [annotation([tried("QA", positions=1, draws=5, discarded={"too_long": 4, "newline": 1})])],
            ["QA: no call kept; no draw is a call (4 x too_long, 1 x newline)", "Nothing could be annotated"],
        ),
        (
            [annotation([tried("QA", positions=1, draws=5, discarded={"wrong_tool": 5})])],
            ["(5 x wrong_tool); --method.qa.given-name draws after the name of the tool"],
        ),
        (
            [annotation([tried("QA", positions=1, candidates=2, discarded={"tool: no answer": 2})])],
            ["no call has a result (2 x tool: no answer)"],
        ),
        (
            [annotation([tried("QA", positions=1, candidates=2, executed=2, discarded={"context": 2})])],
            ["no call with a result could be scored (2 x context)"],
        ),
        (
            [GOOD, annotation([tried("QA", discarded={"tool: deadline": 3, "tool: no answer": 2})])],
            ["QA: 3 calls lost because the tool failed (3 x deadline)"],
        ),
    ],
)
def test_every_loss_is_said(rows: list[Annotation], said: list[str]) -> None:
    text = "\n".join(sentences(rows))
    for part in said:
        assert part in text


def test_a_run_that_lost_nothing_says_nothing() -> None:
    assert sentences([GOOD, GOOD]) == []
    assert sentences([GOOD, annotation(text="x[QA(1)] and [Note(2)]")]) == []
    assert sentences([GOOD, annotation(text="[QA(x)]")], skip_call_syntax=True) == []


def test_what_the_listing_left_out_is_said_first() -> None:
    left_out = manifest([GOOD]).model_copy(update={"left_out": ("1 link leads nowhere: a.jsonl",)})
    assert list(losses.annotation_losses(left_out)) == ["1 link leads nowhere: a.jsonl"]


def test_manifests_of_earlier_versions_are_read() -> None:
    """They have neither the largest gain nor the other new counts."""
    old = manifest([annotation([tried("QA", scored=1)], [("QA", 0.5, True)])])
    new = {"call_syntax", "damaged_files", "left_out"}
    data = json.loads(old.model_dump_json(exclude={"left_out"}))
    data["counts"] = {name: value for name, value in data["counts"].items() if name not in new}
    for sums in data["counts"]["tools"].values():
        for name in ("largest_gain", "largest_gain_is_bound", "positions_not_scorable"):
            del sums[name]
    read = AnnotationManifest.model_validate(data)
    assert list(losses.annotation_losses(read)) == ["QA: no call kept; none reaches tau_f = 1"]


@given(st.floats(1e-9, 1e6))
def test_a_threshold_that_is_suggested_keeps_the_call(gain: float) -> None:
    assert 0 < float(losses._floor(gain)) <= gain


def world(folder: Path, pages: list[dict[str, str]], **corpus: Any) -> AnnotateConfig:
    small_run.save_model(folder / "model")
    small_run.write_prompts(folder / "prompts")
    (folder / "pages").mkdir()
    (folder / "pages" / "0.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    return small_run.config(folder, folder / "annotations")


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([small_run.page(n) for n in range(6)], []),
        (
            [{"text": small_run.page(n)["text"]} for n in range(6)],
            ["Calendar was tried on no text", "no URL"],
        ),
        (
            [{"text": "No numbers are here, at all."}] * 3,
            ["Calculator was tried on", "Nothing c", "annotated"],
        ),
        ([{"text": "12345"}] * 3, ["3 texts of 3", "3 x short passage", "Nothing c"]),
        ([{"body": "x"}, {"text": small_run.page(1)["text"]}], ["1 x no text field"]),
        ([small_run.page(0), {"text": "Then [QA(who?) -> she] said 1 + 1 = 2."}], ["1 text", "call syntax"]),
    ],
)
def test_plan_says_before_what_annotate_says_after(
    pages: list[dict[str, str]], said: list[str], tmp_path: Path
) -> None:
    config = world(tmp_path, pages)
    planned = plan(PlanConfig(**{**dict(config), "output": tmp_path / "plan.json"}))
    before = "\n".join(losses.plan_losses(planned))
    after = "\n".join(losses.annotation_losses(small_run.finished(tmp_path, tmp_path / "annotations")))
    for part in said:
        assert part in before
        assert part in after
    if not said:
        assert before == ""


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    world(tmp_path, [small_run.page(n) for n in range(3)])
    whole = gzip.compress("".join(json.dumps(small_run.page(n)) + "\n" for n in range(3000)).encode())
    (tmp_path / "pages" / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 40])
    finished = small_run.finished(tmp_path, tmp_path / "annotations")
    [line] = [line for line in losses.annotation_losses(finished) if "not read" in line]
    assert "1 file was not read to the end" in line
    assert "pages/cut.jsonl.gz" in line


SUM = "Sold 2 rolls on Monday and 3 on Tuesday, 5 in both days."
OWN = [
    "[QA(a) -> b] ",
    "So [Calculator(2 + 3) -> 5] ",
    "([MT(x)]) ",
    "open [Calculator(2 + ",
    "[Calendar()]\n",
]


@pytest.mark.parametrize("skip", [False, True])
def test_texts_with_call_syntax_of_their_own_are_counted_or_skipped(skip: bool, tmp_path: Path) -> None:
    pages = [{"text": f"{own}{SUM} {own}{SUM}", "url": "https://a.org/2019/03/05/"} for own in OWN]
    config = world(tmp_path, [*pages, {"text": SUM}])
    texts = CorpusConfig(**{**dict(config.corpus), "skip_call_syntax": skip})
    read = list(read_corpus(list_files(texts), texts, lambda text: len(text.split())))
    skipped_texts = [text.skipped for text in read if text.skipped]
    assert len(skipped_texts) == (len(OWN) if skip else 0)
    assert all(reason.startswith("call syntax: ") for reason in skipped_texts)
    rows = [a.to_row() for a in small_run.local_annotator(tmp_path / "prompts").annotate(read)]
    counts = count_rows(rows, small_run.method(tmp_path / "prompts"))
    assert counts.call_syntax == (0 if skip else len(OWN))
    assert counts.reasons == ({"skipped": {"call syntax": len(OWN)}} if skip else {})
    # Every scored call can be inserted beside, or within, the text's own, and removed again.
    for row in rows:
        calls = [Call(**call) for call in row["calls"]]
        assert calls or row["status"] == "skipped" or not row["document"]["url"]
        for chosen in [calls, *([call] for call in calls)]:
            assert remove_calls(insert_calls(row["text"], chosen), chosen) == row["text"]


def merged(folder: Path, **options: Any) -> MergeManifest:
    return merge(MergeConfig(annotations=(folder / "annotations",), output=folder / "augmented", **options))


def test_merge_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world(tmp_path, [small_run.page(n) for n in range(40)])
    counts = small_run.finished(tmp_path, tmp_path / "annotations").counts
    assert counts is not None
    largest, tool = max((sums.largest_gain or 0.0, tool) for tool, sums in counts.tools.items())
    assert largest > 0
    assert not [line for line in losses.merge_losses(merged(tmp_path)) if line.startswith(tool)]
    cap = "\n".join(losses.merge_losses(merged(tmp_path, max_examples=1)))
    assert "left out of its examples; --max-examples is 1" in cap

    none: dict[str, float] = {"Calculator": 1e6, "Calendar": 1e6}
    config = MergeConfig(annotations=(tmp_path / "annotations",), output=tmp_path / "augmented", tau_f=none)
    merge_command(ReportedArguments(config=config, report=False))
    printed = capsys.readouterr().out
    assert f"! {tool}: no call reaches tau_f = 1e+06, and the largest gain is {largest:.6g}" in printed
    assert "! C* is empty" in printed
    # The suggested threshold keeps a call.
    suggested = float(printed.split(f"--tau-f {tool} ")[1].split()[0])
    again = merged(tmp_path, tau_f={**none, tool: suggested})
    assert again.tools[tool].calls > 0


def test_plan_prints_its_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = world(tmp_path, [{"text": "No numbers are here, at all."}])
    plan_command(ToolsArguments(config=PlanConfig(**{**dict(config), "output": tmp_path / "plan.json"})))
    assert "! Nothing can be annotated" in capsys.readouterr().out


def test_finetune_says_which_texts_it_did_not_see() -> None:
    config = FinetuneConfig(sequence_length=64, max_steps=10, batch_size=8, workers=1, micro_batch_size=8)
    texts = {"trained_on": 100, "held_out": 5, "equal_to_held_out": 3, "truncated": 1}
    finished = FinetuneManifest.model_construct(config=config, texts=texts)
    said = list(losses.finetune_losses(finished))
    assert said[0].startswith("1 text cut at 64 tokens; --sequence-length")
    assert said[1].startswith("3 texts not trained on")
    assert said[2].startswith("20 texts of 100 not trained on: --max-steps is 10")
    complete = {**texts, "trained_on": 80, "equal_to_held_out": 0, "truncated": 0}
    assert list(losses.finetune_losses(finished.model_copy(update={"texts": complete}))) == []


def test_evaluate_says_what_failed() -> None:
    benchmark = BenchmarkResult(
        accuracy=0.5, n=2, calls=0, calls_by_tool={}, failed_calls={"deadline": 2, "newline": 1}
    )
    held_out = PerplexityResult(texts=3, tokens=9, left_out=0, skipped=4)
    result = ModelResult(
        model="m",
        k=10,
        disabled=False,
        tools_off=("MT", "QA"),
        benchmarks={"b": benchmark},
        held_out=held_out,
    )
    generation = EvaluateConfig().generation.model_copy(update={"tools_off": ("MT",)})
    text = "\n".join(losses.evaluation_losses(result, EvaluateConfig(generation=generation)))
    assert "QA switched off: not available" in text
    assert "b: 3 calls failed (2 x deadline, 1 x newline)" in text
    assert "no question got a call; --generation.k is 10" in text
    assert "4 passages of the held-out files were skipped" in text
    odd = {"not_asked": {"context": 2, "empty": 1}, "answers_left_out": 5, "without_answer": 1}
    text = "\n".join(
        losses.evaluation_losses(
            result.model_copy(update={"benchmarks": {"b": benchmark.model_copy(update=odd)}}),
            EvaluateConfig(generation=generation),
        )
    )
    assert "questions could not be asked, so wrong (2 x context, 1 x empty)" in text
    assert "b: 5 answers that the scoring can never meet are left out; 1 questions have no other" in text
    alone = result.model_copy(update={"compared_with": "plain"})
    text = "\n".join(losses.evaluation_losses(alone, EvaluateConfig(generation=generation)))
    assert "b: not compared with plain, which has no answers to these questions" in text
    good = benchmark.model_copy(update={"calls": 1, "failed_calls": {}})
    fine = result.model_copy(update={"benchmarks": {"b": good}, "held_out": None, "tools_off": ("MT",)})
    assert list(losses.evaluation_losses(fine, EvaluateConfig(generation=generation))) == []


def test_generate_says_what_failed() -> None:
    good = Generation("text", (), (), "length", 4)
    failed = Generation("text", (), (FailedCall("QA(x)", "deadline"),), "context", 4)
    assert list(losses.generation_losses([good])) == []
    assert list(losses.generation_losses([good, failed])) == [
        "1 call failed (1 x deadline)",
        "1 of 2 continuations ended where the model's context is full",
    ]


def test_counts_add_up_whatever_the_order_of_the_rows() -> None:
    rows = [
        annotation([tried("QA", scored=1)], [("QA", gain, exact)])
        for gain, exact in ((0.1, True), (0.7, False), (0.7, True), (0.3, False))
    ]

    def counted(order: Sequence[Annotation]) -> Counts:
        counts = manifest(order).counts
        assert counts is not None
        return counts

    assert counted(rows) == counted(rows[::-1])
    assert counted(rows).tools["QA"].largest_gain == 0.7
    assert not counted(rows).tools["QA"].largest_gain_is_bound
