"""Steps 1-4 on a batch: one annotation per text whatever breaks, sound funnels, batches that overlap."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.fixtures import small_run as annotating
from bench.fixtures.small_models import language_model
from bench.fixtures.small_run import annotator_model, texts
from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Cost, Document, Text
from pipeline.engine import unpadding
from pipeline.engine.errors import NonFiniteError
from pipeline.engine.loading import prepare_language_model
from pipeline.method.annotator import MIN_TEXTS_TO_BLAME, Annotator, BatchFailedError
from tools_service.config import ToolsConfig
from tools_service.contract.spec import Select, ToolSpec
from tools_service.contract.tool import DEADLINE, ToolInput, ToolResult
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    return annotating.method(annotating.write_prompts(tmp_path / "prompts"))


def local_tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))


@pytest.fixture
def annotator(method: MethodConfig) -> Annotator:
    return Annotator(annotator_model(), local_tools(), method)


def test_every_text_comes_out_once_and_in_order(annotator: Annotator) -> None:
    given = texts(6)
    given[2] = replace(given[2], text="", skipped="not JSON: at pages.jsonl#3")
    found = annotator.annotate(given)
    assert [one.text for one in found] == given
    assert found[2] == Annotation(given[2], "skipped", "not JSON: at pages.jsonl#3")
    assert all(one.status == ("annotated" if one.calls else "no_calls") for one in found[:2] + found[3:])
    assert all(one.work for one in found[:2] + found[3:])


@pytest.mark.parametrize("use_prompts", [True, False])
@pytest.mark.parametrize(("architecture", "kind"), [("llama", "bytes"), ("gptj_padded", "split_marker")])
def test_the_rows_account_for_every_forward(
    architecture: str, kind: str, use_prompts: bool, method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens through the first MLP, rows through the head and, with sdpa, pairs in attention."""
    model = language_model(architecture, kind)
    config = model.model.config
    fed, rows, pairs = [], [], []
    first = next(part for name, part in model.model.named_modules() if name.endswith(("up_proj", "fc_in")))
    attention = torch.nn.functional.scaled_dot_product_attention
    partial = unpadding.attend_partially

    def counted(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        batch, heads, size, _ = query.shape
        each = size * (size + 1) // 2 if options.get("is_causal") else size * key.shape[2]
        pairs.append(batch * heads * each)
        return attention(query, key, *args, **options)

    def partially_counted(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        batch, heads, size, _ = query.shape
        each = size * (size + 1) // 2 if options.get("causal") else size * key.shape[2]
        pairs.append(batch * heads * each)
        return partial(query, key, *args, **options)

    monkeypatch.setattr(unpadding, "attend_partially", partially_counted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    hooks = [
        first.register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].shape[:-1].numel())),
        model.model.get_output_embeddings().register_forward_hook(
            lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel())
        ),
    ]
    before = model.usage.get("prompt", Cost())
    try:
        method = method.model_copy(update={"use_prompts": use_prompts})
        found = Annotator(model, local_tools(), method).annotate(texts(9))
    finally:
        for hook in hooks:
            hook.remove()
    prompts = model.usage.get("prompt", Cost())
    shared = Cost(
        prompts.tokens - before.tokens, attention_pairs=prompts.attention_pairs - before.attention_pairs
    )
    work = [part for one in found for part in one.work]
    total = sum((part.run for part in work), shared)
    assert {part.phase for part in work} == {"positions", "decode", "empty", "plus", "call"}
    assert (total.tokens + total.padding, total.logits) == (sum(fed), sum(rows))
    if architecture == "llama":
        assert total.attention_pairs * config.num_hidden_layers * config.num_attention_heads == sum(pairs)
    for part in work:
        assert part.run.tokens >= part.lower_bound.tokens > 0
        assert part.run.attention_pairs >= part.lower_bound.attention_pairs
        assert part.run.logits == part.lower_bound.logits


def test_funnels_add_up(annotator: Annotator) -> None:
    found = annotator.annotate(texts(6))
    stages = [stage for one in found for stage in one.funnel]
    assert [stage.tool for stage in found[0].funnel] == ["Calculator", "Calendar"]
    assert sum(stage.scored for stage in stages) >= 6, (
        "the model draws too few calls for this test to say much"
    )
    for one in found:
        for stage in one.funnel:
            without_result = sum(n for reason, n in stage.discarded.items() if reason.startswith("tool: "))
            assert stage.executed == stage.candidates - without_result
            assert stage.scored == sum(call.tool == stage.tool for call in one.calls)
            assert stage.draws == stage.positions * 4
            assert stage.positions <= 3


def test_the_calendar_shows_the_date_in_the_url(annotator: Annotator) -> None:
    found = annotator.annotate(texts(6))
    for one in found:
        results = {call.result for call in one.calls if call.tool == "Calendar"}
        if "/page/" in (one.text.document.url or ""):
            assert one.funnel[1].selection == "no: no date in the URL"
            assert not results
    assert {call.result for call in found[0].calls if call.tool == "Calendar"} == {
        "Today is Friday, March 1, 2019."
    }


def test_rows_do_not_depend_on_the_company(annotator: Annotator) -> None:
    given = texts(5)
    together = annotator.annotate(given)
    for text, one in zip(given, together, strict=True):
        (alone,) = annotator.annotate([text])
        assert alone.funnel == one.funnel
        for mine, other in zip(alone.calls, one.calls, strict=True):
            assert (mine.position, mine.input, mine.result) == (other.position, other.input, other.result)
            assert mine.gain == pytest.approx(other.gain, abs=1e-5)


class TouchyTools:
    """Calculator and calendar; breaks for good on the calendar of given days."""

    def __init__(self, days: set[str]) -> None:
        self.days = days
        self.tools = local_tools()

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return asyncio.run(self.acall(tool, inputs))

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if any(one.date in self.days for one in inputs):
            raise LookupError("no such day")
        return await self.tools.acall(tool, inputs)


def test_a_text_that_breaks_a_batch_fails_alone(
    annotator: Annotator, method: MethodConfig, caplog: pytest.LogCaptureFixture
) -> None:
    given = texts(5)
    sound = annotator.annotate(given)
    found = Annotator(annotator_model(), TouchyTools({"2019-03-02"}), method).annotate(given)
    assert [one.status == "failed" for one in found] == [False, True, False, False, False]
    assert found[1] == Annotation(given[1], "failed", "LookupError: no such day")
    assert [one.funnel for one in found if one.status != "failed"] == [
        one.funnel for one in sound if one is not sound[1]
    ]
    assert "a batch of 5 texts failed; each half is tried alone" in caplog.messages


class SlowTools(TouchyTools):
    """The calculator is late each time."""

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        late = [ToolResult(reason=DEADLINE)] * len(inputs)
        return late if tool == "Calculator" else await super().acall(tool, inputs)


def test_calls_that_lost_their_result_are_logged_once_a_reason(
    method: MethodConfig, caplog: pytest.LogCaptureFixture
) -> None:
    given = texts(5)
    found = Annotator(annotator_model(), SlowTools(set()), method).annotate(given)
    [line] = [vars(record) for record in caplog.records if record.levelname == "WARNING"]
    lost = [one.funnel[0].discarded["tool: deadline"] for one in found]
    assert (line["tool"], line["error"], line["calls"]) == ("Calculator", "deadline", sum(lost))
    assert line["text_id"] == given[0].text_id
    assert 0 <= line["position"] < len(given[0].text)


def test_when_all_fail_the_run_stops(method: MethodConfig) -> None:
    days = {f"2019-03-{day:02d}" for day in range(1, 29)}
    given = [text for text in texts(2 * MIN_TEXTS_TO_BLAME) if "/page/" not in (text.document.url or "")][
        :MIN_TEXTS_TO_BLAME
    ]
    with pytest.raises(BatchFailedError, match=r"all .* texts of a batch failed.*LookupError: no such day"):
        Annotator(annotator_model(), TouchyTools(days), method).annotate(given)


def test_a_score_that_is_not_finite_stops_everything_and_names_the_text(method: MethodConfig) -> None:
    sound = annotator_model()
    broken = prepare_language_model(copy.deepcopy(sound.model), sound.tokenizer)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[:, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="text 10, Calculator"):
        Annotator(broken, local_tools(), method).annotate(texts(2))


def test_a_text_without_room_beside_a_prompt_is_not_tried(annotator: Annotator) -> None:
    long = Text(1, Document("a#1", "https://example.org/2019/03/01/x"), "1 and 2 are 3. " * 60)
    (found,) = annotator.annotate([long])
    assert found.status == "no_calls"
    assert found.funnel[0].selection.startswith("no: context: the text has ")


class Meeting:
    """Tools that answer a batch only when another one has come to its tools as well."""

    def __init__(self, batches: int) -> None:
        self.barrier = asyncio.Barrier(batches)
        self.tools = local_tools()

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        raise NotImplementedError

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if tool == "Calculator":
            await self.barrier.wait()
        return await self.tools.acall(tool, inputs)


@pytest.mark.timeout(60)
def test_while_a_batch_waits_for_tools_another_has_the_model(
    annotator: Annotator, method: MethodConfig
) -> None:
    batches = [texts(4)[:2], texts(4)[2:]]

    async def both() -> list[list[Annotation]]:
        shared = Annotator(annotator_model(), Meeting(len(batches)), method)
        return await asyncio.gather(*(shared.aannotate(batch) for batch in batches))

    found = asyncio.run(both())
    assert [[one.funnel for one in batch] for batch in found] == [
        [one.funnel for one in annotator.annotate(batch)] for batch in batches
    ]


def test_the_share_of_a_batch_grows_while_it_is_annotated(annotator: Annotator) -> None:
    """And asking for it changes nothing."""
    shares: list[float] = []
    given = texts(4)
    assert asyncio.run(annotator.aannotate(given, shares.append)) == annotator.annotate(given)
    assert shares == sorted(shares)
    assert len(set(shares)) >= 5
    assert 0 < shares[0] < shares[-1] <= 1


def test_a_further_tool_changes_no_draw_of_another(tmp_path: Path) -> None:
    """Five tools of a user's beside two of this package: the same calls, to the last digit."""
    prompts = annotating.write_prompts(tmp_path / "prompts")
    alone = annotating.method(prompts)
    names = ["Units", "A", "Zeta", "Sum", "Calc"]
    for name in names:
        call = f"Add calls. 2 and 3 make [{name}(2 + 3)] 5.\n\nInput: {{text}}\nOutput:"
        (prompts / f"{name.lower()}.txt").write_text(call)
    settings = alone.of("Calculator").model_copy(update={"select": Select(rule="all")})
    more = alone.model_copy(
        update={"tools": (*names, *alone.tools), **{name.lower(): settings for name in names}}
    )
    specs = tuple(
        ToolSpec(name=name, implementation="tools_service.tools.calculator:Calculator") for name in names
    )
    config = ToolsConfig(declared=specs)
    given = texts(6)
    expected = Annotator(annotator_model(), LocalTools.start(config, alone.tools), alone).annotate(given)
    found = Annotator(annotator_model(), LocalTools.start(config, more.tools), more).annotate(given)
    for before, after in zip(expected, found, strict=True):
        assert [call for call in after.calls if call.tool in alone.tools] == list(before.calls)
        assert [stage for stage in after.funnel if stage.tool in alone.tools] == list(before.funnel)
    assert sum(stage.draws for one in found for stage in one.funnel if stage.tool == "Units") > 0
