"""Several processes on one cluster share tools by their settings, and none stops what another one uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools_service.config import CalendarConfig, MTConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.settings import Deployment
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.serving.client import ServeTools
from tools_service.serving.deployment import running_applications, tools_on_ray
from tools_service.serving.leases import (
    SharedToolsError,
    application_name,
    leased_applications,
    service_lock,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# What `serve --service shared --tools Calculator Calendar` runs.
CONFIG = ToolsConfig(service="shared", calendar=CalendarConfig(today=True))
COMMAND = [sys.executable, "-m", "tools_service", "serve", "--service", "shared"]
SUM, FOUR = [ToolInput("2 + 2")], [ToolResult("4")]


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Another process that runs the tools, and what it said until it was ready."""
    import ray

    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [*COMMAND, "--tools", "Calculator", "Calendar", "--address", address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ctrl-C stops them" in line:
                    break
            assert process.poll() is None, said
            yield process, said
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    """Until the test's timeout, if it never holds."""
    while not condition():
        time.sleep(0.2)


def test_another_driver_finds_the_tools_and_keeps_them_when_their_process_is_killed(
    ray_cluster: None,
) -> None:
    names = {application_name(CONFIG, tool) for tool in ("Calculator", "Calendar")}
    with serving() as (process, _):
        assert ServeTools(CONFIG).call("Calculator", SUM) == FOUR
        with tools_on_ray(CONFIG, ["Calculator"]) as tools:
            process.kill()
            process.wait()
            wait_until(lambda: leased_applications("shared") == {application_name(CONFIG, "Calculator")})
            assert tools.call("Calculator", SUM) == FOUR
            assert running_applications("shared") == names  # what a crash leaves, until somebody clears up
        assert not running_applications("shared")


def test_serve_goes_on_with_what_a_crash_left_and_ends_cleanly(ray_cluster: None) -> None:
    with serving() as (first, _):
        first.kill()
        first.wait()
    assert len(running_applications("shared")) == 2
    with serving() as (second, _):
        assert ServeTools(CONFIG).call("Calculator", SUM) == FOUR
        second.send_signal(signal.SIGINT)
        rest = second.stdout.read() if second.stdout else ""
        assert second.wait() == 0
        assert rest == ""
    assert not running_applications("shared")
    assert not leased_applications("shared")


def test_only_one_process_at_a_time_starts_or_stops(ray_cluster: None) -> None:
    refused = pytest.raises(SharedToolsError, match=r"tools\.service 'a': another job")
    with service_lock("a"), service_lock("b"), refused, service_lock("a", timeout_s=0.0):
        pass
    with service_lock("a", timeout_s=0.0):
        pass


def test_settings_and_folders_tell_applications_apart(tmp_path: Path) -> None:
    def name(config: ToolsConfig, tool: str) -> str:
        return application_name(config, tool)

    config = ToolsConfig(wikisearch=WikiSearchConfig(index=tmp_path), mt=MTConfig(model=str(tmp_path)))
    assert name(config, "MT").startswith("toolformer-MT-")
    more = config.model_copy(
        update={"calendar": CalendarConfig(today=True), "max_result_tokens": 7, "cache_size": 7}
    )
    changed = {
        tool
        for tool in ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
        if name(config, tool) != name(more, tool)
    }
    assert changed == {"Calendar"}
    deployed = config.model_copy(update={"mt": MTConfig(model=str(tmp_path), deployment=Deployment(cpus=3))})
    assert name(deployed, "MT") != name(config, "MT")

    before = {tool: name(config, tool) for tool in ("QA", "WikiSearch", "Calculator", "MT")}
    (tmp_path / "weights").write_text("trained again")
    after = {tool: name(config, tool) for tool in before}
    assert {tool for tool in before if before[tool] != after[tool]} == {"QA", "WikiSearch", "MT"}
