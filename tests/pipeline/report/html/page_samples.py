"""Invented annotations and the report about them, of any size, for tests of the page."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.base.config import MergeConfig
from pipeline.base.records import ANNOTATION_SCHEMA
from pipeline.report.html.data import (
    AnnotationSection,
    AugmentedSection,
    CallInContext,
    Curve,
    EvaluationRow,
    EvaluationSection,
    Fact,
    Histogram,
    MergedText,
    MergedTool,
    PaperRow,
    PhaseCost,
    Placement,
    Question,
    Reason,
    Report,
    Score,
    ScoredCalls,
    Session,
    Stage,
    TextInContext,
    ToolFunnel,
    TrainingSection,
)
from pipeline.report.html.scored_calls import CallSample, mergeable_calls

TOOLS = ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
TAU_F = {"QA": 1.0, "WikiSearch": 1.0, "Calculator": 0.5, "Calendar": 1.0, "MT": 0.5}
WORDS = [
    "the",
    "bridge",
    "of",
    "Lowick",
    "was",
    "opened",
    "in",
    "1874",
    "and",
    "is",
    "310",
    "metres",
    "long;",
    "Olga",
    "packs",
    "770",
    "cards",
    "into",
]
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> </script> <!-- -->"
    " \u2028 line \u2029 \u202egnirts desrever\u202c \u0000 &amp; ${x} 🎉 ]]> $& $' /*data*/"
)
BROKEN = HOSTILE + "\ud83d"  # half a character, which Arrow cannot hold and a file's name can


def sample_rows(texts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Annotation rows with about four scored calls a text; several tools may share a position."""
    draw = random.Random(seed)
    rows = []
    for _number in range(texts):
        words = draw.choices(WORDS, k=draw.randint(12, 60))
        text = " ".join(words)
        starts = [0]
        for word in words[:-1]:
            starts.append(starts[-1] + len(word) + 1)
        places = draw.sample(starts, k=3)
        calls = [_sample_call(draw, draw.choice(places)) for _ in range(draw.randint(2, 6))]
        rows.append({"text_id": draw.randrange(-(2**62), 2**62), "text": text, "calls": calls})
    return rows


def _sample_call(draw: random.Random, position: int) -> dict[str, Any]:
    tool = draw.choice(TOOLS)
    l_plus = abs(draw.gauss(1.5, 0.8))
    gain = draw.choice([draw.gauss(0.1, 0.5), draw.gauss(1.5, 0.9)])
    bounded = gain < TAU_F[tool] and draw.random() < 0.5
    return {
        "tool": tool,
        "position": position,
        "p_api": draw.choice([10 ** draw.uniform(-6, -1), draw.uniform(0.5, 1)]),
        "input": f"{draw.randint(1, 99)} + {draw.randint(1, 99)}",
        "result": str(draw.randint(2, 198)),
        "l_plus": l_plus,
        "l_empty": l_plus + gain,
        "l_call": None if bounded else l_plus + gain + abs(draw.gauss(0, 0.3)),
        "gain": gain,
        "p_name": None,
    }


def scored_calls(
    rows: Sequence[dict[str, Any]],
    *,
    max_examples: int = 25_000,
    one_call_per_position: bool = True,
    seed: int = 0,
) -> ScoredCalls:
    """The columns of the calls that merge keeps at some threshold."""
    merge = MergeConfig(max_examples=max_examples, one_call_per_position=one_call_per_position, seed=seed)
    sample = CallSample()
    columns = {"text_id": pa.int64(), "text": pa.string(), "calls": ANNOTATION_SCHEMA.field("calls").type}
    batch = pa.RecordBatch.from_pylist(list(rows), pa.schema(columns))
    sample.add(mergeable_calls(batch, TOOLS, ()))
    return sample.scored_calls(TOOLS, merge)


def annotation(rows: Sequence[dict[str, Any]], *, shown: int = 300, **merging: Any) -> AnnotationSection:
    """The section about `rows`, of which the first `shown` calls can be read."""
    contexts = [
        CallInContext(
            tool=call["tool"],
            text=number,
            position=len(row["text"][: call["position"]].encode("utf-16-le")) // 2,
            call=f" [{call['tool']}({call['input']}) → {call['result']}]",
            input=call["input"],
            result=call["result"],
            p_api=call["p_api"],
            l_plus=call["l_plus"],
            l_empty=call["l_empty"],
            l_call=call["l_call"],
            gain=call["gain"],
            kept=call["gain"] >= TAU_F[call["tool"]],
            chosen=(("best", "worst", "near", "random")[place % 4],),
        )
        for number, row in enumerate(rows)
        for place, call in enumerate(row["calls"])
    ][:shown]
    last = max((call.text for call in contexts), default=-1)
    return AnnotationSection(
        folder="runs/sample/annotations",
        state="finished",
        facts=(Fact(name="model", value="demo/models/annotator"), Fact(name="texts", value=f"{len(rows):,}")),
        texts_done=len(rows),
        status={"annotated": len(rows) - 5, "no_calls": 4, "skipped": 1},
        tools=tuple(_funnel(rows, tool) for tool in TOOLS),
        reasons=_REASONS,
        losses=("1 of the texts was skipped: longer than the model's context.",),
        calls=scored_calls(rows, **merging),
        texts=tuple(
            TextInContext(
                text_id=str(row["text_id"]), text=row["text"], source=f"pages.json.gz#{number}", url=None
            )
            for number, row in enumerate(rows[: last + 1])
        ),
        contexts=tuple(contexts),
        placements=tuple(
            Placement(
                tool=tool,
                in_text=Histogram(
                    edges=tuple(edge / 10 for edge in range(11)), counts=tuple(90 - 8 * i for i in range(10))
                ),
                places={"between words": 420, "inside a word": 12, "inside a number": 3, "at the start": 40},
            )
            for tool in TOOLS
        ),
        costs=tuple(
            PhaseCost(
                tool=tool,
                phase=phase,
                tokens=12_000 * (place + 1),
                padding=400,
                lower_bound_tokens=11_000 * (place + 1),
                flops=3e11 * (place + 1),
                lower_bound_flops=2.6e11 * (place + 1),
            )
            for tool in TOOLS
            for place, phase in enumerate(("positions", "decode", "plus", "call"))
        ),
        sessions=(
            Session(started="2026-11-28T13:30:00+00:00", wall_s=None),
            Session(started="2026-11-28T13:58:54+00:00", wall_s=200.6),
        ),
        flops_per_s=6.1e10,
    )


def _funnel(rows: Sequence[dict[str, Any]], tool: str) -> ToolFunnel:
    gains = [call["gain"] for row in rows for call in row["calls"] if call["tool"] == tool]
    kept = [gain for gain in gains if gain >= TAU_F[tool]]
    stages = (
        Stage(name="selected", unit="texts", count=len(rows)),
        Stage(name="positions", unit="positions", count=2 * len(gains)),
        Stage(name="draws", unit="draws", count=10 * len(gains)),
        Stage(name="candidates", unit="calls", count=3 * len(gains)),
        Stage(name="executed", unit="calls", count=len(gains) + 3),
        Stage(name="scored", unit="calls", count=len(gains)),
        Stage(name="kept", unit="calls", count=len(kept)),
    )
    texts_kept = sum(
        any(call["tool"] == tool and call["gain"] >= TAU_F[tool] for call in row["calls"]) for row in rows
    )
    return ToolFunnel(
        tool=tool,
        tau_s=0.05,
        k=5,
        m=5,
        tau_f=TAU_F[tool],
        stages=stages,
        scored=len(gains),
        kept=len(kept),
        texts_kept=texts_kept,
        flops=3e12,
        gain_kept=sum(kept),
        largest_gain=max(gains, default=None),
        largest_gain_is_bound=False,
    )


_REASONS = (
    Reason(
        stage="discarded draw",
        tool="Calculator",
        reason="no_end",
        count=1_204,
        unit="draws",
        meaning="The model did not close the call within max_call_tokens.",
        advice="Raise --method.calculator.max-call-tokens, or shorten the examples of the prompt.",
    ),
    Reason(
        stage="no result",
        tool="Calculator",
        reason="tool: not arithmetic",
        count=311,
        unit="calls",
        meaning="The input is no arithmetic expression.",
        advice="Nothing is wrong: the model wrote words where numbers belong.",
    ),
    Reason(
        stage="skipped",
        tool=None,
        reason="too long",
        count=1,
        unit="texts",
        meaning="The text is longer than the model's context.",
        advice="Lower --corpus.max-tokens.",
    ),
)


def augmented(texts: int = 12) -> AugmentedSection:
    """C* with a few texts to read."""
    plain = "Olga packs 770 cards into 14 rows. Each gets 55 cards."
    call = " [Calculator(770 / 14) → 55.00]"
    examples = [MergedText(text=plain[:44] + call + plain[44:], plain=plain, tools=("Calculator",))] * texts
    return AugmentedSection(
        folder="runs/sample/augmented",
        facts=(Fact(name="max_examples", value="25000"),),
        texts=1_532,
        calls=2_204,
        tools=tuple(
            MergedTool(
                tool=tool,
                tau_f=TAU_F[tool],
                candidates=500,
                examples=420,
                calls=441,
                at={"0.5": None, "1.0": 420, "2.0": 130},
                paper={"0.5": 51_987, "1.0": 18_526, "2.0": 5_135},
            )
            for tool in TOOLS
        ),
        losses=(),
        examples=tuple(examples),
    )


def training(name: str, level: float) -> TrainingSection:
    """A run of finetune whose loss falls from `level`."""
    steps = tuple(range(1, 201))
    held_out = tuple(range(0, 201, 20))
    loss = tuple(level * (0.4 + 0.6 * 0.985**step) for step in steps)
    return TrainingSection(
        name=name,
        folder=f"runs/sample/{name}",
        state="finished",
        facts=(Fact(name="learning_rate", value="1e-05"),),
        curves=(
            Curve(name="loss", steps=steps, values=loss),
            Curve(
                name="held-out loss",
                steps=held_out,
                values=tuple(1 + level * 0.985**step for step in held_out),
            ),
            Curve(
                name="perplexity", steps=held_out, values=tuple(2 + level * 0.985**step for step in held_out)
            ),
            Curve(name="learning rate", steps=steps, values=tuple(1e-5 for _ in steps)),
            Curve(name="gradient norm", steps=steps, values=tuple(1 / step for step in steps)),
            Curve(name="tokens per second", steps=steps, values=tuple(9e4 + step for step in steps)),
            Curve(name="FLOP utilisation", steps=steps, values=tuple(0.4 + step / 1e4 for step in steps)),
            Curve(name="another number", steps=held_out, values=tuple(9 - step / 99 for step in held_out)),
            Curve(name="calls: QA", steps=held_out, values=tuple(step / 20 for step in held_out)),
            Curve(name="calls: MT", steps=held_out, values=tuple(step / 40 for step in held_out)),
        ),
        best_step=180,
        losses=(),
    )


def evaluation() -> EvaluationSection:
    """Four models on two benchmarks."""
    benchmarks = ("asdiv", "trex")
    rows = tuple(
        EvaluationRow(
            label=label,
            model=f"runs/sample/{label}",
            scores={
                name: Score(
                    value=value,
                    low=value - 4,
                    high=value + 5,
                    n=100,
                    calls=int(value),
                    p=None if label == "base" else 0.004,
                    paper=value + 7 if name == "asdiv" else None,
                )
                for name in benchmarks
            },
            calls_by_tool={"asdiv": {"Calculator": 12}},
            failed_calls={"no_arrow": 3},
            perplexity=5.21,
            losses=(),
        )
        for label, value in (("base", 8.0), ("plain", 11.0), ("disabled", 14.0), ("toolformer", 41.0))
    )
    return EvaluationSection(
        file="runs/sample/evaluation.json",
        benchmarks=benchmarks,
        rows=rows,
        paper=(PaperRow(label="GPT-J", scores={"asdiv": 7.5, "trex": 31.9}),),
        compared_with="base",
        questions=tuple(
            Question(
                benchmark="asdiv",
                label="toolformer",
                prompt=f"Olga packs {number} cards into 7 rows. How many cards are in a row?",
                generated=f" [Calculator({number} / 7) → {number / 7:.2f}] {number / 7:.2f}.",
                answers=(f"{number / 7:.2f}",),
                right=number % 3 > 0,
            )
            for number in range(70, 100)
        ),
    )


def sample_report(rows: Sequence[dict[str, Any]], **options: Any) -> Report:
    """A report with every section."""
    return Report(
        title="A sample run",
        folder="runs/sample",
        created="2026-11-28T14:10:00+00:00",
        version="0.1.0",
        annotation=annotation(rows, **options),
        augmented=augmented(),
        trainings=(training("model", 3.0), training("model-plain", 3.4)),
        evaluation=evaluation(),
    )
