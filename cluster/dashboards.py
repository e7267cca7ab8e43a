"""Check the dashboard's panels: python -m cluster.dashboards --prometheus http://127.0.0.1:9090

In: the address of a Prometheus that scrapes a Ray cluster, while annotate runs or some minutes
later. Out: a line per panel on standard output with the number of series that each query returned
in the last minutes. Exit code 1 if Prometheus refuses a query, or if a query returns nothing and
its panel has no `noValue` (the text that Grafana shows instead, for panels that may be empty: GPUs,
errors); 2 if there is no Prometheus. Without --prometheus, checks only that the queries name
existing metrics and labels. The dashboard is read from its file; Grafana is not needed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotation.metrics import METRICS as ANNOTATION_METRICS
from pipeline.finetuning.watching.metrics import METRICS as TRAINING_METRICS

MONITORING = Path(__file__).parent / "monitoring"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "toolformer.json"
RULES = MONITORING / "rules.yml"
VARIABLES = {"$__rate_interval": "1m", "$run": ".*"}

RAY_METRICS: dict[str, frozenset[str]] = {
    name: frozenset(labels.split())
    for name, labels in {
        "ray_data_num_alive_actors": "dataset operator",
        "ray_data_num_pending_actors": "dataset operator",
        "ray_data_num_restarting_actors": "dataset operator",
        "ray_node_gram_used": "GpuIndex GpuDeviceName",
        "ray_node_gpus_utilization": "GpuIndex GpuDeviceName",
        "ray_serve_deployment_processing_latency_ms_bucket": "deployment application replica route le",
        "ray_serve_deployment_queued_queries": "deployment application handle actor_id",
        "ray_serve_deployment_replica_healthy": "deployment application replica",
        "ray_serve_deployment_request_counter_total": "deployment application replica route",
        "ray_serve_replica_processing_queries": "deployment application replica",
    }.items()
}
"""Ray 2.60's own metrics that the dashboard uses, with their labels."""
PIPELINE_METRICS: dict[str, frozenset[str]] = {
    name: frozenset({"run", *metric.labels, *(["le"] if name.endswith("_bucket") else [])})
    for metric in (*ANNOTATION_METRICS, *TRAINING_METRICS)
    for name in metric.exported
}
_PROMETHEUS_LABELS = frozenset({"instance", "job"})  # on every metric


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: pairs of a query and the legend of its series, and whether it may be empty."""

    title: str
    queries: tuple[tuple[str, str], ...]
    may_be_empty: bool


def read_panels(path: Path = DASHBOARD) -> list[Panel]:
    """The panels of a dashboard that show metrics."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return [
        Panel(
            title=panel["title"],
            queries=tuple((target["expr"], target.get("legendFormat", "")) for target in panel["targets"]),
            may_be_empty="noValue" in panel["fieldConfig"]["defaults"],
        )
        for panel in dashboard["panels"]
        if "targets" in panel  # not rows and texts
    ]


def problems(panel: Panel) -> Iterator[str]:
    """Metrics that nobody exports, and labels that a metric does not have."""
    known = RAY_METRICS | PIPELINE_METRICS
    for query, legend in panel.queries:
        bare = re.sub(r'"[^"]*"', '""', query)
        names = set(re.findall(r"\bray_\w+", bare))
        yield from (f"{panel.title}: there is no metric {name}" for name in sorted(names - known.keys()))
        for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", bare):
            labels = set(re.findall(r"(\w+)\s*[=!]", selector))
            yield from _unknown(panel, labels, known.get(name, labels), name)
        groups = re.findall(r"\bby \(([^)]*)\)", bare)
        grouped_by = {label for group in groups for label in re.split(r",\s*", group)}
        for name in names & known.keys():
            yield from _unknown(panel, grouped_by, known[name], name)
        yield from _unknown(panel, set(re.findall(r"\{\{(\w+)\}\}", legend)), grouped_by, legend)


def _unknown(panel: Panel, labels: set[str], known: set[str] | frozenset[str], what: str) -> Iterator[str]:
    yield from (
        f"{panel.title}: {what} has no label {name}" for name in sorted(labels - known - _PROMETHEUS_LABELS)
    )


def with_values(query: str) -> str:
    """The query with values for Grafana's variables."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def count_series(address: str, query: str, minutes: float) -> int:
    """How many series `query` had. ValueError if it is refused, OSError without Prometheus."""
    end = time.time()
    parameters = {
        "query": with_values(query),
        "start": end - 60 * minutes,
        "end": end,
        "step": max(1.0, minutes / 100),
    }
    url = f"{address.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            series: list[Mapping[str, Any]] = json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{query}: {error.read().decode(errors='replace')[:300]}") from error
    return sum(any(value != "NaN" for _, value in each["values"]) for each in series)


def check_panel(panel: Panel, address: str, minutes: float) -> tuple[str, bool]:
    """The line to print for a panel, and whether the panel is all right."""
    try:
        numbers = [count_series(address, query, minutes) for query, _ in panel.queries]
    except ValueError as error:
        return f"refused  {panel.title}: {error}", False
    if all(numbers):
        return f"data     {panel.title}: {' + '.join(map(str, numbers))} series", True
    if panel.may_be_empty:
        return f"none     {panel.title}: nothing to show", True
    return f"NO DATA  {panel.title}: {' + '.join(map(str, numbers))} series", False


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.dashboards", description="Check the dashboard.")
    parser.add_argument("--prometheus", metavar="URL", help="run every panel's queries there")
    parser.add_argument("--minutes", type=float, default=10, help="how far to look back (%(default)s)")
    arguments = parser.parse_args(argv)
    panels = read_panels()
    if found := [problem for panel in panels for problem in problems(panel)]:
        print("\n".join(found))
        return 1
    if arguments.prometheus is None:
        print(f"{len(panels)} panels: every metric and label exists")
        return 0
    all_right = True
    for panel in panels:
        try:
            line, right = check_panel(panel, arguments.prometheus, arguments.minutes)
        except OSError as error:
            print(f"python -m cluster.dashboards: {arguments.prometheus}: {error}", file=sys.stderr)
            return 2
        print(line)
        all_right &= right
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
