"""Check manifests before a cluster refuses them: python -m cluster.manifests [--crds FOLDER] FILE…

In: YAML files with RayJob and RayCluster objects (ray.io/v1). Out: one line per fault on standard output,
exit code 1 if there is any. Two kinds of check: the rules that KubeRay's controller adds to its schema
(always), and the schema itself with unknown fields refused, from the folder of custom resource definitions
named by --crds (KubeRay's config/crd/bases). Objects of other kinds are only looked at for apiVersion, kind
and name.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

RAY = "ray.io/v1"
# The operator appends what it makes (services, a RayJob's cluster) to these names.
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")


def faults(document: Object) -> Iterator[str]:
    """What the API server or KubeRay's controller would refuse in one object, beyond the schema."""
    for field in ("apiVersion", "kind"):
        if not document.get(field):
            yield f"{field} is missing"
    kind, name = document.get("kind", ""), document.get("metadata", {}).get("name", "")
    longest = LONGEST_NAME.get(kind, 63)
    if not _DNS_1035.fullmatch(name) or len(name) > longest:
        yield f"metadata.name {name!r} is not a DNS-1035 label of at most {longest} characters"
    if kind in LONGEST_NAME and document.get("apiVersion") != RAY:
        yield f"apiVersion is {document.get('apiVersion')}, not {RAY}"
    spec = document.get("spec", {})
    if kind == "RayJob":
        yield from _job_faults(spec)
    if kind == "RayCluster":
        yield from _cluster_faults(spec)


def _job_faults(spec: Object) -> Iterator[str]:
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes: true"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode excludes backoffLimit"
    if spec.get("clusterSelector"):
        if spec.get("backoffLimit", 0) > 0:
            yield "clusterSelector excludes backoffLimit"
        return
    if not spec.get("rayClusterSpec"):
        yield "one of rayClusterSpec and clusterSelector is needed"
        return
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is not a YAML mapping"
    yield from _cluster_faults(spec["rayClusterSpec"])


def _cluster_faults(spec: Object) -> Iterator[str]:
    autoscaler = spec.get("autoscalerOptions", {})
    version_2 = bool(spec.get("enableInTreeAutoscaling")) and autoscaler.get("version") == "v2"
    if autoscaler and not spec.get("enableInTreeAutoscaling"):
        yield "autoscalerOptions without enableInTreeAutoscaling: true do nothing"
    if spec.get("authOptions", {}).get("mode") == "token" and not spec.get("rayVersion"):
        yield "authOptions.mode token needs rayVersion"
    groups = [("headGroupSpec", spec.get("headGroupSpec", {}))]
    groups += [(f"workerGroupSpecs {g.get('groupName')}", g) for g in spec.get("workerGroupSpecs", [])]
    names = [name for name, _ in groups]
    yield from (
        f"{name}: the name is used twice" for name in sorted({n for n in names if names.count(n) > 1})
    )
    for name, group in groups:
        yield from (f"{name}: {fault}" for fault in _group_faults(group, version_2))
        if group is not groups[0][1]:
            yield from (f"{name}: {fault}" for fault in _size_faults(group, version_2))
    yield from _fault_tolerance_faults(spec, groups[0][1])


def _group_faults(group: Object, version_2: bool) -> Iterator[str]:
    pod = group.get("template", {}).get("spec", {})
    containers = pod.get("containers", [])
    if not containers:
        yield "no container"
        return
    if version_2 and pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never or unset with autoscaler v2"
    params = group.get("rayStartParams", {})
    given = [name for name in _RESOURCE_PARAMS if name in params]
    if given and (group.get("resources") or containers[0].get("resources")):
        yield f"rayStartParams {', '.join(given)}: set resources there or in the container, not both"
    if "labels" in params:
        yield "labels belong in the group's own field, not in rayStartParams"
    if any(not isinstance(value, str) for value in (params | group.get("resources", {})).values()):
        yield "rayStartParams and resources hold strings: quote the numbers"
    mounts = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    if mounts != volumes:
        yield f"volumes and volumeMounts differ: {', '.join(sorted(mounts ^ volumes))}"


def _size_faults(group: Object, version_2: bool) -> Iterator[str]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas")
    if most is None or not 0 <= least <= group.get("replicas", least) <= most:
        yield "0 <= minReplicas <= replicas <= maxReplicas does not hold"
    if "idleTimeoutSeconds" in group and not version_2:
        yield "idleTimeoutSeconds needs autoscaler v2"


def _fault_tolerance_faults(spec: Object, head: Object) -> Iterator[str]:
    """GCS fault tolerance is set up by its options alone."""
    containers = head.get("template", {}).get("spec", {}).get("containers", [{}])
    environment = {variable.get("name") for variable in containers[0].get("env", [])} if containers else set()
    if by_hand := environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
        yield f"headGroupSpec: {', '.join(sorted(by_hand))}: use gcsFaultToleranceOptions"
    if "redis-password" in head.get("rayStartParams", {}):
        yield "headGroupSpec: redis-password: use gcsFaultToleranceOptions"


def strict_schema(definition: Object) -> Object:
    """JSON Schema of a custom resource definition's v1: defaulted fields optional, unknown fields refused."""
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: Object = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fields = schema.get("properties")
    kept = {key: value for key, value in schema.items() if not key.startswith("x-")}
    kept = {key: value for key, value in kept.items() if key not in ("description", "default", "format")}
    strict = {
        key: _strict(value) for key, value in kept.items() if key not in ("properties", "required", "enum")
    }
    if "enum" in schema:
        strict["enum"] = schema["enum"]
    if isinstance(fields, dict):
        strict["properties"] = {name: _strict(field) for name, field in fields.items()}
        strict["required"] = [n for n in schema.get("required", []) if "default" not in fields.get(n, {})]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    elif "required" in schema:
        strict["required"] = schema["required"]
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict


def schema_faults(document: Object, schemas: dict[str, Object]) -> Iterator[str]:
    """Where an object departs from its kind's schema, if there is one for it."""
    import jsonschema  # type: ignore[import-untyped]

    if schema := schemas.get(document.get("kind", "")):
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def documents(path: Path) -> list[Object]:
    """The objects in a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def main(argv: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.manifests", description="Check KubeRay manifests."
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--crds", type=Path, help="folder with the definitions (ray.io_*.yaml)")
    arguments = parser.parse_args(argv)
    definitions = (
        [d for path in sorted(arguments.crds.glob("*.yaml")) for d in documents(path)]
        if arguments.crds
        else []
    )
    schemas = {d["spec"]["names"]["kind"]: strict_schema(d) for d in definitions}
    found = [
        f"{path}: {document.get('kind')}: {fault}"
        for path in arguments.files
        for document in documents(path)
        for fault in [*faults(document), *schema_faults(document, schemas)]
    ]
    print("\n".join(found) if found else f"{len(arguments.files)} files: nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
