"""Scored calls as columns: counting with them is counting what `merge` keeps, at any threshold."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.augmentation.merge import MergeManifest, merge
from pipeline.base.config import MergeConfig, MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call
from pipeline.report.html.annotation_section import annotation_section
from pipeline.report.html.data import ScoredCalls
from pipeline.report.html.scored_calls import CallSample, mergeable_calls
from tests.pipeline.augmentation.test_merge import annotated, annotations
from tests.pipeline.report.html.samples import CALLS, TAU_F, TOOLS, gain, sample_calls
from tools_service.contract.declarations import in_order
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

KINDS = {"text": "<u4", "tool": "<u1", "position": "<u4", "gain": "<f8", "order": "<u4", "is_bound": "<u1"}
WORDS = "one uno two dos one uno three"


def column(calls: ScoredCalls, name: str) -> NDArray[np.generic]:
    return np.frombuffer(base64.b64decode(getattr(calls, name)), KINDS[name])


@dataclass(frozen=True)
class Kept:
    """What a merge keeps."""

    texts: int
    calls: int
    candidates: dict[str, int]
    examples: dict[str, int]
    calls_by_tool: dict[str, int]


def count(calls: ScoredCalls, tools: tuple[str, ...], tau_f: Mapping[str, float]) -> Kept:
    """The rules of `ScoredCalls` in plain Python, as the page counts in JavaScript."""
    names = ("text", "tool", "position", "gain", "order")
    rows = zip(*(column(calls, name).tolist() for name in names), strict=True)
    kept = [row for row in rows if row[3] >= tau_f[tools[row[1]]]]
    orders: dict[int, set[int]] = {tool: set() for tool in range(len(tools))}
    for _, tool, _, _, order in kept:
        orders[tool].add(order)
    admitted = {tool: set(sorted(found)[: calls.max_examples]) for tool, found in orders.items()}
    kept = [row for row in kept if row[4] in admitted[row[1]]]
    if calls.one_call_per_position:
        lowest: dict[tuple[int, int], int] = {}
        for text, _, position, _, order in kept:
            lowest[text, position] = min(order, lowest.get((text, position), order))
        kept = [row for row in kept if row[4] == lowest[row[0], row[2]]]
    calls_by_tool = Counter(tools[row[1]] for row in kept)
    examples = Counter(tools[tool] for _, tool in {row[:2] for row in kept})
    return Kept(
        texts=len({row[0] for row in kept}),
        calls=len(kept),
        candidates={tool: len(orders[number]) for number, tool in enumerate(tools)},
        examples={tool: examples[tool] for tool in tools},
        calls_by_tool={tool: calls_by_tool[tool] for tool in tools},
    )


def kept_by(manifest: MergeManifest, tools: tuple[str, ...]) -> Kept:
    return Kept(
        texts=manifest.texts,
        calls=manifest.calls,
        candidates={tool: manifest.tools[tool].candidates for tool in tools},
        examples={tool: manifest.tools[tool].examples for tool in tools},
        calls_by_tool={tool: manifest.tools[tool].calls for tool in tools},
    )


def random_annotation(text_id: int, tools: list[str], floor: float, rng: random.Random) -> Annotation:
    """Several calls of several tools at three positions, with few different gains."""
    calls: dict[tuple[str, int, str], Call] = {}
    for _ in range(rng.randrange(9)):
        tool, position = rng.choice(tools), rng.choice([0, 4, 8])
        argument = rng.choice(["one", "uno", "dos", "four"])
        value = rng.choice([-1.0, 0.25, 0.5, 0.7, 0.75, 1.0, 1.1, 1.5, 2.0, 3.0])
        l_call = None if value < floor else 2.0 + value
        calls[tool, position, argument] = Call(tool, position, 0.25, argument, "r", 1.0, 9.0, l_call, value)
    return annotated(text_id, WORDS, *calls.values())


METHOD = MethodConfig(
    tools=("MT", "Calculator", "WikiSearch", "QA"),
    **{name: ToolMethod(tau_f=0.5) for name in ("mt", "calculator", "qa", "wikisearch")},
)


@pytest.mark.parametrize("number", range(6))
def test_counting_with_the_columns_is_counting_what_merge_keeps(tmp_path: Path, number: int) -> None:
    """Ties, duplicates, the rule on inputs, caps, shared positions; ten thresholds, and one for each tool."""
    rng = random.Random(number)
    rule = number % 3 == 0
    method = METHOD.with_section("MT", ToolMethod(tau_f=0.5, drop_input_only_after=rule))
    tools = tuple(in_order(method.tools))
    found = [random_annotation(rng.getrandbits(63), list(tools), 0.5, rng) for _ in range(60)]
    source = annotations(tmp_path / "annotations", found, method=method)
    settings = MergeConfig(
        annotations=(source,),
        output=tmp_path / "augmented",
        max_examples=[25_000, 20, 3][number % 3],
        one_call_per_position=number % 2 == 1,
        seed=number,
    )
    calls = annotation_section(source, settings).calls
    assert calls.sampled == 1
    limits = [0.5, 0.6, 0.7, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 5.0]
    thresholds = [dict.fromkeys(tools, limit) for limit in limits]
    thresholds += [{tool: rng.choice(limits) for tool in tools} for _ in range(3)]
    different = set()
    for tau_f in thresholds:
        manifest = merge(settings.model_copy(update={"tau_f": tau_f}))
        assert count(calls, tools, tau_f) == kept_by(manifest, tools), tau_f
        different.add(manifest.calls)
    assert len(different) > 4


def test_without_a_merge_its_default_settings_hold(tmp_path: Path) -> None:
    rng = random.Random(7)
    found = [random_annotation(n, list(METHOD.tools), 0.5, rng) for n in range(1, 30)]
    source = annotations(tmp_path / "annotations", found, method=METHOD)
    tools = tuple(in_order(METHOD.tools))
    manifest = merge(MergeConfig(annotations=(source,), output=tmp_path / "augmented"))
    assert count(annotation_section(source).calls, tools, dict.fromkeys(tools, 0.5)) == kept_by(
        manifest, tools
    )


def batch(found: list[Annotation]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([one.to_row() for one in found], schema=ANNOTATION_SCHEMA)


def test_of_calls_of_one_tool_at_one_position_the_one_that_merge_prefers_stays() -> None:
    def call(argument: str, value: float, l_call: float | None = 9.0) -> Call:
        return Call("QA", 4, 0.25, argument, "r", 1.0, 2.0, l_call, value)

    rows = batch(
        [
            annotated(5, "some words", call("b", 1.0), call("a", 1.0, None), call("c", 0.5)),
            annotated(3, "no calls"),
            annotated(4, "other words", call("é", 1.0, None), call("z", 1.0)),
        ]
    )
    calls = mergeable_calls(rows, ["WikiSearch", "QA"], ())
    assert calls.text_id.tolist() == [5, 4]
    assert calls.row.tolist() == [0, 2]
    assert calls.tool.tolist() == [1, 1]
    assert calls.is_bound.tolist() == [True, False]  # the inputs "a" and "z"
    assert calls.call.tolist() == [1, 4]


def test_rows_without_calls_are_columns_without_values() -> None:
    sample = CallSample()
    sample.add(mergeable_calls(batch([annotated(1, "no calls")]), ["QA"], ["QA"]))
    calls = sample.scored_calls(["QA"], MergeConfig())
    assert (calls.number, calls.texts, calls.sampled, calls.gain) == (0, 0, 1.0, "")


@pytest.mark.parametrize("limit", [1, 40, 120])
def test_a_sample_has_whole_texts_whatever_the_order_of_the_rows(limit: int) -> None:
    rng = random.Random(3)
    tools = in_order(METHOD.tools)
    found = [random_annotation(rng.getrandbits(63), tools, 0.5, rng) for _ in range(200)]
    batches = [mergeable_calls(batch(found[start : start + 10]), tools, ()) for start in range(0, 200, 10)]
    samples = []
    for order in (batches, batches[::-1]):
        sample = CallSample(limit)
        for calls in order:
            sample.add(calls)
        samples.append(sample.scored_calls(tools, MergeConfig()))
    assert samples[0] == samples[1]
    whole = CallSample()
    for calls in batches:
        whole.add(calls)
    everything = whole.scored_calls(tools, MergeConfig())
    assert everything.sampled == 1
    assert 0 < samples[0].texts == round(samples[0].sampled * everything.texts) < everything.texts
    assert samples[0].number <= max(limit, 9)
    assert samples[0].texts == len(set(column(samples[0], "text").tolist()))


def test_a_sample_is_of_the_expected_size() -> None:
    """Of 4,000 texts with one call each, a sample of 1,000 has about the same share of large gains."""
    found = [
        annotated(n, "a b", Call("QA", 2, 0.5, "q", "r", 1.0, 3.0, 3.0, float(n % 2))) for n in range(4_000)
    ]
    sample = CallSample(1_000)
    for start in range(0, 4_000, 500):
        sample.add(mergeable_calls(batch(found[start : start + 500]), ["QA"], ()))
    calls = sample.scored_calls(["QA"], MergeConfig())
    assert (calls.number, calls.sampled) == (1_000, 0.25)
    assert column(calls, "gain").mean() == pytest.approx(0.5, abs=0.06)


def test_the_sample_for_the_page_counts_by_the_same_rules() -> None:
    everything = count(sample_calls(), TOOLS, dict.fromkeys(TOOLS, -9.0))
    assert (everything.calls, everything.texts) == (len(CALLS), 4)
    kept = count(sample_calls(max_examples=1), TOOLS, TAU_F)
    assert kept.candidates == {
        tool: sum(c[1] == tool and gain(c) >= TAU_F[tool] for c in CALLS) for tool in TOOLS
    }
    assert set(kept.examples.values()) == {1}
    one = count(sample_calls(one_call_per_position=True), TOOLS, dict.fromkeys(TOOLS, -9.0))
    assert one.calls == len(CALLS) - 1
