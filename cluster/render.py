"""Render all manifests for a user's cluster.

    python -m cluster.render [--values FILE] --output FOLDER

In: the values (values.py) and the plain manifests of this repository, which are what the values in
cluster/values.yaml render to. Out, in FOLDER: ray_job.yaml, ray_cluster.yaml (the same cluster without a
job), trial.yaml, slices.yaml, pod_monitor.yaml, prometheus_rule.yaml, setup/ and ray_up/aws.yaml. Exit code 2
for a wrong value. Only files that this command made are overwritten.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.manifests import KUBERNETES, RAY_JOB, ROOT, documents
from cluster.rules import ELASTIC, QUEUE, Object
from cluster.values import DEFAULTS, Placed, Values
from tools_service.base.errors import ConfigurationError

AWS = ROOT / "cluster" / "aws.yaml"
ALERTS = ROOT / "cluster" / "monitoring" / "rules.yml"
HEADER = "# Made by python -m cluster.render. Change the values and render again, not this file.\n"
_PART_OF = {"app.kubernetes.io/part-of": "toolformer"}
_SMALLER_UNIT = {"Ti": "Gi", "Gi": "Mi", "Mi": "Ki"}


def render(values: Values) -> dict[str, list[Object]]:
    """The objects of each file, by its path in the output folder."""
    files = {str(path.relative_to(KUBERNETES)): _read(path) for path in sorted(KUBERNETES.rglob("*.yaml"))}
    files["ray_job.yaml"] = _read(RAY_JOB)
    (job,), (trial,), (slices,) = files["ray_job.yaml"], files["trial.yaml"], files["slices.yaml"]
    _set_job(job, values)
    _set_trial(trial, values)
    _set_slices(slices, values)
    for ray_job in (job, trial) if values.tls else ():
        ray_job["spec"]["rayClusterSpec"]["tlsOptions"] = {"enabled": True}
    cluster = _ray_cluster(job)
    for queued in (job, cluster, trial, slices):
        _set_queue(queued, values)
    files["ray_cluster.yaml"] = [cluster]
    (claim,) = files["setup/storage.yaml"]
    claim["spec"]["storageClassName"] = values.storage.class_name
    claim["spec"]["resources"]["requests"]["storage"] = values.storage.size
    _set_monitoring(files, values)
    if values.namespace is not None:
        for document in (document for documents in files.values() for document in documents):
            document["metadata"]["namespace"] = values.namespace
    files["ray_up/aws.yaml"] = [_aws(values)]  # apart: kubectl reads all files of a folder
    return files


def _read(path: Path) -> list[Object]:
    """The objects in a file, each part an object of its own: YAML's aliases share theirs."""
    separate: list[Object] = json.loads(json.dumps(documents(path)))
    return separate


def _set_job(job: Object, values: Values) -> None:
    options: dict[str, Any] = {"RECIPE": None if values.job.recipe == "paper" else values.job.recipe}
    options |= {"MODEL": values.job.model, "GPUS": values.gpu.gpus, "TOOL_REPLICAS": values.tool_replicas}
    options |= {"WORKERS": values.job.workers, "MICRO_BATCH": values.micro_batch}
    variables = [f"{name}={value}" for name, value in options.items() if value is not None]
    job["metadata"]["name"] = f"toolformer-{values.job.recipe.replace('_', '-')}"
    job["spec"]["entrypoint"] = shlex.join(["env", *variables, "bash", "cluster/paper.sh", "/shared"])
    _set_image(job["spec"]["submitterPodTemplate"]["spec"], "cpu", values)
    cluster = job["spec"]["rayClusterSpec"]
    _set_pods(cluster["headGroupSpec"], values.head, "cpu", values)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    _set_pods(groups["gpu"], values.gpu, "cuda", values, values.gpu.per_node)
    _set_pods(groups["tools"], values.tools, "cuda", values, values.tools.per_node)
    _set_pods(groups["cpu"], values.cpu, "cpu", values)
    groups["cpu"]["minReplicas"] = values.cpu.min_nodes
    for name, nodes in (("gpu", values.gpu), ("tools", values.tools), ("cpu", values.cpu)):
        groups[name]["maxReplicas"] = nodes.nodes
    if values.fixed_size:
        _fix_size(cluster)


def _fix_size(cluster: Object) -> None:
    """Every group has its largest size from the start, without Ray's autoscaler."""
    cluster["enableInTreeAutoscaling"] = False
    del cluster["autoscalerOptions"]
    for group in cluster["workerGroupSpecs"]:
        group.pop("idleTimeoutSeconds", None)
        group["replicas"] = group["minReplicas"] = group["maxReplicas"]


def _set_trial(job: Object, values: Values) -> None:
    _set_image(job["spec"]["submitterPodTemplate"]["spec"], "cpu", values)
    _set_pods(job["spec"]["rayClusterSpec"]["headGroupSpec"], values.trial, "cuda", values, gpus=1)


def _set_slices(job: Object, values: Values) -> None:
    job["spec"] |= {"completions": values.slices.number, "parallelism": values.slices.nodes}
    _set_pods(job["spec"], values.gpu, "cuda", values, values.gpu.per_node)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["command"][-1] = str(values.slices.number)
    (gpus,) = (variable for variable in container["env"] if variable["name"] == "GPUS")
    gpus["value"] = str(values.gpu.per_node)
    (memory,) = (volume for volume in pod["volumes"] if volume["name"] == "memory")
    memory["emptyDir"]["sizeLimit"] = _quarter(values.gpu.pod.memory)


def _quarter(size: str) -> str:
    number, unit = int(size[:-2]), size[-2:]
    return f"{number * 256}{_SMALLER_UNIT[unit]}" if number % 4 else f"{number // 4}{unit}"


def _set_pods(group: Object, placed: Placed, image: str, values: Values, gpus: int = 0) -> None:
    """Image, size and nodes of the pods of a Ray group or a Job."""
    pod = group["template"]["spec"]
    _set_image(pod, image, values)
    size = {"cpu": str(placed.pod.cpu), "memory": placed.pod.memory, "ephemeral-storage": placed.pod.disk}
    if gpus:
        size[values.gpu_resource] = str(gpus)
        if "rayStartParams" in group and not values.gpu_resource.endswith("gpu"):
            group["resources"] = {"GPU": str(gpus)}  # KubeRay and Ray recognise no other name
    pod["containers"][0]["resources"] = {"requests": size, "limits": dict(size)}
    tolerations = [each.model_dump(by_alias=True, exclude_unset=True) for each in placed.tolerations]
    for name, value in (("nodeSelector", placed.node_selector), ("tolerations", tolerations)):
        pod.pop(name, None)
        if value:
            pod[name] = value


def _set_image(pod: Object, target: str, values: Values) -> None:
    pod["containers"][0]["image"] = f"{values.image.repository}:{values.image.tag}-{target}"
    if values.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in values.image.pull_secrets]


def _ray_cluster(job: Object) -> Object:
    """The cluster of the job, for interactive work; it exists until it is deleted."""
    metadata = {"name": "toolformer", "labels": dict(_PART_OF)}
    spec = json.loads(json.dumps(job["spec"]["rayClusterSpec"]))
    return {"apiVersion": job["apiVersion"], "kind": "RayCluster", "metadata": metadata, "spec": spec}


def _set_queue(document: Object, values: Values) -> None:
    """Kueue starts the object when its queue has room, and removes `suspend`."""
    queue = values.queue
    if queue.name is None:
        return
    document["spec"]["suspend"] = True
    document["metadata"]["labels"][QUEUE] = queue.name
    if queue.priority_class is not None:
        document["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = queue.priority_class
    if (document["spec"].get("rayClusterSpec") or document["spec"]).get("enableInTreeAutoscaling"):
        document["metadata"]["annotations"] = {ELASTIC: "true"}


def _set_monitoring(files: dict[str, list[Object]], values: Values) -> None:
    if ALERTS.exists():
        alerts = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
        rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
        rule |= {"metadata": {"name": "toolformer", "labels": dict(_PART_OF)}, "spec": alerts}
        files["prometheus_rule.yaml"] = [rule]
    for name in files.keys() & {"pod_monitor.yaml", "prometheus_rule.yaml"}:
        files[name][0]["metadata"]["labels"]["release"] = values.prometheus.release
    for selector in _values(files["setup/network.yaml"], "namespaceSelector"):
        if selector:  # the others select all namespaces
            selector["matchLabels"]["kubernetes.io/metadata.name"] = values.prometheus.namespace


def _values(document: Any, name: str) -> Iterator[Any]:
    """The values of all keys called `name`, at any depth."""
    if isinstance(document, dict):
        yield from (value for key, value in document.items() if key == name)
    for inner in document.values() if isinstance(document, dict) else document:
        if isinstance(inner, dict | list):
            yield from _values(inner, name)


def _aws(values: Values) -> Object:
    (config,) = _read(AWS)
    config["provider"] |= {"region": values.aws.region, "availability_zone": values.aws.zone}
    types = config["available_node_types"]
    for name, instance in values.aws.instances:
        types[name]["node_config"] = {"InstanceType": instance, "ImageId": values.aws.image}
    groups = {"gpu": values.gpu, "tools": values.tools, "cpu": values.cpu}
    for name, group in groups.items():
        types[name]["max_workers"] = group.nodes
    types["cpu"]["min_workers"] = values.cpu.min_nodes
    for name in ("gpu", "tools"):
        types[name]["resources"] = {"GPU": getattr(values, name).per_node}
    config["max_workers"] = sum(group.nodes for group in groups.values())
    config["setup_commands"] = [
        re.sub(r"fs-0+\.[\w.-]+", values.aws.file_system, command) for command in config["setup_commands"]
    ]
    return config


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def write(files: dict[str, list[Object]], folder: Path) -> None:
    """ConfigurationError instead of replacing a file that this command did not make."""
    for path in (folder / name for name in files):
        if path.exists() and not path.read_bytes().startswith(HEADER.encode()):
            raise ConfigurationError(
                f"--output {folder}: {path} was not made by this command; name another folder"
            )
    for name, objects in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
        path.write_text(HEADER + text, encoding="utf-8")


def placeholders(values: Values) -> list[str]:
    """The names of values that no cluster has as they are."""
    given = {
        "image.repository": "example.com" in values.image.repository,
        "storage.className": values.storage.class_name == "shared-files",
    }
    return [name for name, is_placeholder in given.items() if is_placeholder]


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.render", description="Render all manifests for a cluster."
    )
    parser.add_argument("--values", type=Path, default=DEFAULTS, help="YAML over cluster/values.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    arguments = parser.parse_args(argv)
    try:
        values = Values.read(arguments.values)
        files = render(values)
        write(files, arguments.output)
    except (ConfigurationError, OSError) as error:
        print(f"python -m cluster.render: {error}", file=sys.stderr)
        return 2
    print(f"{len(files)} files in {arguments.output}")
    for name in placeholders(values):
        print(f"{name} is still the placeholder of cluster/values.yaml: name yours", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
