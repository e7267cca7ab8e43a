"""The generation probe: its prompts, and its continuations against the decoder of inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bench.fixtures.small_models import tokenizer
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.engine.model import LanguageModel
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.data.examples import Split
from pipeline.finetuning.evaluation.generation_probe import Probe, choose_prompts, tools_of_texts
from pipeline.finetuning.evaluation.held_out import Evaluator, texts_of
from pipeline.finetuning.step.training import Training
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from pipeline.syntax.partial_call import callable_tools
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, rows, write
from tools_service.contract.tool import ToolInput, ToolResult

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]


class Answers:
    """Tools that answer every call."""

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult("7", None) for _ in inputs]

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return self.call(tool, inputs)


def started(folder: Path, **overrides: object) -> tuple[Training, Split]:
    config: FinetuneConfig = configuration(folder, workers=1, **overrides)
    words = AutoTokenizer.from_pretrained(config.model.path)
    data = load_examples(config, words)
    training = Training(
        config, IndexedBatches(data.train, config, 0), words, rank=0, device=torch.device("cpu")
    )
    return training, data


def outcomes_of_inference(training: Training, prompts: Sequence[str], limit: int) -> list[str]:
    """The tool of the first call of each prompt, "malformed" or "without_call", as inference decodes."""
    model = LanguageModel(training.engine.module, training.tokenizer)
    generations = Generator(model, Answers()).generate(prompts, DecodingParams(max_new_tokens=limit))
    found = []
    for generation in generations:
        first_failed = min((failed.position for failed in generation.failed), default=10**9)
        first_call = min((call.position for call in generation.calls), default=10**9)
        if first_failed == first_call == 10**9:
            found.append("without_call")
        else:
            found.append("malformed" if first_failed < first_call else generation.calls[0].tool)
    return found


LEARNT = 100


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("architecture", "kind", "least"),
    # In the first, digits that are not in the vocabulary are special tokens, which end a call.
    [("llama", "pieces", 3), ("gpt_neox", "bytes", 10), ("gpt2", "split_marker", 10)],
)
def test_tool_use_is_seen_to_appear_and_every_row_is_that_of_inference(
    tmp_path: Path, architecture: str, kind: str, least: int
) -> None:
    """With <API> of one token, and of two, of which the first begins every word."""
    base_model(tmp_path / "base", architecture, kind)
    write(tmp_path / "augmented", [rows(60)])
    training, data = started(
        tmp_path, max_steps=LEARNT, learning_rate=5e-3, held_out=20, batch_size=16, micro_batch_size=8
    )
    texts, plain = texts_of(training.config.data, data.held_out.text_ids)
    prompts = choose_prompts(texts, plain, training.tokenizer, [], training.config)
    strings = [text.partition(" [")[0] for text in texts]
    probe = Probe(training, prompts, callable_tools())

    def compare() -> None:
        found = probe._decode([prompt.tokens for prompt in prompts])
        expected = outcomes_of_inference(training, strings, training.config.probe_tokens)
        pairs = [pair for pair in zip(found, expected, strict=True) if pair[0] != "unfinished"]
        assert [row for row, _ in pairs] == [row for _, row in pairs]
        assert len(pairs) > len(found) // 2

    before = probe.run(0)
    compare()
    for step in range(1, LEARNT + 1):
        training.step(step)
        if step == LEARNT // 3:
            compare()
    after = probe.run(LEARNT)
    compare()
    assert before is not None
    assert after is not None
    assert (before.prompts, before.expected) == (20, {"Calculator": 20})
    assert sum(before.calls.values()) == before.same_tool == 0
    assert after.calls["Calculator"] == after.same_tool >= least
    for found in (before, after):
        others = found.malformed + found.unfinished + found.without_call
        assert sum(found.calls.values()) + others == found.prompts
    assert probe.run(LEARNT) == after, "the same again"


def test_small_batches_decode_as_large_ones_do(tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(24)])
    training, data = started(tmp_path, held_out=12, sequence_length=128, micro_batch_size=8)
    whole = Evaluator(training, data.held_out)._probe.run(0)
    training.config = training.config.model_copy(update={"micro_batch_size": 1})
    assert Evaluator(training, data.held_out)._probe.run(0) == whole


def prompts_of(
    texts: Sequence[str], plain: Sequence[str], tools: Sequence[str] = (), **overrides: object
) -> list[tuple[str, str]]:
    words = tokenizer("pieces")
    config = configuration(Path("folder"), **overrides)
    prompts = choose_prompts(texts, plain, words, tools, config)
    strings = decode_continuations(words, [prompt.tokens[1:].tolist() for prompt in prompts])
    return [(string, prompt.tool) for string, prompt in zip(strings, prompts, strict=True)]


def test_a_prompt_is_the_text_before_the_first_call_in_the_tokens_of_training() -> None:
    texts = [
        "It rained. That makes [Calculator(1 + 2) -> 3] 3 rolls [QA(x) -> y].",
        "[Calendar() -> Today is Monday] At the start of the text",
        "No call at all.",
        "The list [QA(1)] is no call, and here is [MT(pollo) -> chicken] one.",
    ]
    plain = [
        "It rained. That makes 3 rolls.",
        "At the start of the text",
        "No call at all.",
        "The list [QA(1)] is no call, and here is one.",
    ]
    assert prompts_of(texts, plain) == [
        (" It rained. That makes", "Calculator"),
        (" The list [QA(1)] is no call, and here is", "MT"),
    ]
    assert prompts_of(texts, plain, probe_prompts=1) == [(" It rained. That makes", "Calculator")]
    assert prompts_of(texts, plain, probe_prompts=0) == []


def test_the_calls_of_tools_that_are_not_installed_count() -> None:
    texts = ["Five km are [Units(5 km) -> 3 miles] far.", "It is [Clock() -> 9:00] late."]
    plain = ["Five km are far.", "It is late."]
    assert prompts_of(texts, plain) == []
    assert [tool for _, tool in prompts_of(texts, plain, ["Units", "Clock"])] == ["Units", "Clock"]
    tools = tools_of_texts(texts, ["Units", "Clock", "Calculator"])
    assert (tools["Units"], tools["Clock"], tools["Calculator"]) == (True, False, True)
    assert tools.keys() - callable_tools() == {"Units", "Clock"}


def test_a_long_prompt_keeps_its_end_and_leaves_room() -> None:
    words, text = tokenizer("pieces"), "rolls on Monday and " * 30 + "then"
    texts, plain = [f"{text} [QA(a) -> b] more"], [f"{text} more"]
    config = configuration(Path("folder"), sequence_length=64, probe_tokens=40)
    [prompt] = choose_prompts(texts, plain, words, [], config)
    assert len(prompt.tokens) == 24
    assert prompt.tokens[0] == words.bos_token_id
    whole = tokenize_continuations(words, [" " + text])[0].ids
    assert np.array_equal(prompt.tokens[1:], whole[-23:])
    too_short = configuration(Path("folder"), sequence_length=40, probe_tokens=40)
    assert choose_prompts(texts, plain, words, [], too_short) == []


def test_without_prompts_nothing_runs(tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(24)])
    training, data = started(tmp_path, probe_prompts=0)
    evaluation, probe = Evaluator(training, data.held_out).evaluate(0)
    assert probe is None
    assert evaluation.plain_loss is not None
