"""Values of several clusters, over cluster/values.yaml, and what they render to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.render import render
from cluster.rules import Object
from cluster.values import Values

_SPOT = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
VARIANTS: dict[str, Any] = {
    "default": {},
    "1 x 1": {
        "job": {"recipe": "single_gpu"},
        "gpu": {"perNode": 1, "pod": {"cpu": 8, "memory": "30Gi", "disk": "64Gi"}},
        "tools": {"nodes": 1},
        "cpu": {"nodes": 2},
        "slices": {"number": 4, "nodes": 1},
    },
    "2 x 4 in a queue": {
        "namespace": "research",
        "image": {"repository": "registry.yours.org:5000/toolformer", "tag": "1.2", "pullSecrets": ["login"]},
        "gpu": {"nodes": 2, "perNode": 4},
        "cpu": {"nodes": 2},
        "queue": {"name": "user-queue", "priorityClass": "batch"},
        "prometheus": {"namespace": "observability", "release": "kube-prometheus-stack"},
    },
    "4 x 8 on spot nodes": {
        "gpu": {
            "nodes": 4,
            "nodeSelector": {"cloud.google.com/gke-spot": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, _SPOT],
        },
        "head": {"nodeSelector": {"pool": "stable"}},
        "queue": {"name": "user-queue", "elastic": True},
        "tls": True,
    },
    "24 shares of GPUs": {
        "gpuResource": "nvidia.com/mig-3g.40gb",
        "gpu": {"nodes": 3},
        "job": {"workers": 16, "model": "/shared/models/gpt-j"},
    },
}


def values_of(folder: Path, changes: Any) -> Values:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(changes))
    return Values.read(path)


def rendered(folder: Path, variant: str) -> dict[str, list[Object]]:
    return render(values_of(folder, VARIANTS[variant]))


def groups_of(job: Object) -> dict[str, Object]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", [])}
    return {"head": cluster["headGroupSpec"]} | groups


def limits(group: Object) -> dict[str, str]:
    found: dict[str, str] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return found
