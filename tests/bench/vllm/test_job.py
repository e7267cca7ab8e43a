"""The job that is given to vLLM, without vLLM: the tests' own model answers its questions, as JSON."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.annotate import same_calls
from bench.fixtures import small_run as annotating
from bench.fixtures.small_run import annotator_model, texts
from bench.vllm import job as vllm_job
from bench.vllm.job import Job
from bench.vllm.process import Vllm, environment
from bench.vllm.worker import Worker
from pipeline.base.config import MethodConfig
from pipeline.base.records import Call, Candidate, Text
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.execution import ExecutedCall
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


class Answers:
    """What the worker answers, from the model that the tests have; `asked` counts the sequences."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.asked = model, dict.fromkeys(("listed", "next", "draw", "score", "forget"), 0)
        self.chance = torch.Generator().manual_seed(1)

    def __call__(self, do: str, **fields: Any) -> dict[str, Any]:
        self.asked[do] += len(fields.get("ids", ()))
        answer = getattr(self, do)(**json.loads(json.dumps(fields)))
        took = {
            "wall_s": 0.5,
            "cpu_s": 0.25,
            "forwards": 3,
            "peak_mib": 7.0,
            "fed": [len(one) for one in fields.get("ids", ())],
        }
        return json.loads(json.dumps(answer | took))

    @torch.inference_mode()
    def after(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [n, V] after each token."""
        return self.model.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def forget(self) -> dict[str, Any]:
        return {}

    def listed(self, ids: Any, starts: Any, token: int, listed: int) -> dict[str, Any]:
        logprobs, least = [], []
        for sequence, start in zip(ids, starts, strict=True):
            rows = self.after(sequence)[start - 1 : -1]
            best = rows.topk(listed)
            there = (best.indices == token).any(1).tolist()
            logprobs.append(
                [p if seen else None for p, seen in zip(rows[:, token].tolist(), there, strict=True)]
            )
            least.append(best.values[:, -1].tolist())
        return {"logprobs": logprobs, "least": least}

    def next(self, ids: Any, token: int) -> dict[str, Any]:
        return {"logprobs": [float(self.after(one)[-1, token]) for one in ids]}

    def draw(self, ids: Any, m: int, max_tokens: int, stop: list[int]) -> dict[str, Any]:
        return {"drawn": [[self.one(sequence, max_tokens, stop) for _ in range(m)] for sequence in ids]}

    def one(self, sequence: list[int], most: int, stop: list[int]) -> list[int]:
        found: list[int] = []
        while len(found) < most and not {*found[-1:]} & {*stop}:
            chances = self.after([*sequence, *found])[-1].exp()
            found.append(int(torch.multinomial(chances, 1, generator=self.chance)))
        return found

    def score(self, ids: Any, wanted: Any) -> dict[str, Any]:
        rows = [self.after(one) for one in ids]
        return {
            "logprobs": [
                [float(row[t - 1, one[t]]) for t in indices]
                for row, one, indices in zip(rows, ids, wanted, strict=True)
            ]
        }


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    made = annotating.method(annotating.write_prompts(tmp_path / "prompts"))
    return made.model_copy(update={"tools": ("Calculator",)})


@pytest.fixture
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator",))


@pytest.fixture
def engine(method: MethodConfig, tools: LocalTools) -> list[list[Call]]:
    return [list(one.calls) for one in Annotator(annotator_model(), tools, method).annotate(texts(4))]


def positions(job: Job, given: list[Text]) -> dict[tuple[int, int], float]:
    return job.positions(given, job.model.encode([text.text for text in given]))


def test_the_engines_calls_get_the_engines_losses(
    method: MethodConfig, tools: LocalTools, engine: list[list[Call]]
) -> None:
    answers = Answers(annotator_model())
    job = Job(answers, annotator_model(), tools, method)
    given = [
        vllm_job.executed_again(annotator_model(), text, calls)
        for text, calls in zip(texts(4), engine, strict=True)
    ]
    found = same_calls(engine, job.score(texts(4), given), method.calculator.tau_f)
    assert found["scored"] == [found["scored_by_both"]] * 2
    assert found["scored_by_both"] >= 3
    assert found["same_kept"]
    assert found["largest_difference_of_a_loss"] < 1e-4
    distinct = {(n, c.input, c.result) for n, calls in enumerate(engine) for c in calls}
    assert answers.asked["score"] <= 2 * len(distinct) + len(engine)  # with and without result; bare texts


@pytest.mark.parametrize("listed", [1, 1_000])
def test_positions_are_the_engines_however_few_tokens_are_listed(
    monkeypatch: pytest.MonkeyPatch,
    method: MethodConfig,
    tools: LocalTools,
    engine: list[list[Call]],
    listed: int,
) -> None:
    monkeypatch.setattr(vllm_job, "LISTED", listed)
    answers, encoded = Answers(annotator_model()), annotator_model().encode([text.text for text in texts(4)])
    found = positions(Job(answers, annotator_model(), tools, method), texts(4))
    assert len(found) == 4 * method.calculator.k
    by_character = {(n, int(encoded[n].starts[i])): p for (n, i), p in found.items()}
    calls = {(n, call.position): call.p_api for n, found in enumerate(engine) for call in found}
    assert calls == pytest.approx({at: by_character[at] for at in calls}, abs=1e-5)
    assert (answers.asked["next"] > 0) == (listed == 1)
    monkeypatch.setattr(vllm_job, "LISTED", annotator_model().vocabulary_size)
    assert found == pytest.approx(
        positions(Job(answers, annotator_model(), tools, method), texts(4)), abs=1e-5
    )


def test_equal_texts_are_listed_once(method: MethodConfig, tools: LocalTools) -> None:
    answers = Answers(annotator_model())
    twice = texts(1) * 2
    found = positions(Job(answers, annotator_model(), tools, method), twice)
    assert answers.asked["listed"] == 1
    assert sorted({n for n, _ in found}) == [0, 1]


def test_the_whole_job(method: MethodConfig, tools: LocalTools) -> None:
    job = Job(Answers(annotator_model()), annotator_model(), tools, method)
    job.warm_up(texts(1))
    calls = job.annotate(texts(4))
    assert job.candidates >= sum(map(len, calls)) > 0
    assert {call.result for found in calls for call in found} <= {str(n) for n in range(10_000)}
    assert job.usage.keys() >= {"positions", "decode", "plus", "empty"}
    assert job.wall_s["draw"] == 0.5
    assert job.forwards >= 9
    assert job.peak_mib == 7.0


def test_draws_are_read_as_calls(method: MethodConfig, tools: LocalTools) -> None:
    model = annotator_model()
    job = Job(Answers(model), model, tools, method)

    def ids(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False).input_ids

    special = [*ids("Calculator(1"), model.tokenizer.all_special_ids[0]]
    drawn = [ids("Calculator(1 + 2)]"), ids("Calculator(1 + 2)]"), ids("Calendar()]"), special, ids("Calc[")]
    job.ask = lambda do, **_: {
        "drawn": [drawn],
        "fed": [3],
        "wall_s": 0,
        "cpu_s": 0,
        "forwards": 0,
        "peak_mib": 0,
    }
    assert job.draw([[1, 2, 3]]) == [{"1 + 2": 2}]
    assert {draw[-1] for draw in drawn} <= {*job.stop}


class Scripted(Worker):
    """A worker whose vLLM says what the test says."""

    def __init__(self, *outs: Any) -> None:
        super().__init__()
        self.llm, self.outs = object(), list(outs)

    def _params(self, **_: Any) -> None: ...

    def _generate(self, ids: Any, params: Any) -> list[Any]:
        return self.outs


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
    out = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=1, prompt_logprobs=rows)
    answer = Scripted(out).answer("listed", ids=[[3, 5, 7, 8]], starts=[2], token=7, listed=2)
    assert answer["logprobs"] == [[-3.0, None]]
    assert answer["least"] == [[-3.0, -2.5]]
    assert answer["fed"] == [3]
    with pytest.raises(RuntimeError, match="1 tokens were cached, wanted from 1 on"):
        Scripted(out).answer("listed", ids=[[3, 5, 7, 8]], starts=[1], token=7, listed=2)


def test_the_worker_scores_the_tokens_wanted() -> None:
    rows = flat([], [(5, -9.0)], [(7, -3.0)], [(8, -4.0)])
    out = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=0, prompt_logprobs=rows)
    answer = Scripted(out).answer("score", ids=[[3, 5, 7, 8]], wanted=[[1, 3]])
    assert answer["logprobs"] == [[-9.0, -4.0]]
    assert answer["fed"] == [4]


def test_a_question_that_is_none_is_an_error() -> None:
    assert "no question 'guess'" in Scripted().answer("guess")["error"]
    assert "no question 'score'" in Worker().answer("score")["error"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_interpreter_without_vllm_is_named() -> None:
    vllm = Vllm(sys.executable, environment(sys.executable, torch.device("cpu")))
    try:
        with pytest.raises(SystemExit, match=rf"--vllm-python {sys.executable}: .*No module named 'vllm'"):
            vllm.ask("load", model="anything")
    finally:
        vllm.close()
    assert vllm.process.returncode == 0


@pytest.mark.parametrize("ended", [True, False], ids=["before it is asked", "at some time"])
def test_an_interpreter_that_is_none_is_named(tmp_path: Path, ended: bool) -> None:
    with pytest.raises(SystemExit, match=r"no-python: .*No such file"):
        Vllm(str(tmp_path / "no-python"), {})
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    vllm = Vllm(str(broken), {})
    if ended:
        vllm.process.wait()
    try:
        with pytest.raises(SystemExit, match="it is broken"):
            vllm.ask("load", model="anything")
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
    job = Job(Answers(annotator_model()), annotator_model(), tools, method)
    failed = ExecutedCall(Candidate("Calculator", 5, 2, 0.5, "1 / 0", 1), None, "division")
    assert job.score(texts(1), [[failed]]) == [[]]
