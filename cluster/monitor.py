"""Prometheus and Grafana beside a run on this machine: python -m cluster.monitor

In: a Ray cluster whose head runs on this machine (RAY_ADDRESS, --address, or the newest one), and the
programs `prometheus` and, if there is one, `grafana` on PATH. Out: Prometheus with this project's alerts
and Grafana with this project's dashboard and Ray's, on loopback only, until Ctrl-C. Their files are in a
folder that is removed at the end. Nothing is downloaded. On Kubernetes: docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from cluster.running_clusters import NoClusterError, RunningCluster, chosen_cluster, running_clusters

MONITORING = Path(__file__).parent / "monitoring"
PROMETHEUS_PORT, GRAFANA_PORT = 9090, 3000  # where Ray's dashboard looks for them
GRAFANA_NAMES = ("grafana", "grafana-server")
GRAFANA_HOMES = ("/usr/share/grafana", "/opt/homebrew/opt/grafana/share/grafana")

_LOOPBACK = "127.0.0.1"
_START_TIMEOUT_S = 60.0
_POLL_S = 0.2
_END_TIMEOUT_S = 10.0
_INSTALL = {
    "prometheus": "install it (Debian and Ubuntu: apt install prometheus) or name its file with --prometheus",
    "grafana": "install it (https://grafana.com/docs) or name its file with --grafana",
}


class MonitorError(Exception):
    """A missing program, a used port, an unreadable file, or a program that does not start."""


def find_program(program: str, names: Sequence[str], given: str | None) -> str:
    """The file that is given, or the first of `names` on PATH. MonitorError, which says how to get it."""
    found = next(filter(None, map(shutil.which, [given] if given else names)), None)
    if found is None:
        raise MonitorError(f"{given or program} was not found: {_INSTALL[program]}")
    return found


def choose_port(option: str, given: int | None, usual: int) -> int:
    """The given port, else the usual one, else a free one. MonitorError if the given one cannot be used."""
    if given is None:
        return usual if _problem(usual) is None else _free_port()
    if problem := _problem(given):
        raise MonitorError(f"{option} {given}: {problem}; name another port, or leave the option out")
    return given


def _problem(port: int) -> str | None:
    """Why a program cannot listen at the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as both programs do
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            return error.strerror or str(error)
        except OverflowError:
            return "there are ports up to 65535"
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def prometheus_command(program: str, folder: Path, targets: Path, port: int) -> list[str]:
    """Write the configuration into `folder`; return the command that starts Prometheus."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(targets)]
    config["rule_files"] = [str(MONITORING / "rules.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address={_LOOPBACK}:{port}",
        "--log.level=warn",
    ]


def grafana_command(program: str, folder: Path, prometheus: str, ray: Path | None, port: int) -> list[str]:
    """Write configuration and dashboards into `folder`; return the command that starts Grafana.

    `prometheus` is its URL, `ray` the folder of Ray's own dashboards.
    """
    provisioning, data = folder / "provisioning", folder / "grafana"
    dashboards = MONITORING / "grafana" / "dashboards"
    providers = [_provider("Toolformer", dashboards)]
    if ray is not None and ray.is_dir():
        providers.append(_provider("Ray", Path(shutil.copytree(ray, folder / "ray_dashboards"))))
    source = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    sources = yaml.safe_load(source.read_text(encoding="utf-8"))
    sources["datasources"][0]["url"] = prometheus
    _write_yaml(provisioning / "dashboards" / "all.yaml", {"apiVersion": 1, "providers": providers})
    _write_yaml(provisioning / "datasources" / "prometheus.yaml", sources)
    settings = ConfigParser(interpolation=None)
    settings.read_dict(
        {
            "server": {"http_addr": _LOOPBACK, "http_port": port},
            "paths": {
                "data": data,
                "logs": data / "logs",
                "plugins": data / "plugins",
                "provisioning": provisioning,
            },
            # Nobody is an administrator: the usual password would make every user of the machine one.
            "auth": {"disable_login_form": True},
            "auth.basic": {"enabled": False},
            "auth.anonymous": {"enabled": True, "org_role": "Viewer"},
            "security": {
                "disable_initial_admin_creation": True,
                "allow_embedding": True,  # Ray's dashboard shows its panels
            },
            "analytics": dict.fromkeys(
                ("reporting_enabled", "check_for_updates", "check_for_plugin_updates"), False
            ),
            "news": {"news_feed_enabled": False},
            "dashboards": {"default_home_dashboard_path": dashboards / "toolformer.json"},
        }
    )
    with (folder / "grafana.ini").open("w", encoding="utf-8") as file:
        settings.write(file)
    server = ["server"] if Path(program).name == "grafana" else []
    return [program, *server, f"--homepath={_grafana_home(program)}", f"--config={folder}/grafana.ini"]


def _provider(name: str, path: Path) -> dict[str, object]:
    return {"name": name, "folder": name, "type": "file", "options": {"path": str(path)}}


def _write_yaml(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def _grafana_home(program: str) -> Path:
    """The folder of Grafana's own files: beside an unpacked archive's bin, or that of the packages."""
    unpacked = Path(program).resolve().parents[1]
    homes = [unpacked, *map(Path, GRAFANA_HOMES)]
    return next((home for home in homes if (home / "conf" / "defaults.ini").is_file()), unpacked)


@contextmanager
def running(name: str, command: Sequence[str], ready: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers the URL `ready`, during the block. MonitorError if it does not start."""
    with log.open("wb") as output, ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)
        )
        stack.callback(_end, process)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise MonitorError(f"{name} does not start: {last[0] if last else command[0]}")
            time.sleep(_POLL_S)
        yield process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:  # afterwards, its id may be another's
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def watch(arguments: argparse.Namespace, folder: Path) -> None:
    """Start both programs, print where they are, and wait. MonitorError if something is missing."""
    prometheus = find_program("prometheus", ["prometheus"], arguments.prometheus)
    grafana = None
    if arguments.grafana or any(map(shutil.which, GRAFANA_NAMES)):
        grafana = find_program("grafana", GRAFANA_NAMES, arguments.grafana)
    port = choose_port("--prometheus-port", arguments.prometheus_port, PROMETHEUS_PORT)
    grafana_port = choose_port("--grafana-port", arguments.grafana_port, GRAFANA_PORT)
    cluster, targets = _watched(arguments)
    url = f"http://{_LOOPBACK}:{port}"
    with ExitStack() as stack:
        command = prometheus_command(prometheus, folder, targets, port)
        processes = {
            "Prometheus": stack.enter_context(
                running("Prometheus", command, f"{url}/-/ready", folder / "prometheus.log")
            )
        }
        _say("Prometheus", f"{url}/alerts")
        if grafana is None:
            print("no Grafana on PATH: no dashboards (--grafana names its file)", flush=True)
        else:
            grafana_url = f"http://{_LOOPBACK}:{grafana_port}"
            command = grafana_command(grafana, folder, url, cluster and cluster.dashboards, grafana_port)
            processes["Grafana"] = stack.enter_context(
                running("Grafana", command, f"{grafana_url}/api/health", folder / "grafana.log")
            )
            _say("Grafana", grafana_url)
            _warn_of_ports(port, grafana_port)
        print("Ctrl-C ends both", flush=True)
        _wait(processes, cluster)


def _watched(arguments: argparse.Namespace) -> tuple[RunningCluster | None, Path]:
    """The cluster to watch, unless a file was named, and the file with its endpoints."""
    if arguments.targets is not None:
        targets: Path = arguments.targets.resolve()
        try:
            listed = [target for group in json.loads(targets.read_text()) for target in group["targets"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MonitorError(
                f"--targets {targets}: not a list of endpoints for Prometheus: {error}"
            ) from None
        print(f"watching {len(listed)} endpoints of {targets}", flush=True)
        return None, targets
    clusters = running_clusters()
    cluster = chosen_cluster(arguments.address, clusters)
    print(f"watching the Ray cluster at {cluster.address} ({cluster.session})", flush=True)
    if others := [other.address for other in clusters if other.address != cluster.address]:
        print(f"not watched: {', '.join(others)} (--address names one)", flush=True)
    return cluster, cluster.targets


def _say(what: str, where: str) -> None:
    print(f"{what:11} {where}", flush=True)


def _warn_of_ports(prometheus: int, grafana: int) -> None:
    if (prometheus, grafana) != (PROMETHEUS_PORT, GRAFANA_PORT):
        print(
            "Ray's dashboard shows graphs of a cluster that was started with "
            f"RAY_PROMETHEUS_HOST=http://{_LOOPBACK}:{prometheus} RAY_GRAFANA_HOST=http://{_LOOPBACK}:{grafana}",
            flush=True,
        )


def _wait(processes: Mapping[str, subprocess.Popen[bytes]], cluster: RunningCluster | None) -> None:
    """Return never: Ctrl-C ends it. MonitorError if one of the processes ends."""
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise MonitorError(f"{name} has ended with exit code {process.returncode}")
        if cluster is not None and not cluster.process.is_running():
            print(f"the cluster at {cluster.address} has ended; its metrics stay until Ctrl-C", flush=True)
            cluster = None
        time.sleep(_POLL_S)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.monitor",
        description="Run Prometheus and, where it is installed, Grafana beside a run, on loopback.",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster (RAY_ADDRESS, else the newest here)"
    )
    parser.add_argument(
        "--targets", metavar="FILE", type=Path, help="endpoints in Prometheus's format instead"
    )
    parser.add_argument("--prometheus", metavar="FILE", help="the program (prometheus on PATH)")
    parser.add_argument("--grafana", metavar="FILE", help="the program (grafana or grafana-server on PATH)")
    parser.add_argument(
        "--prometheus-port", metavar="N", type=int, help=f"({PROMETHEUS_PORT}, else a free one)"
    )
    parser.add_argument("--grafana-port", metavar="N", type=int, help=f"({GRAFANA_PORT}, else a free one)")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="monitor-", ignore_cleanup_errors=True) as folder:
            watch(arguments, Path(folder))
    except KeyboardInterrupt:
        return 0
    except (MonitorError, NoClusterError) as error:
        print(f"python -m cluster.monitor: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
