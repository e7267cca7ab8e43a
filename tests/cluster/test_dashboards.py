"""The dashboard: its queries name existing metrics, and every panel has data during a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from bench.fixtures import small_run
from cluster.dashboards import (
    DASHBOARD,
    MONITORING,
    PIPELINE_METRICS,
    RAY_METRICS,
    RULES,
    Panel,
    main,
    problems,
    read_panels,
    with_values,
)
from cluster.local import ROOT, LocalCluster
from pipeline.annotation.metrics import BATCH_SECONDS

# Panels that stay empty on a machine without a GPU.
GPU_PANELS = {"FLOP utilisation", "GPU memory in use", "GPU busy", "GPUs idle"}
# Panels of what did not happen.
FAULT_PANELS = {"Stalled", "Calls lost to tools", "Alerts"}
TRAINING_PANELS = {
    panel.title
    for panel in read_panels()
    if any("ray_toolformer_training_" in query for query, _ in panel.queries)
}


@pytest.mark.unit
@pytest.mark.parametrize("panel", read_panels(), ids=lambda panel: panel.title)
def test_queries_name_metrics_and_labels_that_exist(panel: Panel) -> None:
    assert panel.queries
    assert list(problems(panel)) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("query", "legend", "message"),
    [
        ("sum(rate(ray_toolformer_texts[1m]))", "", "no metric ray_toolformer_texts"),
        ("rate(ray_toolformer_texts_totals[1m])", "", "no metric ray_toolformer_texts_totals"),
        ('ray_toolformer_texts_total{tool="MT=1"}', "", "no label tool"),
        ("sum by (status, phase) (ray_toolformer_texts_total)", "", "no label phase"),
        ("sum by (status) (ray_toolformer_texts_total)", "{{reason}}", "no label reason"),
        ("sum by (le) (ray_toolformer_batch_seconds_sum)", "", "no label le"),
    ],
)
def test_unknown_metrics_and_labels_are_named(query: str, legend: str, message: str) -> None:
    assert [message in problem for problem in problems(Panel("a panel", ((query, legend),), False))] == [True]


@pytest.mark.unit
def test_every_metric_is_shown() -> None:
    """For a histogram, one of its three metrics is enough."""
    queried = set(re.findall(r"\bray_\w+", DASHBOARD.read_text()))
    of_histogram = set(BATCH_SECONDS.exported)
    assert queried - of_histogram == (PIPELINE_METRICS.keys() | RAY_METRICS.keys()) - of_histogram
    assert queried & of_histogram


@pytest.mark.unit
def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.unit
def test_the_data_source_knows_how_often_prometheus_scrapes() -> None:
    file = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    [source] = yaml.safe_load(file.read_text())["datasources"]
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


@pytest.mark.unit
def test_a_missing_prometheus_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prometheus", "http://127.0.0.1:1"]) == 2
    assert "http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.unit
@pytest.mark.parametrize("panel", read_panels(), ids=lambda panel: panel.title)
def test_queries_are_promql(panel: Panel) -> None:
    for query, _ in panel.queries:
        promql_parser.parse(with_values(query))


@pytest.mark.unit
def test_the_dashboard_follows_the_schema_of_grafana() -> None:
    """What the schema does not know is lost on the way through its types."""
    dashboard = json.loads(DASHBOARD.read_text())
    register_default_plugins()  # the types of panels and queries
    known = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert list(lost(dashboard, known)) == []
    dashboard["panels"][1]["options"]["colourMode"] = "background"
    known = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert list(lost(dashboard, known)) == ["/panels/1/options/colourMode"]


def lost(value: Any, known: Any, path: str = "") -> Iterator[str]:
    """The paths in `value` that `known` lacks or has with another value."""
    if isinstance(value, dict) and isinstance(known, dict):
        for key in value:
            yield from lost(value[key], known.get(key), f"{path}/{key}")
    elif isinstance(value, list) and isinstance(known, list) and len(value) == len(known):
        for number, (part, known_part) in enumerate(zip(value, known, strict=True)):
            yield from lost(part, known_part, f"{path}/{number}")
    elif value != known:
        yield path


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


@pytest.mark.unit
@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_is_a_panel_with_a_limit(alert: dict[str, Any]) -> None:
    promql_parser.parse(alert["expr"])
    panel = Panel(alert["alert"], ((alert["expr"], ""),), False)
    assert list(problems(panel)) == []
    assert {"summary", "action"} <= alert["annotations"].keys()
    if "panel" in alert["annotations"]:
        [shown] = [panel for panel in read_panels() if panel.title == alert["annotations"]["panel"]]
        query, _, condition = shown.queries[0][0].partition(" and on (run) ")
        for part in (query, condition):
            assert bare(part) in bare(alert["expr"])


def bare(query: str) -> str:
    """A query of any run, without spaces."""
    for selector in ('{run=~"$run"}', ', run=~"$run"'):
        query = query.replace(selector, "")
    return "".join(query.split())


@pytest.mark.unit
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
def test_alerts_fire_when_they_should() -> None:
    cases = Path(__file__).with_name("alerts_test.yaml")
    for command in (["check", "config", MONITORING / "prometheus.yml"], ["test", "rules", cases]):
        result = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


DRIVER = """
import sys
from pathlib import Path
import ray
from bench.fixtures import small_run
from pipeline.annotation.run import annotate

ray.init(log_to_driver=False)
world = Path(sys.argv[1])
annotate(small_run.config(world, world / "annotations", texts_per_batch=4))
"""


@contextmanager
def process(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as running:  # type: ignore[call-overload]
        try:
            yield running
        finally:
            running.terminate()


@contextmanager
def prometheus(address: str) -> Iterator[str]:
    """The URL of the Prometheus that watches the cluster at `address`."""
    command = [sys.executable, "-m", "cluster.monitor", "--address", address]
    with process(command, cwd=ROOT, stdout=subprocess.PIPE) as monitor:
        assert monitor.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("Prometheus"):
            lines.append(monitor.stdout.readline())
            assert lines[-1], lines
        yield lines[-1].split()[1].removesuffix("/alerts")


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")
def test_every_panel_has_data_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run.save_model(tmp_path / "model")
    small_run.write_prompts(tmp_path / "prompts")
    small_run.write_corpus(tmp_path / "pages", files=400, pages=9)  # enough for a long run
    driver = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with (
        LocalCluster(["cpus=6"], dashboard=True) as cluster,
        prometheus(cluster.address) as url,
        process(driver, cwd=ROOT, env=cluster.environment) as running,
    ):
        output = ""
        while not all_have_data(output):
            assert running.poll() is None, output
            time.sleep(2)
            main(["--prometheus", url, "--minutes", "5"])
            output = capsys.readouterr().out
        assert main(["--prometheus", url, "--minutes", "5"]) == 0


def all_have_data(output: str) -> bool:
    lines = output.splitlines()
    empty = {line.split(": ")[0].split(maxsplit=1)[1] for line in lines if not line.startswith("data")}
    return bool(lines) and empty <= GPU_PANELS | TRAINING_PANELS | FAULT_PANELS
