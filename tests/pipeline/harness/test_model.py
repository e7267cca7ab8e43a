"""The model `toolformer` of lm-evaluation-harness: the likelihoods of its `hf` model; calls in generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'")

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bench.fixtures.harness_tasks import CHOICES, NUMBER, ROLLING, write_task
from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import GenerateConfig
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.harness import ToolformerLM
from pipeline.harness.errors import HarnessError
from tests.pipeline.scripted import ScriptedModel
from tools_service.config import ToolsConfig
from tools_service.tools.calculator import Calculator
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

PAGE = "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days. Café, naïve “x” [QA(a) -> b] "
ANNOTATOR = Path(__file__).parents[3] / "demo" / "models" / "annotator"
SUM = "The answer to 27 + 4 is"
PATHS = [f"{SUM}| [|Calculator|(|27 + 4|)| ->| 31|]| 31.|\n|32", f"{SUM}| thirty.| And so on."]


@dataclass
class Request:
    """What the harness passes to a model."""

    args: tuple[Any, ...]


def requests(*arguments: tuple[Any, ...]) -> list[Request]:
    return [Request(args) for args in arguments]


@cache
def models(architecture: str, kind: str) -> tuple[ToolformerLM, HFLM]:
    """Ours without calls, and the harness's: a random model with a context of 64 tokens, or the demo's."""
    if architecture == "demo":
        config = ModelConfig(path=str(ANNOTATOR), dtype="float32", device="cpu")
        theirs = HFLM(pretrained=str(ANNOTATOR), dtype="float32", device="cpu", batch_size=3)
        return ToolformerLM(HarnessConfig(calls=False), load_language_model(config)), theirs
    network = causal_lm(architecture, len(tokenizer(kind)) + 3, positions=64)
    engine = prepare_language_model(network, tokenizer(kind))
    theirs = HFLM(pretrained=network, tokenizer=tokenizer(kind), batch_size=3, device="cpu")
    return ToolformerLM(HarnessConfig(calls=False), engine), theirs


MODELS = [("llama", "pieces"), ("gpt2", "bytes"), ("gpt_neox", "words"), ("demo", "own")]


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_likelihoods_are_those_of_the_hf_model(architecture: str, kind: str) -> None:
    """Without a context, with spaces at its end, longer than the model's context, and shared contexts."""
    ours, theirs = models(architecture, kind)
    wanted = requests(
        ("", "The bakery"),
        ("The bakery sold", " 48 rolls"),
        ("The bakery sold   ", "67"),
        ("The bakery sold\n", "67"),
        (PAGE * (ours.max_length // 16), " 115 in both days"),
        ("Monday", " and 67 [Calculator(48 + 67) -> 115]"),
        *((f"{PAGE[:40]}", f" {number}") for number in range(9)),
        (theirs.tokenizer.eos_token + "Monday", " and"),
    )
    found, expected = ours.loglikelihood(wanted), theirs.loglikelihood(wanted, disable_tqdm=True)
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-5, abs=1e-5)
        assert mine[1] == other[1]


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_the_greedy_continuation_is_called_greedy(architecture: str, kind: str) -> None:
    ours, theirs = models(architecture, kind)
    ids = theirs.tok_encode("The bakery sold")
    import torch

    likeliest = int(theirs.model(torch.tensor([ids])).logits[0, -1].argmax())
    pairs = [(("", ""), ids, [likeliest]), (("", ""), ids, [likeliest - 1])]
    assert [greedy for _, greedy in ours._loglikelihood_tokens(pairs)] == [True, False]


@pytest.mark.parametrize(("architecture", "kind"), MODELS)
def test_rolling_likelihoods_have_the_windows_of_the_hf_model(architecture: str, kind: str) -> None:
    ours, theirs = models(architecture, kind)
    long = PAGE * (ours.max_length // 5)
    wanted = requests((long,), ("Monday",), (PAGE,), ("",))
    expected = theirs.loglikelihood_rolling(wanted, disable_tqdm=True)
    assert len(ours.tok_encode(long)) > 4 * ours.max_length
    assert ours.loglikelihood_rolling(wanted) == pytest.approx(expected, rel=1e-5)


def test_tasks_have_the_perplexity_and_the_accuracy_of_the_hf_model(tmp_path: Path) -> None:
    write_task(tmp_path, "pages", ROLLING, [{"text": PAGE * times} for times in (1, 3, 9)])
    rows = [
        {"prompt": prompt, "choices": ["48", "67", "115 rolls"], "answer": "67"}
        for prompt in ("The bakery sold", "The bakery sold ", "")
    ]
    write_task(tmp_path, "choices", CHOICES, rows)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    both = [
        lm_eval.simple_evaluate(model=lm, tasks=["pages", "choices"], task_manager=manager)["results"]
        for lm in models("llama", "pieces")
    ]
    names = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    mine, other = ([results["pages"][f"{name},none"] for name in names] for results in both)
    assert mine == pytest.approx(other, rel=1e-6)
    for name in ("acc,none", "acc_norm,none"):
        assert both[0]["choices"][name] == both[1]["choices"][name]


def test_a_window_can_be_shorter_than_the_context() -> None:
    ours, theirs = models("llama", "pieces")
    short = ToolformerLM(HarnessConfig(calls=False, max_length=16), ours.engine)
    assert (ours.max_length, short.max_length) == (64, 16)
    shorter = HFLM(pretrained=theirs.model, tokenizer=theirs.tokenizer, max_length=16, batch_size=2)
    wanted = requests((PAGE * 2,))
    expected = shorter.loglikelihood_rolling(wanted, disable_tqdm=True)
    assert short.loglikelihood_rolling(wanted) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(theirs.loglikelihood_rolling(wanted, disable_tqdm=True), rel=1e-4)


def scripted(paths: list[str] = PATHS, *, positions: int = 2**31, **settings: Any) -> ToolformerLM:
    """A model that follows scripts, with the calculator."""
    generation = GenerateConfig(**{"k": 2, "max_new_tokens": 16, **settings.pop("generation", {})})
    model: LanguageModel = ScriptedModel("words", paths, positions)
    tools = LocalTools({"Calculator": Calculator()}, ToolsConfig())
    return ToolformerLM(HarnessConfig(generation=generation, **settings), model, tools)


def test_calls_are_made_and_are_not_in_the_answer() -> None:
    lm = scripted()
    assert lm.generate_until(requests((SUM, {"until": ["\n"]}))) == [" 31."]
    [generation] = lm.generations
    assert [(call.tool, call.input, call.result) for call in generation.calls] == [
        ("Calculator", "27 + 4", "31")
    ]


def test_without_calls_none_is_made() -> None:
    for lm in (scripted(calls=False), scripted(generation={"disabled": True}), scripted(generation={"k": 0})):
        assert not lm.calls
        assert lm.generate_until(requests((SUM, {"until": ["\n"]}))) == [" thirty. And so on."]
        assert lm.generations[0].calls == ()


def test_until_and_max_gen_toks_end_the_text() -> None:
    lm = scripted(calls=False)
    answers = lm.generate_until(
        requests(
            (SUM, {"until": [" And"]}),
            (SUM, {"until": "y."}),
            (SUM, {"until": ["never"], "max_gen_toks": 2}),
            (SUM, {"until": ["never"]}),
        )
    )
    assert answers[0] == " thirty."
    assert answers[1] == " thirt"
    assert " thirty. And so on.".startswith(answers[2])
    assert lm.generations[2].tokens == 2
    assert answers[3] == " thirty. And so on."


def test_the_answer_to_a_prompt_that_ends_in_a_space_begins_without_one() -> None:
    assert scripted().generate_until(requests((SUM + " ", {"until": ["\n"]}))) == ["31."]


def test_a_task_with_calls_runs_and_counts_them(tmp_path: Path) -> None:
    rows = [{"prompt": SUM, "answers": ["31"]}, {"prompt": SUM, "answers": ["32"]}]
    write_task(tmp_path, "sums", NUMBER, rows)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    evaluated = lm_eval.simple_evaluate(model=scripted(), tasks=["sums"], task_manager=manager)
    assert evaluated["results"]["sums"]["exact_match,flexible-extract"] == 0.5
    counts = evaluated["config"]["toolformer"]
    assert (counts["generations"], counts["generations_with_call"]) == (2, 2)
    assert counts["calls_by_tool"] == {"Calculator": 2}
    assert counts["calls"] is True


def test_a_sampled_prompt_gets_another_seed_each_time() -> None:
    lm = ToolformerLM(HarnessConfig(calls=False), models("llama", "pieces")[0].engine)
    gen_kwargs = {"until": ["never"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    answers = lm.generate_until(requests(*[("The bakery sold", gen_kwargs)] * 3))
    assert len(set(answers)) == 3
    assert lm.generate_until(requests(*[("The bakery sold", gen_kwargs)] * 3)) == answers


def test_a_prompt_that_is_too_long_keeps_its_end() -> None:
    lm = ToolformerLM(HarnessConfig(calls=False), models("llama", "pieces")[0].engine)
    [_] = lm.generate_until(requests((PAGE * 9, {"until": [], "max_gen_toks": 10})))
    [generation] = lm.generations
    assert generation.refused is None
    assert lm.truncated_prompts == 1
    assert PAGE.rstrip().endswith(lm._fit(PAGE * 9, 10).strip()[-20:])
    assert lm._fit("Monday", 10) == "Monday"
    with pytest.raises(HarnessError, match=r"max_gen_toks = 64 leaves no room .* 64 tokens"):
        lm._fit("Monday", 64)


def test_a_prompt_that_cannot_be_continued_costs_itself(caplog: pytest.LogCaptureFixture) -> None:
    lm = scripted(calls=False)
    assert lm.generate_until(requests(("", {"until": ["\n"]}), (SUM, {"until": [" And"]}))) == [
        "",
        " thirty.",
    ]
    assert "the answer is empty: a prompt is empty" in caplog.text
    assert lm.generations[0].refused is not None


def test_likelihoods_are_refused_with_calls_on() -> None:
    engine = models("llama", "pieces")[0].engine
    lm = ToolformerLM(HarnessConfig(), engine, LocalTools({}, ToolsConfig()))
    assert lm.calls
    with pytest.raises(HarnessError, match=r"intractable with calls on .*--no-calls"):
        lm.loglikelihood(requests(("a", " b")))
    with pytest.raises(HarnessError, match="intractable"):
        lm.loglikelihood_rolling(requests(("a b",)))
    allowed = HarnessConfig(likelihoods_without_calls=True)
    lm = ToolformerLM(allowed, engine, LocalTools({}, ToolsConfig()))
    [(logprob, _)] = lm.loglikelihood(requests(("a", " b")))
    assert logprob == models("llama", "pieces")[0].loglikelihood(requests(("a", " b")))[0][0]


def test_a_continuation_that_cannot_be_scored_is_named() -> None:
    ours, _ = models("llama", "pieces")
    with pytest.raises(HarnessError, match=r"likelihood of no token, at the end of 'Monday'"):
        ours.loglikelihood(requests(("Monday", "")))
    with pytest.raises(HarnessError, match="tokens do not fit the context of 64"):
        ours.loglikelihood(requests(("Monday", PAGE * 3)))


def test_a_chat_template_is_refused() -> None:
    with pytest.raises(HarnessError, match="no chat template"):
        scripted().apply_chat_template([{"role": "user", "content": "Hello"}])


def test_the_harness_makes_the_model_by_its_name(tmp_path: Path) -> None:
    network = causal_lm("llama", len(tokenizer("pieces")), positions=64)
    network.save_pretrained(tmp_path)
    tokenizer("pieces").save_pretrained(tmp_path)
    arguments = f"pretrained={tmp_path},calls=False,dtype=float32,max_length=32"
    lm = get_model("toolformer").create_from_arg_string(arguments, {"device": "cpu", "batch_size": 4})
    assert isinstance(lm, ToolformerLM)
    model = ModelConfig(path=str(tmp_path), dtype="float32", device="cpu")
    assert lm.harness_config == HarnessConfig(
        generation=GenerateConfig(model=model, max_new_tokens=256), calls=False, batch_size=4, max_length=32
    )
    assert lm.max_length == 32
    theirs = HFLM(pretrained=network, tokenizer=tokenizer("pieces"), max_length=32)
    expected = theirs.loglikelihood_rolling(requests((PAGE,)), disable_tqdm=True)
    assert lm.loglikelihood_rolling(requests((PAGE,))) == pytest.approx(expected, rel=1e-5)
