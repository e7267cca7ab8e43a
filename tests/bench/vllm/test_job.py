"""Annotation with vLLM, without vLLM: the tests' own model answers the requests, as JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.annotate import compare_calls
from bench.fixtures import small_run
from bench.fixtures.small_run import annotator_model, texts
from bench.vllm import job as vllm_job
from bench.vllm.job import VllmAnnotator
from bench.vllm.process import VllmProcess, environment
from bench.vllm.worker import Worker
from pipeline.base.config import MethodConfig
from pipeline.base.records import Call, Candidate, Text
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.execution import ExecutedCall
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


class FakeWorker:
    """Responds like the worker, with the tests' model; `asked` counts the sequences."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.asked = (
            model,
            dict.fromkeys(("top_logprobs", "next_logprob", "sample", "score", "reset_cache"), 0),
        )
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        self.asked[method] += len(fields.get("ids", ()))
        response = getattr(self, method)(**json.loads(json.dumps(fields)))
        timing = {
            "wall_s": 0.5,
            "cpu_s": 0.25,
            "forwards": 3,
            "peak_mib": 7.0,
            "fed": [len(sequence) for sequence in fields.get("ids", ())],
        }
        return json.loads(json.dumps(response | timing))

    @torch.inference_mode()
    def after(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [n, V] after each token."""
        return self.model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def reset_cache(self) -> dict[str, Any]:
        return {}

    def top_logprobs(self, ids: Any, starts: Any, token: int, top: int) -> dict[str, Any]:
        logprobs, lowest = [], []
        for sequence, start in zip(ids, starts, strict=True):
            rows = self.after(sequence)[start - 1 : -1]
            best = rows.topk(top)
            listed = (best.indices == token).any(1).tolist()
            logprobs.append(
                [p if found else None for p, found in zip(rows[:, token].tolist(), listed, strict=True)]
            )
            lowest.append(best.values[:, -1].tolist())
        return {"logprobs": logprobs, "lowest": lowest}

    def next_logprob(self, ids: Any, token: int) -> dict[str, Any]:
        return {"logprobs": [float(self.after(sequence)[-1, token]) for sequence in ids]}

    def sample(self, ids: Any, m: int, max_tokens: int, stop: list[int]) -> dict[str, Any]:
        return {
            "drawn": [[self.continue_one(sequence, max_tokens, stop) for _ in range(m)] for sequence in ids]
        }

    def continue_one(self, sequence: list[int], max_tokens: int, stop: list[int]) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < max_tokens and not {*drawn[-1:]} & {*stop}:
            probabilities = self.after([*sequence, *drawn])[-1].exp()
            drawn.append(int(torch.multinomial(probabilities, 1, generator=self.generator)))
        return drawn

    def score(self, ids: Any, indices: Any) -> dict[str, Any]:
        logprobs = []
        for sequence, of_sequence in zip(ids, indices, strict=True):
            rows = self.after(sequence)
            logprobs.append([float(rows[t - 1, sequence[t]]) for t in of_sequence])
        return {"logprobs": logprobs}


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    settings = small_run.method(small_run.write_prompts(tmp_path / "prompts"))
    return settings.model_copy(update={"tools": ("Calculator",)})


@pytest.fixture
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator",))


@pytest.fixture
def engine(method: MethodConfig, tools: LocalTools) -> list[list[Call]]:
    return [list(row.calls) for row in Annotator(annotator_model(), tools, method).annotate(texts(4))]


def positions(annotator: VllmAnnotator, of: list[Text]) -> dict[tuple[int, int], float]:
    return annotator.select_positions(of, annotator.model.encode([text.text for text in of]))


def test_the_engines_calls_get_the_engines_losses(
    method: MethodConfig, tools: LocalTools, engine: list[list[Call]]
) -> None:
    worker = FakeWorker(annotator_model())
    annotator = VllmAnnotator(worker, annotator_model(), tools, method)
    executed = [
        vllm_job.calls_to_score(annotator_model(), text, calls)
        for text, calls in zip(texts(4), engine, strict=True)
    ]
    same = compare_calls(engine, annotator.score(texts(4), executed), method.calculator.tau_f)
    assert same["scored"] == [same["scored_by_both"]] * 2
    assert same["scored_by_both"] >= 3
    assert same["same_kept"]
    assert same["max_loss_difference"] < 1e-4
    distinct = {(n, c.input, c.result) for n, calls in enumerate(engine) for c in calls}
    assert worker.asked["score"] <= 2 * len(distinct) + len(engine)  # with and without result; bare texts


@pytest.mark.parametrize("top", [1, 1_000])
def test_positions_are_the_engines_for_any_number_of_listed_tokens(
    monkeypatch: pytest.MonkeyPatch,
    method: MethodConfig,
    tools: LocalTools,
    engine: list[list[Call]],
    top: int,
) -> None:
    monkeypatch.setattr(vllm_job, "TOP_LOGPROBS", top)
    worker, encoded = (
        FakeWorker(annotator_model()),
        annotator_model().encode([text.text for text in texts(4)]),
    )
    selected = positions(VllmAnnotator(worker, annotator_model(), tools, method), texts(4))
    assert len(selected) == 4 * method.calculator.k
    by_character = {(n, int(encoded[n].starts[i])): p for (n, i), p in selected.items()}
    calls = {(n, call.position): call.p_api for n, of_text in enumerate(engine) for call in of_text}
    assert calls == pytest.approx({at: by_character[at] for at in calls}, abs=1e-5)
    assert (worker.asked["next_logprob"] > 0) == (top == 1)
    monkeypatch.setattr(vllm_job, "TOP_LOGPROBS", annotator_model().vocabulary_size)
    assert selected == pytest.approx(
        positions(VllmAnnotator(worker, annotator_model(), tools, method), texts(4)), abs=1e-5
    )


def test_equal_texts_are_listed_once(method: MethodConfig, tools: LocalTools) -> None:
    worker = FakeWorker(annotator_model())
    twice = texts(1) * 2
    selected = positions(VllmAnnotator(worker, annotator_model(), tools, method), twice)
    assert worker.asked["top_logprobs"] == 1
    assert sorted({n for n, _ in selected}) == [0, 1]


def test_the_whole_method(method: MethodConfig, tools: LocalTools) -> None:
    annotator = VllmAnnotator(FakeWorker(annotator_model()), annotator_model(), tools, method)
    annotator.warm_up(texts(1))
    calls = annotator.annotate(texts(4))
    assert annotator.candidates >= sum(map(len, calls)) > 0
    assert {call.result for of_text in calls for call in of_text} <= {str(n) for n in range(10_000)}
    assert annotator.usage.keys() >= {"positions", "decode", "plus", "empty"}
    assert annotator.wall_s["sample"] == 0.5
    assert annotator.forwards >= 9
    assert annotator.peak_mib == 7.0


def test_draws_are_parsed_as_calls(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    annotator = VllmAnnotator(FakeWorker(model), model, tools, method)

    def ids(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False).input_ids

    special = [*ids("Calculator(1"), model.tokenizer.all_special_ids[0]]
    drawn = [ids("Calculator(1 + 2)]"), ids("Calculator(1 + 2)]"), ids("Calendar()]"), special, ids("Calc[")]
    annotator.request = lambda method, **_: {
        "drawn": [drawn],
        "fed": [3],
        "wall_s": 0,
        "cpu_s": 0,
        "forwards": 0,
        "peak_mib": 0,
    }
    assert annotator.draw([[1, 2, 3]]) == [{"1 + 2": 2}]
    assert {draw[-1] for draw in drawn} <= {*annotator.stop}


class Scripted(Worker):
    """A worker whose vLLM returns what the test gives it."""

    def __init__(self, *outputs: Any) -> None:
        super().__init__()
        self.llm, self.outputs = object(), list(outputs)

    def _params(self, **_: Any) -> None: ...

    def _generate(self, ids: Any, params: Any) -> list[Any]:
        return self.outputs


def flat(*rows: list[tuple[int, float]]) -> Any:
    """Log-probabilities as vLLM's flat lists have them; the first token has none."""
    ends = [sum(map(len, rows[: n + 1])) for n in range(len(rows))]
    return SimpleNamespace(
        start_indices=[0, *ends[:-1]],
        end_indices=ends,
        token_ids=[token for row in rows for token, _ in row],
        logprobs=[logprob for row in rows for _, logprob in row],
    )


def test_the_worker_finds_a_token_among_those_listed() -> None:
    rows = flat(
        [],
        [(5, -9.0), (1, -0.5), (2, -1.0)],
        [(7, -3.0), (8, -0.1), (7, -3.0)],
        [(8, -4.0), (1, -2.0), (2, -2.5)],
    )
    output = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=1, prompt_logprobs=rows)
    response = Scripted(output).respond("top_logprobs", ids=[[3, 5, 7, 8]], starts=[2], token=7, top=2)
    assert response["logprobs"] == [[-3.0, None]]
    assert response["lowest"] == [[-3.0, -2.5]]
    assert response["fed"] == [3]
    with pytest.raises(RuntimeError, match="1 tokens were cached, needed from 1 on"):
        Scripted(output).respond("top_logprobs", ids=[[3, 5, 7, 8]], starts=[1], token=7, top=2)


def test_the_worker_scores_the_tokens_at_the_indices() -> None:
    rows = flat([], [(5, -9.0)], [(7, -3.0)], [(8, -4.0)])
    output = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=0, prompt_logprobs=rows)
    response = Scripted(output).respond("score", ids=[[3, 5, 7, 8]], indices=[[1, 3]])
    assert response["logprobs"] == [[-9.0, -4.0]]
    assert response["fed"] == [4]


def test_an_unknown_method_is_an_error() -> None:
    assert "no method 'guess'" in Scripted().respond("guess")["error"]
    assert "no method 'score'" in Worker().respond("score")["error"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_interpreter_without_vllm_is_named() -> None:
    vllm = VllmProcess(sys.executable, environment(sys.executable, torch.device("cpu")))
    try:
        with pytest.raises(SystemExit, match=rf"--vllm-python {sys.executable}: .*No module named 'vllm'"):
            vllm.request("load", model="anything")
    finally:
        vllm.close()
    assert vllm.process.returncode == 0


@pytest.mark.parametrize("ended", [True, False], ids=["before the request", "at any time"])
def test_an_interpreter_that_does_not_start_is_named(tmp_path: Path, ended: bool) -> None:
    with pytest.raises(SystemExit, match=r"no-python: .*No such file"):
        VllmProcess(str(tmp_path / "no-python"), {})
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    vllm = VllmProcess(str(broken), {})
    if ended:
        vllm.process.wait()
    try:
        with pytest.raises(SystemExit, match="it is broken"):
            vllm.request("load", model="anything")
    finally:
        vllm.close()


def test_what_the_user_has_set_for_vllm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    env = environment(sys.executable, torch.device("cpu"))
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "9"
    assert len(env["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == int(env["OMP_NUM_THREADS"])
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(sys.executable, torch.device("cuda"))


def test_a_call_without_a_result_is_not_scored(method: MethodConfig, tools: LocalTools) -> None:
    annotator = VllmAnnotator(FakeWorker(annotator_model()), annotator_model(), tools, method)
    failed = ExecutedCall(Candidate("Calculator", 5, 2, 0.5, "1 / 0", 1), None, "division")
    assert annotator.score(texts(1), [[failed]]) == [[]]
