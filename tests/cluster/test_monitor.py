"""Prometheus and Grafana beside a run: their configuration, and what is wrong in one sentence.

Small programs stand in for both. tests/cluster/test_dashboards.py runs a real Prometheus.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.local import ROOT
from cluster.monitor import (
    GRAFANA_NAMES,
    MONITORING,
    MonitorError,
    choose_port,
    find_program,
    grafana_command,
    main,
    prometheus_command,
    running,
)

pytestmark = pytest.mark.unit

SERVER = f"""#!{sys.executable} -SE
import configparser, http.server, sys
options = dict(part.lstrip("-").partition("=")[::2] for part in sys.argv[1:])
if "web.listen-address" in options:
    host, _, port = options["web.listen-address"].partition(":")
else:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(options["config"])
    host, port = settings["server"]["http_addr"], settings["server"]["http_port"]
http.server.SimpleHTTPRequestHandler.do_GET = lambda self: (self.send_response(200), self.end_headers())
http.server.HTTPServer((host, int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
BROKEN = f"#!{sys.executable} -SE\nimport sys\nsys.exit('starting\\nbad flag')\n"


def program(file: Path, text: str) -> str:
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    file = tmp_path / "targets.json"
    file.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": ["127.0.0.1:1", "127.0.0.1:2"]}]))
    return file


def used_port() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


def test_prometheus_reads_the_targets_and_the_alerts_on_loopback(tmp_path: Path, targets: Path) -> None:
    command = prometheus_command("/bin/prometheus", tmp_path, targets, 1234)
    assert command[0] == "/bin/prometheus"
    assert "--web.listen-address=127.0.0.1:1234" in command
    assert f"--storage.tsdb.path={tmp_path}/prometheus" in command
    config = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [str(targets)]
    assert config["rule_files"] == [str(MONITORING / "rules.yml")]
    assert config["global"]["scrape_interval"] == "10s"


def test_grafana_has_both_folders_of_dashboards_on_loopback(tmp_path: Path) -> None:
    ray, folder = tmp_path / "ray", tmp_path / "folder"
    ray.mkdir()
    folder.mkdir()
    (ray / "default.json").write_text("{}")
    command = grafana_command("/bin/grafana", folder, "http://127.0.0.1:9090", ray, 1234)
    assert command[:2] == ["/bin/grafana", "server"]
    assert f"--config={folder}/grafana.ini" in command
    settings = ConfigParser(interpolation=None)
    settings.read(folder / "grafana.ini")
    assert (settings["server"]["http_addr"], settings["server"]["http_port"]) == ("127.0.0.1", "1234")
    assert settings["security"]["allow_embedding"] == "True"
    provisioning = Path(settings["paths"]["provisioning"])
    providers = yaml.safe_load((provisioning / "dashboards" / "all.yaml").read_text())["providers"]
    folders = {provider["folder"]: Path(provider["options"]["path"]) for provider in providers}
    assert (folders["Toolformer"] / "toolformer.json").is_file()
    assert (folders["Ray"] / "default.json").is_file()
    assert Path(settings["dashboards"]["default_home_dashboard_path"]).is_file()
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"


def test_the_older_name_of_grafana_takes_no_command(tmp_path: Path) -> None:
    command = grafana_command("/bin/grafana-server", tmp_path, "http://127.0.0.1:9090", None, 1234)
    assert command[1].startswith("--homepath=")


def test_the_files_of_an_unpacked_grafana_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "defaults.ini").touch()
    (tmp_path / "bin").mkdir()
    grafana = program(tmp_path / "bin" / "grafana", "")
    assert f"--homepath={tmp_path}" in grafana_command(grafana, tmp_path, "", None, 1)


def test_a_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MonitorError, match=r"^prometheus was not found: .*apt install prometheus.*--prometheus"
    ):
        find_program("prometheus", ["prometheus"], None)
    with pytest.raises(MonitorError, match=r"^/no/such was not found: .*--grafana"):
        find_program("grafana", ["grafana"], "/no/such")
    found = program(tmp_path / "grafana-server", BROKEN)
    assert find_program("grafana", GRAFANA_NAMES, None) == found


def test_ports() -> None:
    with used_port() as used:
        port = used.getsockname()[1]
        with pytest.raises(
            MonitorError, match=f"^--prometheus-port {port}: Address already in use; name another"
        ):
            choose_port("--prometheus-port", port, 1)
        free = choose_port("--prometheus-port", None, port)
    assert free != port
    with pytest.raises(MonitorError, match=r"^--grafana-port 70000: there are ports up to 65535"):
        choose_port("--grafana-port", 70_000, 1)
    assert choose_port("--prometheus-port", None, port) == port  # the usual one, if it is free
    assert choose_port("--prometheus-port", free, port) == free


def test_a_program_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    broken = program(tmp_path / "prometheus", BROKEN)
    with (
        pytest.raises(MonitorError, match=r"^Prometheus does not start: bad flag$"),
        running("Prometheus", [broken], "http://127.0.0.1:1", tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "named"), [(None, "No such file"), ("[{]", "Expecting"), ('[{"labels": {}}]', "targets")]
)
def test_unreadable_targets_are_named(
    content: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "targets"
    if content is not None:
        file.write_text(content)
    prometheus = program(tmp_path / "prometheus", SERVER)
    assert main(["--targets", str(file), "--prometheus", prometheus]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m cluster.monitor: --targets {file}: not a list of endpoints")
    assert named in error


@contextmanager
def monitor(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command with its temporary folder in tmp_path/tmp; it has ended after the block."""
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "cluster.monitor", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_run_until_ctrl_c_and_leave_nothing(
    number: signal.Signals, tmp_path: Path, targets: Path
) -> None:
    program(tmp_path / "prometheus", SERVER)
    program(tmp_path / "grafana-server", SERVER)
    with monitor(tmp_path, "--targets", str(targets)) as process:
        assert process.stdout is not None
        lines = []
        while "Ctrl-C ends both\n" not in lines:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()
        assert lines[0] == f"watching 2 endpoints of {targets}\n"
        urls = [line.split()[1] for line in lines if line.startswith(("Prometheus ", "Grafana "))]
        for url in urls:
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url) as response:
                assert response.status == 200
        children = psutil.Process(process.pid).children()
        assert len(urls) == len(children) == 2
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert not any(child.is_running() for child in children)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_program_that_ends_ends_the_other(tmp_path: Path, targets: Path) -> None:
    program(tmp_path / "prometheus", SERVER)
    shutil.copy(tmp_path / "prometheus", tmp_path / "grafana")
    text = (tmp_path / "grafana").read_text()
    (tmp_path / "grafana").write_text(
        text.replace("dict(part", "dict(part", 1).replace("sys.argv[1:]", "sys.argv[2:]")
    )
    with monitor(tmp_path, "--targets", str(targets)) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "Ctrl-C ends both\n":
            assert process.poll() is None
        prometheus, grafana = sorted(
            psutil.Process(process.pid).children(), key=lambda one: one.create_time()
        )
        grafana.kill()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (
        2,
        "python -m cluster.monitor: Grafana has ended with exit code -9\n",
    )
    assert not prometheus.is_running()
