"""Does every panel of the dashboard have data? python -m cluster.dashboards --prometheus http://127.0.0.1:9090

In: the address of a Prometheus that reads a Ray cluster, during a run of annotate or some minutes after one.
Out: one line a panel on standard output: how many series each query returned in the last minutes. Exit code 1
if a query is refused, or returns nothing where the panel has no `noValue` (what Grafana shows in its place:
there may be no GPU, and nothing may have gone wrong); 2 if there is no Prometheus. Without --prometheus, only
whether queries name metrics and labels that exist. The dashboard is read as a file; Grafana is not asked.
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

from pipeline.annotation.metrics import METRICS

DASHBOARD = Path(__file__).parent / "monitoring" / "grafana" / "dashboards" / "toolformer.json"
VARIABLES = {"$__rate_interval": "1m", "$run": ".*"}

RAYS: dict[str, frozenset[str]] = {
    name: frozenset(labels.split())
    for name, labels in {
        "ray_node_gram_used": "GpuIndex GpuDeviceName",
        "ray_node_gpus_utilization": "GpuIndex GpuDeviceName",
        "ray_serve_deployment_processing_latency_ms_bucket": "deployment application replica route le",
        "ray_serve_deployment_queued_queries": "deployment application handle actor_id",
        "ray_serve_deployment_replica_healthy": "deployment application replica",
        "ray_serve_deployment_request_counter_total": "deployment application replica route",
        "ray_serve_replica_processing_queries": "deployment application replica",
    }.items()
}
"""Metrics of Ray 2.60 itself that the dashboard uses, and their labels."""
OURS: dict[str, frozenset[str]] = {
    name: frozenset({"run", *metric.labels, *(["le"] if name.endswith("_bucket") else [])})
    for metric in METRICS
    for name in metric.exported
}
_EVERYWHERE = frozenset({"instance", "job"})  # Prometheus's own


@dataclass(frozen=True, slots=True)
class Panel:
    """What a panel asks: pairs of a query and the legend of its series; whether it may be empty."""

    title: str
    queries: tuple[tuple[str, str], ...]
    may_be_empty: bool


def read_panels(path: Path = DASHBOARD) -> list[Panel]:
    """The panels of a dashboard, rows left out."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return [
        Panel(
            title=panel["title"],
            queries=tuple((target["expr"], target.get("legendFormat", "")) for target in panel["targets"]),
            may_be_empty="noValue" in panel["fieldConfig"]["defaults"],
        )
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def faults(panel: Panel) -> Iterator[str]:
    """Metrics that nobody exports, and labels that they do not have."""
    known = RAYS | OURS
    for query, legend in panel.queries:
        bare = re.sub(r'"[^"]*"', '""', query)
        names = set(re.findall(r"\bray_\w+", bare))
        yield from (f"{panel.title}: there is no metric {name}" for name in sorted(names - known.keys()))
        for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", bare):
            asked = set(re.findall(r"(\w+)\s*[=!]", selector))
            yield from _unknown(panel, asked, known.get(name, asked), name)
        groups = [set(re.split(r",\s*", group)) for group in re.findall(r"\bby \(([^)]*)\)", bare)]
        for name in names & known.keys():
            yield from _unknown(panel, set().union(*groups), known[name], name)
        yield from _unknown(panel, set(re.findall(r"\{\{(\w+)\}\}", legend)), set().union(*groups), legend)


def _unknown(panel: Panel, asked: set[str], there: set[str] | frozenset[str], what: str) -> Iterator[str]:
    yield from (f"{panel.title}: {what} has no label {name}" for name in sorted(asked - there - _EVERYWHERE))


def series(address: str, query: str, minutes: float) -> int:
    """How many series `query` had in the last minutes. ValueError if Prometheus refuses it, OSError if there
    is none."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    end = time.time()
    asked = {"query": query, "start": end - 60 * minutes, "end": end, "step": max(1.0, minutes / 100)}
    url = f"{address.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            found: list[Mapping[str, Any]] = json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{query}: {error.read().decode(errors='replace')[:300]}") from error
    return sum(any(value != "NaN" for _, value in one["values"]) for one in found)


def looked_up(panel: Panel, address: str, minutes: float) -> tuple[str, bool]:
    """A panel's line, and whether it is as it should be."""
    try:
        numbers = [series(address, query, minutes) for query, _ in panel.queries]
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
    parser.add_argument("--prometheus", metavar="URL", help="ask it every panel's queries")
    parser.add_argument("--minutes", type=float, default=10, help="how far to look back (%(default)s)")
    arguments = parser.parse_args(argv)
    panels = read_panels()
    if wrong := [fault for panel in panels for fault in faults(panel)]:
        print("\n".join(wrong))
        return 1
    if arguments.prometheus is None:
        print(f"{len(panels)} panels: every metric and label exists")
        return 0
    good = True
    for panel in panels:
        try:
            line, right = looked_up(panel, arguments.prometheus, arguments.minutes)
        except OSError as error:
            print(f"python -m cluster.dashboards: {arguments.prometheus}: {error}", file=sys.stderr)
            return 2
        print(line)
        good &= right
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
