"""The dashboard: its queries name existing metrics, and every panel has data during a run."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from bench.fixtures import small_run
from cluster.dashboards import DASHBOARD, PIPELINE_METRICS, RAY_METRICS, Panel, main, problems, read_panels
from cluster.local import ROOT, LocalCluster
from pipeline.annotation.metrics import BATCH_SECONDS

MONITORING = ROOT / "cluster" / "monitoring"
# Panels that stay empty on a machine without a GPU.
GPU_PANELS = {"FLOP utilisation", "GPU memory in use", "GPU busy"}
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
def test_provisioning_is_yaml_that_finds_the_dashboard() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "toolformer.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "$TOOLFORMER_DASHBOARDS"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


@pytest.mark.unit
def test_a_missing_prometheus_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prometheus", "http://127.0.0.1:1"]) == 2
    assert "http://127.0.0.1:1" in capsys.readouterr().err


DRIVER = """
import json, sys
from pathlib import Path
import ray
from bench.fixtures import small_run
from pipeline.annotation.run import annotate

ray.init(log_to_driver=False)
targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
print(json.dumps(targets), flush=True)
world = Path(sys.argv[1])
annotate(small_run.config(world, world / "annotations", texts_per_batch=4))
"""


@contextmanager
def process(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, text=True, **options) as running:  # type: ignore[call-overload]
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[str]:
    """The address of a running Prometheus."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = [{"job_name": "ray", "static_configs": [{"targets": list(targets)}]}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command = ["prometheus", *options, f"--web.listen-address={address}", "--log.level=error"]
    with process(command):
        yield f"http://{address}"


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")
def test_every_panel_has_data_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run.save_model(tmp_path / "model")
    small_run.write_prompts(tmp_path / "prompts")
    small_run.write_corpus(tmp_path / "pages", files=400, pages=9)  # enough for a long run
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    driver = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with (
        LocalCluster(["cpus=6"]) as cluster,
        process(driver, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE) as running,
    ):
        assert running.stdout is not None
        targets = json.loads(running.stdout.readline())
        with prometheus(tmp_path / "prometheus", targets) as address:
            output = ""
            while not all_have_data(output):
                assert running.poll() is None, output
                time.sleep(2)
                main(["--prometheus", address, "--minutes", "5"])
                output = capsys.readouterr().out
            assert main(["--prometheus", address, "--minutes", "5"]) == 0


def all_have_data(output: str) -> bool:
    lines = output.splitlines()
    empty = {line.split(": ")[0].split(maxsplit=1)[1] for line in lines if not line.startswith("data")}
    return bool(lines) and empty <= GPU_PANELS | TRAINING_PANELS
