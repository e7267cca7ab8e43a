"""Tools of MCP servers: sound servers, and servers that hang, end, talk too much or change."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools_service.contract.settings import Deployment
from tools_service.contract.tool import DEADLINE, TOOL_CHANGED, UNREACHABLE, ToolInput, ToolResult
from tools_service.remote.connection import McpServerError
from tools_service.remote.mcp import McpTool
from tools_service.remote.settings import McpConfig

pytestmark = pytest.mark.unit

SERVER = str(Path(__file__).parent / "server.py")


def config(tool: str, kind: str = "tools", deadline_s: float = 30.0, **settings: Any) -> McpConfig:
    return McpConfig(
        command=(sys.executable, SERVER, kind),
        tool=tool,
        deployment=Deployment(deadline_s=deadline_s),
        **{"sessions": 1, "start_s": 20.0, **settings},
    )


@contextmanager
def running(settings: McpConfig, **options: Any) -> Iterator[McpTool]:
    tool = McpTool(settings, **options)
    try:
        yield tool
    finally:
        tool.close()
        assert not servers()


def servers() -> list[psutil.Process]:
    """The test's servers that run, and their watchdogs."""
    children = psutil.Process().children(recursive=True)
    return [
        child for child in children if child.status() != psutil.STATUS_ZOMBIE and child.pid not in _others
    ]


_others: set[int] = set()


@pytest.fixture(autouse=True)
def processes_of_other_tests() -> None:
    """What runs before a test is not its own: a resource tracker, for example."""
    _others.update(child.pid for child in psutil.Process().children(recursive=True))


def ask(tool: McpTool, *texts: str) -> list[str | None]:
    """The results, or the reasons in brackets."""
    return [
        answer.result if answer.reason is None else f"[{answer.reason}]"
        for answer in tool(list(map(ToolInput, texts)))
    ]


def error_of(settings: McpConfig, **options: Any) -> str:
    with pytest.raises(McpServerError) as raised:
        McpTool(settings, **options)
    assert not servers()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_call_becomes_arguments_and_the_text_is_the_result() -> None:
    with running(config("double"), name="Double") as tool:
        assert tool.name == "Double"
        assert ask(tool, "4", " -3 ", "four", "") == [
            "8",
            "-6",
            "[not a whole number: number]",
            "[missing argument: number]",
        ]
        assert tool([]) == []


def test_several_parameters_are_read_by_position_or_by_name() -> None:
    with running(config("convert")) as tool:
        assert ask(tool, '3, "mi, nautical"', "3, mi, m", "3") == [
            "3 mi, nautical in km",
            "3 mi in m",
            "[missing argument: unit]",
        ]
    with running(config("convert"), style="named") as tool:
        assert ask(tool, "unit=mi, amount=3", "3") == ["3 mi in km", "[not key=value]"]


def test_a_declaration_may_leave_parameters_out() -> None:
    schema = {"type": "object", "properties": {"unit": {"enum": ["mi"]}, "amount": {"type": "number"}}}
    with running(config("convert"), parameters=schema) as tool:
        assert ask(tool, "mi, 3", "km, 3") == ["3 mi in km", "[not one of the choices: unit]"]


def test_the_date_of_a_text_is_an_argument() -> None:
    with running(config("on", date_parameter="date")) as tool:
        assert tool([ToolInput("x", "2023-01-30"), ToolInput("x")]) == [
            ToolResult("x 2023-01-30"),
            ToolResult("x no date"),
        ]
    assert "date_parameter = 'day': the tool on has no such parameter" in error_of(
        config("on", date_parameter="day")
    )


def test_errors_and_other_content_are_reasons() -> None:
    with running(config("fail")) as tool:
        [reason] = ask(tool, "it is wrong")
        assert reason == "[tool error: Error executing tool fail: it is wrong and None [not this]]"
    with running(config("picture")) as tool:
        assert ask(tool, "") == ["[not text: image]"]


def test_a_tool_that_may_write_is_refused_unless_allowed() -> None:
    message = error_of(config("delete"))
    assert message.startswith(f"MCP server {sys.executable} {SERVER[:20]}")
    assert message.partition(": ")[2] == (
        "the tool delete does not declare itself read-only (readOnlyHint), so each call that "
        "is tried may change something; set allow_writes = true to allow it"
    )
    with running(config("delete", allow_writes=True)) as tool:
        assert ask(tool, "all") == ["deleted all"]


def test_an_unknown_tool_names_the_nearest_of_500_in_pages() -> None:
    with running(config("tool499", "many")):
        pass
    message = error_of(config("tool4999", "many"))
    assert "it has no tool 'tool4999'; of its 500 tools the nearest are tool499" in message


def test_variables_reach_the_server_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", "s3cr3t-value")
    monkeypatch.setenv("TEST_OTHER", "x")
    settings = config("environment", env=("TEST_SECRET",))
    with running(settings) as tool:
        assert ask(tool, "TEST_SECRET", "TEST_OTHER") == ["s3cr3t-value", "not set"]
        assert "s3cr3t" not in settings.model_dump_json() + repr(tool) + str(vars(tool))
    monkeypatch.delenv("TEST_SECRET")
    assert "the environment variable TEST_SECRET is not set" in error_of(settings)


def test_a_secret_in_a_message_of_the_server_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", "s3cr3t-value")
    with running(config("fail", env=("TEST_SECRET",))) as tool:
        assert ask(tool, "it is wrong") == [
            "[tool error: Error executing tool fail: it is wrong and *** [not this]]"
        ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (config("x", "exit"), "it ended with exit code 3: KeyError: 'API_KEY'"),
        (config("x", "silent", start_s=1.0), "it was not ready after 1 s (start_s)"),
        (config("x", "deaf", start_s=1.0), "it was not ready after 1 s (start_s)"),
        (config("x", "flood", start_s=2.0), "it was not ready after 2 s (start_s)"),
        (McpConfig(command=("/no/such/server",), tool="x"), "No such file or directory; install the program"),
        (McpConfig(url="http://127.0.0.1:9/mcp", tool="x"), "All connection attempts failed"),
    ],
)
def test_a_server_that_does_not_start_is_one_sentence(settings: McpConfig, said: str) -> None:
    assert said in error_of(settings)


def test_lines_that_are_no_messages_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with running(config("double", "noisy")) as tool:
        assert ask(tool, "1") == ["2"]
    assert caplog.text.count("a line that is no message: Welcome to the server!") == 1


def test_an_answer_of_10_mb_costs_its_own_call_only() -> None:
    with running(config("long")) as tool:
        before = ask(tool, "1")
        [pid] = [process.pid for process in servers() if "python" in process.name()]
        assert ask(tool, "10000000", "3", "10000000") == ["[answer too long]", "xxx", "[answer too long]"]
        assert before == ["x"]
        assert psutil.pid_exists(pid)


@pytest.mark.parametrize("kind", ["old", "old-last"])
def test_a_server_of_an_early_protocol(kind: str) -> None:
    with running(config("echo", kind)) as tool:
        assert ask(tool, "a", "long", "b") == ["a", "[answer too long]", "b"]
        assert ask(tool, "change") == ["change"]
        assert ask_until(tool, "a", f"[{TOOL_CHANGED}]")


def test_calls_are_pipelined() -> None:
    """One after another, the first would wait for the others until its deadline."""
    with running(config("gather", calls_per_session=64)) as tool:
        assert ask(tool, *["64"] * 64) == ["gathered"] * 64


def test_calls_are_spread_over_sessions() -> None:
    with running(config("wait", sessions=3, calls_per_session=2)) as tool:
        while (
            sum("python" in process.name() for process in servers()) < 3
            or len(set(ask(tool, *["0.1"] * 12))) < 3
        ):
            time.sleep(0.05)


def test_a_read_only_call_is_repeated_once_when_its_server_ends(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with running(config("stop_read")) as tool:
        assert ask(tool, str(count)) == [f"[{UNREACHABLE}]"]
        assert count.read_text() == "xx"
        assert ask(tool, str(count)) == ["alive"]
        count.write_text("x")
        assert ask(tool, str(count)) == ["alive"]


def test_a_writing_call_is_not_repeated(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with running(config("stop_write", allow_writes=True)) as tool:
        assert ask(tool, str(count)) == [f"[{UNREACHABLE}]"]
        assert count.read_text() == "x"


def test_a_server_that_hangs_costs_its_calls_a_reason_and_is_replaced() -> None:
    with running(config("hang", deadline_s=2.0)) as tool:
        assert ask(tool, "a") == ["a"]
        assert ask(tool, "now", "b") == [f"[{DEADLINE}]"] * 2
        assert "a" in ask_until(tool, "a")


def test_calls_from_many_threads_while_the_server_is_killed_three_times() -> None:
    with running(config("wait", sessions=2, deadline_s=30.0)) as tool:
        answers: list[str | None] = []
        threads = [
            threading.Thread(target=lambda: answers.extend(ask(tool, *["0.01"] * 25))) for _ in range(40)
        ]
        for number, thread in enumerate(threads):
            thread.start()
            if number % 13 == 12:
                kill_a_server()
        for thread in threads:
            thread.join()
        assert len(answers) == 1_000
        assert {answer for answer in answers if not str(answer).isdigit()} <= {f"[{UNREACHABLE}]"}
        assert ask_until(tool, "0")


def kill_a_server() -> None:
    running = [process for process in servers() if "python" in process.name()]
    if running:
        os.killpg(running[0].pid, signal.SIGKILL)


def test_servers_end_with_the_tool_and_with_the_process() -> None:
    tool = McpTool(config("double", sessions=2))
    assert servers()
    del tool
    gc.collect()
    assert not servers()


@pytest.mark.parametrize("kind", ["tools", "deaf-later"])
def test_no_server_outlives_a_killed_process(kind: str) -> None:
    program = (
        "import sys, time\n"
        "from tools_service.remote.mcp import McpTool\n"
        "from tools_service.remote.settings import McpConfig\n"
        f"tool = McpTool(McpConfig(command=(sys.executable, {SERVER!r}, {kind!r}), tool='double'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive


def test_a_slow_call_does_not_end_the_session() -> None:
    with running(config("wait", deadline_s=3.0)) as tool:
        [pid] = ask(tool, "0")
        assert ask(tool, "0", "1000", "0.01") == [pid, f"[{DEADLINE}]", pid]
        assert ask(tool, "0") == [pid]


@pytest.mark.parametrize("text", ["vanish", "other parameters"])
def test_a_changed_tool_is_noticed(text: str) -> None:
    with running(config("change")) as tool:
        assert ask(tool, text) == ["done"]
        assert ask_until(tool, text, f"[{TOOL_CHANGED}]")


def ask_until(tool: McpTool, text: str, wanted: str | None = None) -> list[str | None]:
    """Ask again until the answer is `wanted`, or until there is a result."""
    while True:
        [answer] = ask(tool, text)
        if answer == wanted or (wanted is None and answer and answer[0] != "["):
            return [answer]
        time.sleep(0.02)
