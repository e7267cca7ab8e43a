"""A small report, written by hand, for tests of the page."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

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

TOOLS = ("QA", "Calculator")
TAU_F = {"QA": 1.0, "Calculator": 0.5}
TEXTS = (
    "The nurse saw 18 of 40 patients, 45%.",
    "Olga leads the town 🏙 of Javale. She was born in <b>Jeton</b> in 1961.",
    "</script><script>window.wrong = true</script> & three of four are 75%.",
    "Two and two are 4, and that is all there is to be said about it.",
)
# Text, tool, position in characters, input, result, p_api, l_plus, l_empty, l_call, order.
CALLS: tuple[tuple[int, str, int, str, str, float, float, float, float | None, int], ...] = (
    (0, "QA", 0, "Who saw patients?", "the nurse", 0.31, 1.0, 2.0, 2.5, 2),
    (0, "Calculator", 33, "18 / 40", "0.45", 0.92, 1.0, 4.5, 3.5, 5),
    (1, "QA", 27, "Who leads Javale?", "Olga", 0.71, 0.5, 3.25, 3.0, 0),
    (1, "QA", 51, "Where was Olga born?", "Jeton", 0.12, 2.0, 2.25, None, 0),
    (2, "Calculator", 65, "3 / 4", "0.75", 0.88, 1.0, 2.0, 1.75, 3),
    (2, "QA", 65, "How many of four?", "three", 0.06, 1.0, 2.5, 2.25, 6),
    (3, "Calculator", 16, "2 + 2", "4", 0.55, 1.5, 2.0, 2.25, 1),
    (3, "QA", 20, "What is all?", "it", 0.07, 3.0, 1.5, None, 4),
)


def base64_of(values: NDArray[np.generic] | list[int] | list[float], kind: str) -> str:
    """A column of `ScoredCalls`."""
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode("ascii")


def gain(call: tuple[int, str, int, str, str, float, float, float, float | None, int]) -> float:
    """The gain of one of CALLS, in nats."""
    l_plus, l_empty, l_call = call[6:9]
    return (l_empty if l_call is None else min(l_empty, l_call)) - l_plus


def sample_report() -> Report:
    """A report with every section: a few calls of two tools, one of them in a text that looks like HTML."""
    return Report(
        title="demo",
        folder="runs/demo",
        created="2026-11-28T14:00:00+00:00",
        version="0.1.0",
        annotation=sample_annotation(),
        augmented=_augmented(),
        trainings=(_training("model"), _training("model-plain")),
        evaluation=_evaluation(),
        problems=("runs/demo/notes.txt: not an output of this project.",),
    )


def sample_calls(*, max_examples: int = 25_000, one_call_per_position: bool = False) -> ScoredCalls:
    """CALLS as columns."""
    return ScoredCalls(
        number=len(CALLS),
        text=base64_of([call[0] for call in CALLS], "<u4"),
        tool=base64_of([TOOLS.index(call[1]) for call in CALLS], "<u1"),
        position=base64_of([call[2] for call in CALLS], "<u4"),
        gain=base64_of([gain(call) for call in CALLS], "<f8"),
        order=base64_of([call[9] for call in CALLS], "<u4"),
        p_api=base64_of([call[5] for call in CALLS], "<f4"),
        is_bound=base64_of([int(call[8] is None) for call in CALLS], "<u1"),
        texts=len(TEXTS),
        sampled=1.0,
        max_examples=max_examples,
        one_call_per_position=one_call_per_position,
        seed="0",
    )


def sample_annotation() -> AnnotationSection:
    """The annotation of `sample_report`."""
    return AnnotationSection(
        folder="runs/demo/annotations",
        state="finished",
        facts=(Fact(name="model", value="demo/models/annotator"), Fact(name="seed", value="0")),
        texts_done=6,
        status={"annotated": 4, "no_calls": 1, "skipped": 1},
        tools=tuple(_funnel(tool) for tool in TOOLS),
        reasons=(
            Reason(
                stage="skipped",
                tool=None,
                reason="short passage",
                count=1,
                unit="texts",
                meaning="The passage has fewer characters than the limit.",
                advice="--corpus.min-characters sets the limit",
            ),
            Reason(
                stage="discarded draw",
                tool="QA",
                reason="wrong_tool",
                count=7,
                unit="draws",
                meaning="The model wrote the name of another tool, or none.",
                advice="",
            ),
            Reason(
                stage="no result",
                tool="Calculator",
                reason="not arithmetic",
                count=2,
                unit="calls",
                meaning="The input is not arithmetic.",
                advice="",
            ),
        ),
        losses=("1 text of 6 skipped (1 x short passage); --corpus.min-characters sets the limit",),
        calls=sample_calls(),
        texts=tuple(
            TextInContext(
                text_id=str(2**60 + number), text=text, source=f"pages.jsonl#{number + 1}", url=None
            )
            for number, text in enumerate(TEXTS)
        ),
        contexts=tuple(_context(call) for call in CALLS),
        placements=tuple(
            Placement(
                tool=tool,
                in_text=Histogram(edges=(0.0, 0.25, 0.5, 0.75, 1.0), counts=(1, 1, 0, 1)),
                places={"between words": 2, "inside a number": 1},
            )
            for tool in TOOLS
        ),
        costs=tuple(
            PhaseCost(
                tool=tool,
                phase=phase,
                tokens=1_100,
                padding=50,
                lower_bound_tokens=1_000,
                flops=None if tool is None else 5e9,
                lower_bound_flops=None if tool is None else 4e9,
            )
            for tool, phase in (("QA", "positions"), ("Calculator", "decode"), (None, "empty"))
        ),
        sessions=(
            Session(started="2026-11-28T13:00:00+00:00", wall_s=None),
            Session(started="2026-11-28T13:10:00+00:00", wall_s=61.5),
        ),
        flops_per_s=5.3e10,
        warnings=("rows/00.parquet: cannot be read as rows.",),
    )


def _funnel(tool: str) -> ToolFunnel:
    calls = [call for call in CALLS if call[1] == tool]
    kept = [call for call in calls if gain(call) >= TAU_F[tool]]
    numbers = {"selected": 5, "positions": 9, "draws": 45, "candidates": 12, "executed": 9}
    numbers |= {"scored": len(calls), "kept": len(kept)}
    units = {"selected": "texts", "positions": "positions", "draws": "draws"}
    return ToolFunnel(
        tool=tool,
        tau_s=0.05,
        k=5,
        m=5,
        tau_f=TAU_F[tool],
        stages=tuple(
            Stage.model_validate({"name": name, "unit": units.get(name, "calls"), "count": number})
            for name, number in numbers.items()
        ),
        scored=len(calls),
        kept=len(kept),
        texts_kept=len({call[0] for call in kept}),
        flops=5e9,
        gain_kept=sum(map(gain, kept)),
        largest_gain=max(map(gain, calls)),
        largest_gain_is_bound=False,
    )


def _context(
    call: tuple[int, str, int, str, str, float, float, float, float | None, int],
) -> CallInContext:
    text, tool, position, argument, result, p_api, l_plus, l_empty, l_call, _ = call
    return CallInContext(
        tool=tool,
        text=text,
        position=len(TEXTS[text][:position].encode("utf-16-le")) // 2,
        call=f" [{tool}({argument}) -> {result}]",
        input=argument,
        result=result,
        p_api=p_api,
        l_plus=l_plus,
        l_empty=l_empty,
        l_call=l_call,
        gain=gain(call),
        kept=gain(call) >= TAU_F[tool],
        chosen=("best", "random"),
    )


def _augmented() -> AugmentedSection:
    plain = TEXTS[0]
    return AugmentedSection(
        folder="runs/demo/augmented",
        facts=(Fact(name="seed", value="0"),),
        texts=4,
        calls=6,
        tools=tuple(
            MergedTool(
                tool=tool,
                tau_f=TAU_F[tool],
                candidates=3,
                examples=3,
                calls=3,
                at={"0.5": 3 if tool == "Calculator" else None, "1.0": 3, "2.0": 2},
                paper={"0.5": 51_987 if tool == "QA" else 3_680, "1.0": 18_526, "2.0": 5_135},
            )
            for tool in TOOLS
        ),
        losses=("QA: 1 text of 4 left out of its examples; --max-examples is 3",),
        examples=(
            MergedText(
                text=f"{plain[:32]} [Calculator(18 / 40) -> 0.45]{plain[32:]}",
                plain=plain,
                tools=("Calculator",),
            ),
        ),
    )


def _training(name: str) -> TrainingSection:
    return TrainingSection(
        name=name,
        folder=f"runs/demo/{name}",
        state="finished" if name == "model" else "unfinished",
        facts=(Fact(name="batch size", value="32"),),
        curves=(
            Curve(name="loss", steps=(1, 2, 3, 4), values=(4.0, 3.0, 2.5, 2.25)),
            Curve(name="held-out loss", steps=(2, 4), values=(3.25, 2.5)),
        ),
        best_step=4,
        losses=(),
    )


def _evaluation() -> EvaluationSection:
    base = Score(value=12.5, low=8.0, high=19.0, n=120, calls=0, p=None, paper=None)
    ours = Score(value=40.0, low=31.7, high=48.9, n=120, calls=97, p=0.0004, paper=None)
    rows = [
        EvaluationRow(
            label=label,
            model=f"runs/demo/{label}",
            scores={"sums": score},
            calls_by_tool={"sums": {"Calculator": score.calls}},
            failed_calls={},
            perplexity=11.5,
            losses=(),
        )
        for label, score in (("base", base), ("toolformer", ours))
    ]
    return EvaluationSection(
        file="runs/demo/evaluation.json",
        benchmarks=("sums",),
        rows=tuple(rows),
        paper=(PaperRow(label="GPT-J", scores={"sums": 5.0}),),
        compared_with="base",
        questions=(
            Question(
                benchmark="sums",
                label="toolformer",
                prompt="18 of 40 are",
                generated=" [Calculator(18 / 40) -> 0.45] 45%",
                answers=("45%",),
                right=True,
            ),
        ),
    )
