"""The tools over Ray Serve: answers, and what becomes of them when replicas hang, die, fail or have too
much to do."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.settings import Deployment
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import (
    DEADLINE,
    MALFORMED_ANSWER,
    OVERLOADED,
    REPLICA_DIED,
    TOOL_FAILED,
    UNREACHABLE,
    Tool,
    ToolInput,
    ToolResult,
)
from tools_service.serving.client import ServeTools
from tools_service.serving.deployment import (
    Replica,
    ToolStartError,
    deploy,
    have_started,
    running_applications,
    running_replicas,
    serve_options,
    stop_unused,
    tools_on_ray,
    wait_until_started,
)
from tools_service.serving.leases import Lease

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


# Generous where the replica must answer, short where a deadline is what is tested.
def configured(**how: float) -> ToolsConfig:
    """All tools deployed alike."""
    deployment = Deployment.model_validate({"deadline_s": 500, "health_check_s": 0.5, **how})
    names = ("qa", "wikisearch", "calculator", "calendar", "mt")
    sections = {name: {"deployment": deployment} for name in names}
    return ToolsConfig.model_validate({"service": "tests", "cache_size": 0, **sections})


CONFIG = configured()
# Scripted tools go by the names of real ones.
SCRIPTED, HANGING, DYING = NAMES = ("Calculator", "WikiSearch", "QA")
APPLICATIONS = {name: f"tests-{name}-scripted" for name in NAMES}


def scripted(name: str) -> Callable[[], Tool]:
    """A loader of a tool that does what its input says. Its class is local: replicas cannot import tests."""

    def load() -> Tool:
        import os

        class Scripted:
            def __init__(self) -> None:
                self.name = name

            def __call__(self, inputs: Sequence[ToolInput]) -> Any:
                return [self.one(*one.text.split(":", 1)) for one in inputs]

            def one(self, command: str, argument: str = "") -> Any:
                if command == "pid":
                    return ToolResult(str(os.getpid()))
                if command == "sleep":
                    time.sleep(float(argument))
                if command == "raise":
                    raise ValueError(argument)
                if command == "garbage":
                    return 42
                if command == "die" or (command == "die_once" and not Path(argument).exists()):
                    if argument:
                        Path(argument).touch()
                    os._exit(1)
                return ToolResult(f"{command} done")

        return Scripted()

    return load


@pytest.fixture(scope="module")
def deployed(ray_cluster: None) -> Iterator[None]:
    # One request at a time and one waiting for each client; stuck after two of the replicas' deadlines.
    small = configured(deadline_s=1.0, max_ongoing_requests=1, max_queued_requests=1)
    lease = Lease(CONFIG.service, APPLICATIONS.values())
    deploy({name: scripted(name) for name in NAMES}, small, APPLICATIONS)
    wait_until_started(APPLICATIONS.values())
    yield
    lease.release()
    stop_unused(CONFIG.service)


@pytest.fixture
def tools(deployed: None) -> ServeTools:
    return ServeTools(CONFIG, applications=APPLICATIONS)


def with_deadline(seconds: float, **more: float) -> ServeTools:
    return ServeTools(configured(deadline_s=seconds, **more), applications=APPLICATIONS)


def texts(*words: str) -> list[ToolInput]:
    return [ToolInput(word) for word in words]


def test_the_real_tools_answer_a_driver_and_the_batches_of_an_async_actor(
    deployed: None, tmp_path: Path
) -> None:
    import ray

    (tmp_path / "wiki.jsonl").write_text('{"title": "Otter", "text": "An otter swims."}\n')
    search = WikiSearchConfig(source=(str(tmp_path / "wiki.jsonl"),), index=tmp_path / "index")
    own = ToolSpec(name="Units", implementation="tests.tools_service.own_tools:convert")
    config = ToolsConfig(service="real", wikisearch=search, declared=(own,))
    names: tuple[str, ...] = ("WikiSearch", "Calculator", "Units")
    with tools_on_ray(config, names) as tools:
        assert tools.call("WikiSearch", texts("otters", "unicorns")) == [
            ToolResult("Otter > An otter swims."),
            ToolResult(reason="nothing found"),
        ]
        assert tools.call("Calculator", texts("1/0"))[0].reason == "division by zero"
        assert tools.call("Units", texts("10 km", "x")) == [
            ToolResult("6.2 miles"),
            ToolResult(reason="wrong input"),
        ]

        @ray.remote(num_cpus=0)
        class Doubler:
            def __init__(self, tools: ServeTools) -> None:
                self.tools = tools

            async def double(self, numbers: range) -> list[str | None]:
                answers = await self.tools.acall("Calculator", [ToolInput(f"2 * {n}") for n in numbers])
                return [one.result for one in answers]

        doubler = Doubler.remote(tools)
        batches = [range(10), range(10, 30), range(5)]
        answers = ray.get([doubler.double.remote(batch) for batch in batches])
        assert answers == [[str(2 * n) for n in batch] for batch in batches]
    assert not running_applications("real")
    assert running_applications("tests") == set(APPLICATIONS.values())  # others still run


def test_one_bad_input_costs_only_itself(tools: ServeTools) -> None:
    answers = tools.call(SCRIPTED, texts("a", "raise:x", "b", "garbage", "c"))
    assert [one.result or one.reason for one in answers] == [
        *("a done", TOOL_FAILED, "b done", MALFORMED_ANSWER, "c done")
    ]


def test_a_tool_that_is_not_deployed_is_a_reason(tools: ServeTools) -> None:
    assert tools.call("MT", texts("a")) == [ToolResult(reason=UNREACHABLE)]


def test_calls_to_a_hanging_tool_end_at_the_deadline_and_its_replica_is_replaced(tools: ServeTools) -> None:
    before = tools.call(HANGING, texts("pid"))[0].result
    assert with_deadline(1.0).call(HANGING, texts("sleep:3600", "a")) == [ToolResult(reason=DEADLINE)] * 2
    while tools.call(HANGING, texts("pid"))[0].result in (before, None):
        time.sleep(0.2)  # until the test's timeout, if the replica is not replaced


def test_a_replica_that_dies_while_answering_is_retried_on_the_next(
    tools: ServeTools, tmp_path: Path
) -> None:
    answers = tools.call(DYING, texts("a", f"die_once:{tmp_path / 'died'}", "b"))
    assert (tmp_path / "died").exists()
    assert [one.result for one in answers] == ["a done", "die_once done", "b done"]


def test_an_input_that_kills_every_replica_costs_only_itself(tools: ServeTools) -> None:
    words = [f"w{n}" for n in range(20)]
    words[7] = "die:"
    answers = tools.call(DYING, texts(*words))
    assert answers[7].reason == REPLICA_DIED
    others = [one.result for n, one in enumerate(answers) if n != 7]
    assert others == [f"{word} done" for word in words if word != "die:"]


def test_overload_is_retried_until_everything_is_answered(deployed: None) -> None:
    """Twenty times the queue: one request runs, one waits, the others are refused and come again."""
    tools = with_deadline(500.0, list_size=1)
    answers = tools.call(SCRIPTED, texts(*(f"{n}" for n in range(40))))
    assert [one.result for one in answers] == [f"{n} done" for n in range(40)]


def test_overload_ends_at_the_deadline_with_a_reason(deployed: None) -> None:
    tools = with_deadline(2.0, list_size=1)

    async def all_at_once() -> list[ToolResult]:
        asked = [f"sleep:{0.5 + n / 1000}" for n in range(40)]
        return await tools.acall(SCRIPTED, texts(*asked))

    answers = asyncio.run(all_at_once())
    assert len(answers) == 40
    reasons = {one.reason for one in answers if one.result is None}
    assert reasons
    assert reasons <= {OVERLOADED, DEADLINE}


def test_a_client_travels_by_pickle() -> None:
    import pickle

    client = ServeTools(CONFIG, len, APPLICATIONS)
    copy = pickle.loads(pickle.dumps(client))  # noqa: S301
    assert copy.applications == APPLICATIONS
    assert copy._config == CONFIG
    assert copy._count_tokens is len


@pytest.mark.parametrize(
    ("statuses", "started"),
    [
        (["RUNNING", "UNHEALTHY"], True),  # a replica of the second is being replaced
        (["RUNNING", "DEPLOYING"], False),
        (["NOT_STARTED", "RUNNING"], False),
        (["RUNNING", "DEPLOY_FAILED"], "the tools could not be started on Ray: b: DEPLOY_FAILED: no memory"),
        (["RUNNING", "DELETING"], "the tools could not be started on Ray: b: DELETING: no memory"),
        (["RUNNING"], "the tools could not be started on Ray: b was stopped meanwhile"),
    ],
)
def test_tools_have_started_when_all_run(
    monkeypatch: pytest.MonkeyPatch, statuses: list[str], started: bool | str
) -> None:
    overviews = {
        name: SimpleNamespace(status=SimpleNamespace(value=status), message="no memory")
        for name, status in zip("ab", statuses, strict=False)
    }
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=overviews))
    if isinstance(started, bool):
        assert have_started(["a", "b"]) is started
    else:
        with pytest.raises(ToolStartError, match=re.escape(started)):
            have_started(["a", "b"])
        with pytest.raises(ToolStartError):
            wait_until_started(["a", "b"])


def test_replicas_that_have_started_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"STARTING": 1, "RUNNING": 2, "STOPPING": 4}
    overview = SimpleNamespace(deployments={"QA": SimpleNamespace(replica_states=states)})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"service-QA-1": overview}))
    assert running_replicas({"QA": "service-QA-1", "MT": "service-MT-1"}) == {"QA": 6, "MT": 0}


def test_replicas_are_fixed_or_scale_between_their_bounds() -> None:
    fixed = serve_options(Deployment(min_replicas=3, max_replicas=3, cpus=0.5, gpus=0.25))
    assert fixed["num_replicas"] == 3
    assert fixed["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 0.25}
    scaling = serve_options(Deployment(min_replicas=1, max_replicas=3, target_ongoing_requests=4))
    assert "num_replicas" not in scaling
    assert scaling["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 4.0,
    }


class Waiting:
    """A tool that waits until it is released."""

    name = "Waiting"

    def __init__(self) -> None:
        self.began, self.released = threading.Event(), threading.Event()

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        self.began.set()
        self.released.wait()
        return [ToolResult(one.text) for one in inputs]


def test_a_replica_drops_what_nobody_waits_for_any_more_and_says_when_it_is_stuck() -> None:
    tool = Waiting()
    replica = Replica(lambda: tool, threads=1, stuck_after_s=0.05)
    work = threading.Thread(target=replica, args=([("a", None)], 60.0))
    work.start()
    tool.began.wait()
    assert replica([("b", None), ("c", None)], 0.01) == [(None, DEADLINE)] * 2
    assert replica([("d", None)], -1.0) == [(None, DEADLINE)]
    time.sleep(0.1)
    with pytest.raises(RuntimeError, match="Waiting: a request runs for more than"):
        replica.check_health()
    tool.released.set()
    work.join()
    replica.check_health()
    assert replica([("e", None)], 60.0) == [("e", None)]
