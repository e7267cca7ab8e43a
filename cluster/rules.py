"""The rules of KubeRay 1.7's operator beyond its schema, and the names of its own fields.

Also Kueue's refusals, for an object with the label of a queue.
In: one object parsed from YAML: a RayJob or RayCluster (ray.io/v1), or one of a few other kinds
that belong to a cluster, of which only the outermost fields are checked. Out: one sentence per
problem. The contents of pods are checked against the full definitions, in schemas.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

Object = dict[str, Any]

RAY = "ray.io/v1"
# The operator derives longer names from these, for services and for a RayJob's cluster.
MAX_NAME_LENGTH = {"RayCluster": 53, "RayJob": 47}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_MIN_RAY_FOR_TOKENS = (2, 52)
_AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
# Kueue's label and annotation, and its limit (a workload has at most eight sets of pods before Kueue 0.18).
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
_MAX_QUEUED_GROUPS = 7

_GROUP = "labels rayStartParams resources template"
FIELDS: dict[str, frozenset[str]] = {
    kind: frozenset(names.split())
    for kind, names in {
        "RayJob": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint "
        "entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
        "preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes submissionMode "
        "submitterConfig submitterPodTemplate suspend ttlSecondsAfterFinished",
        "RayCluster": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
        "headGroupSpec headServiceAnnotations historyServerOptions managedBy networkPolicy rayVersion "
        "suspend tlsOptions upgradeStrategy workerGroupSpecs",
        "authOptions": "enableK8sTokenAuth mode secretName",
        "autoscalerOptions": "args command env envFrom idleTimeoutSeconds image imagePullPolicy resources "
        "securityContext upscalingMode version volumeMounts",
        "gcsFaultToleranceOptions": "backend externalStorageNamespace redisAddress redisPassword "
        "redisUsername storage",
        "submitterConfig": "backoffLimit",
        "headGroupSpec": f"{_GROUP} enableIngress headService ingressOptions serviceType",
        "workerGroupSpecs": f"{_GROUP} groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts "
        "priority replicas scaleStrategy suspend",
    }.items()
}
"""KubeRay's own fields, by kind or field. Tests compare them with the definitions."""

_OBJECT = frozenset({"apiVersion", "kind", "metadata", "spec"})
_METADATA = frozenset({"name", "namespace", "labels", "annotations", "finalizers"})
_OTHER_KINDS: dict[str, tuple[str, frozenset[str]]] = {
    kind: (version, frozenset(fields.split()))
    for kind, (version, fields) in {
        "Job": (
            "batch/v1",
            "activeDeadlineSeconds backoffLimit backoffLimitPerIndex completionMode completions "
            "maxFailedIndexes parallelism podFailurePolicy podReplacementPolicy suspend template "
            "ttlSecondsAfterFinished",
        ),
        "NetworkPolicy": ("networking.k8s.io/v1", "podSelector policyTypes ingress egress"),
        "PodMonitor": (
            "monitoring.coreos.com/v1",
            "jobLabel namespaceSelector podMetricsEndpoints podTargetLabels selector",
        ),
        "PrometheusRule": ("monitoring.coreos.com/v1", "groups"),
        "PersistentVolumeClaim": ("v1", "accessModes resources storageClassName volumeMode volumeName"),
        "Service": ("v1", "clusterIP ports selector type"),
        "StatefulSet": (
            "apps/v1",
            "replicas selector serviceName template updateStrategy volumeClaimTemplates",
        ),
    }.items()
}
"""API version and fields of the other kinds that belong to a cluster."""
_ENDPOINT_FIELDS = (
    "authorization basicAuth bearerTokenSecret enableHttp2 filterRunning followRedirects honorLabels "
    "honorTimestamps interval metricRelabelings noProxy oauth2 params path port portNumber proxyUrl "
    "relabelings scheme scrapeTimeout targetPort tlsConfig trackTimestampsStaleness"
)
"""Fields of a PodMonitor's podMetricsEndpoints (Prometheus operator, monitoring.coreos.com/v1)."""
_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})


def problems(document: Object) -> Iterator[str]:
    """What the API server or KubeRay's operator would refuse in one object."""
    for field in ("apiVersion", "kind"):
        if not document.get(field):
            yield f"{field} is missing"
    kind, name = document.get("kind", ""), document.get("metadata", {}).get("name", "")
    max_length = MAX_NAME_LENGTH.get(kind, 63)
    if not _DNS_1035.fullmatch(name) or len(name) > max_length:
        yield f"metadata.name {name!r} is not a DNS-1035 label of at most {max_length} characters"
    yield from _unknown(_OBJECT, "the object", document)
    yield from _unknown(_METADATA, "metadata", document.get("metadata", {}))
    spec, annotations = document.get("spec", {}), document.get("metadata", {}).get("annotations", {})
    if kind not in MAX_NAME_LENGTH and kind not in _OTHER_KINDS:
        yield f"kind {kind} is none of {', '.join(sorted(MAX_NAME_LENGTH | _OTHER_KINDS))}"
        return
    version, fields = _OTHER_KINDS.get(kind) or (RAY, FIELDS[kind])
    if document.get("apiVersion") != version:
        yield f"apiVersion is {document.get('apiVersion')}, not {version}"
    yield from _unknown(fields, "spec", spec)
    if kind == "RayJob":
        yield from _job_problems(spec)
    if QUEUE in document.get("metadata", {}).get("labels", {}):
        yield from _queue_problems(kind, spec, annotations)
    for endpoint in spec.get("podMetricsEndpoints", ()):
        yield from _unknown(frozenset(_ENDPOINT_FIELDS.split()), "podMetricsEndpoints", endpoint)
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec")
    if cluster:
        yield from _unknown(FIELDS["RayCluster"], "the cluster", cluster)
        yield from _cluster_problems(cluster)
        yield from _fault_tolerance_problems(cluster, annotations)


def _unknown(known: frozenset[str], where: str, fields: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{where}: no field is called {name}" for name in sorted(fields.keys() - known))


def _job_problems(spec: Object) -> Iterator[str]:
    shutdown, mode = spec.get("shutdownAfterJobFinishes"), spec.get("submissionMode", "K8sJobMode")
    retries, ttl = spec.get("backoffLimit", 0), spec.get("ttlSecondsAfterFinished", 0)
    yield from _unknown(FIELDS["submitterConfig"], "submitterConfig", spec.get("submitterConfig", {}))
    if ttl < 0 or retries < 0 or spec.get("activeDeadlineSeconds", 1) < 1:
        yield "ttlSecondsAfterFinished and backoffLimit are at least 0, activeDeadlineSeconds at least 1"
    if ttl > 0 and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes: true"
    if shutdown and "deletionRules" in spec.get("deletionStrategy", {}):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if mode == "InteractiveMode" and retries > 0:
        yield "InteractiveMode excludes backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & spec.keys():
        yield "SidecarMode excludes submitterPodTemplate, submitterConfig and clusterSelector"
    if mode != "InteractiveMode" and not spec.get("entrypoint"):
        yield "entrypoint is missing"
    submitter = spec.get("submitterPodTemplate", {}).get("spec", {"restartPolicy": "Never"})
    if submitter.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "submitterPodTemplate: restartPolicy of a job's pod is Never or OnFailure"
    yield from _selector_problems(spec)
    if not _is_mapping(yaml.safe_load, spec.get("runtimeEnvYAML", "{}")):
        yield "runtimeEnvYAML is not a YAML mapping"
    if not _is_mapping(json.loads, spec.get("entrypointResources", "{}")):
        yield "entrypointResources is not a JSON object"


def _queue_problems(kind: str, spec: Object, annotations: Mapping[str, str]) -> Iterator[str]:
    """What Kueue's webhooks refuse."""
    cluster = spec.get("rayClusterSpec") or spec
    if cluster.get("enableInTreeAutoscaling") and annotations.get(ELASTIC) != "true":
        yield f"{QUEUE} excludes enableInTreeAutoscaling without the annotation {ELASTIC}: 'true'"
    if len(cluster.get("workerGroupSpecs", [])) > _MAX_QUEUED_GROUPS:
        yield f"{QUEUE} allows at most {_MAX_QUEUED_GROUPS} workerGroupSpecs"
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield f"{QUEUE} needs shutdownAfterJobFinishes: true"


def _selector_problems(spec: Object) -> Iterator[str]:
    """The job either creates its cluster or selects an existing one."""
    selector = spec.get("clusterSelector")
    if not selector:
        if not spec.get("rayClusterSpec"):
            yield "one of rayClusterSpec and clusterSelector is needed"
        return
    if not selector.get("ray.io/cluster"):
        yield "clusterSelector names the cluster as ray.io/cluster"
    if spec.get("backoffLimit", 0) > 0:
        yield "clusterSelector excludes backoffLimit"
    if spec.get("suspend"):
        yield "clusterSelector excludes suspend"


def _is_mapping(load: Any, text: str) -> bool:
    try:
        return isinstance(load(text), dict)
    except (ValueError, yaml.YAMLError):
        return False


def _cluster_problems(spec: Object) -> Iterator[str]:
    for name in ("authOptions", "autoscalerOptions", "gcsFaultToleranceOptions"):
        yield from _unknown(FIELDS[name], name, spec.get(name, {}))
    autoscaler, autoscales = spec.get("autoscalerOptions", {}), bool(spec.get("enableInTreeAutoscaling"))
    version_2 = autoscales and autoscaler.get("version") == "v2"
    if autoscaler and not autoscales:
        yield "autoscalerOptions without enableInTreeAutoscaling: true have no effect"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
        if not version or (int(version[1]), int(version[2])) < _MIN_RAY_FOR_TOKENS:
            yield "authOptions.mode token needs rayVersion, 2.52.0 or later"
    head = spec.get("headGroupSpec", {})
    yield from _unknown(FIELDS["headGroupSpec"], "headGroupSpec", head)
    yield from (f"headGroupSpec: {problem}" for problem in _group_problems(head, version_2))
    if _AUTOSCALER_V2 in _environment(head) and (not autoscales or "version" in autoscaler):
        yield f"headGroupSpec: {_AUTOSCALER_V2}: use autoscalerOptions.version"
    workers = spec.get("workerGroupSpecs", [])
    names = [group.get("groupName") for group in workers]
    for group in workers:
        name = f"workerGroupSpecs {group.get('groupName')}"
        yield from _unknown(FIELDS["workerGroupSpecs"], name, group)
        yield from (f"{name}: {problem}" for problem in _group_problems(group, version_2))
        yield from (f"{name}: {problem}" for problem in _size_problems(group, autoscales, version_2))
        if names.count(group.get("groupName")) > 1:
            yield f"{name}: the name is used twice"


def _group_problems(group: Object, version_2: bool) -> Iterator[str]:
    pod = group.get("template", {}).get("spec", {})
    containers = pod.get("containers", [])
    if not containers:
        yield "no container"
        return
    if version_2 and pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never or unset with autoscaler v2"
    params = group.get("rayStartParams", {})
    resource_params = [name for name in _RESOURCE_PARAMS if name in params]
    if resource_params and (group.get("resources") or containers[0].get("resources")):
        names = ", ".join(resource_params)
        yield f"rayStartParams {names}: set resources there or in the container, not both"
    if "labels" in params:
        yield "labels belong in the group's own field, not in rayStartParams"
    for key, value in group.get("labels", {}).items():
        if not _LABEL.fullmatch(key.rpartition("/")[2]) or (value and not _LABEL.fullmatch(value)):
            yield f"labels: {key}: {value} is not a Kubernetes label"
    if any(not isinstance(value, str) for value in (params | group.get("resources", {})).values()):
        yield "rayStartParams and resources hold strings: quote the numbers"
    for container in containers:
        yield from _resource_problems(container.get("resources", {}))
    mounts = {
        mount.get("name", "?") for container in containers for mount in container.get("volumeMounts", [])
    }
    volumes = {volume.get("name", "?") for volume in pod.get("volumes", [])}
    if mounts != volumes:
        yield f"volumes and volumeMounts differ: {', '.join(sorted(mounts ^ volumes))}"


def _resource_problems(resources: Object) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in sorted(requests.keys() | limits.keys()):
        if name not in _RESOURCES and "/" not in name:
            yield f"resources: {name} is none of {', '.join(sorted(_RESOURCES))} or VENDOR/NAME"
        if "/" in name and requests.get(name) != limits.get(name):
            yield f"resources: {name}: request and limit must be equal"


def _size_problems(group: Object, autoscales: bool, version_2: bool) -> Iterator[str]:
    minimum, maximum = group.get("minReplicas", 0), group.get("maxReplicas")
    if maximum is None or not 0 <= minimum <= group.get("replicas", minimum) <= maximum:
        yield "0 <= minReplicas <= replicas <= maxReplicas does not hold"
    if "idleTimeoutSeconds" in group and not version_2:
        yield "idleTimeoutSeconds needs autoscaler v2"
    if group.get("suspend") and autoscales:
        yield "a group cannot be suspended while the autoscaler is on"


def _fault_tolerance_problems(spec: Object, annotations: Mapping[str, str]) -> Iterator[str]:
    """GCS fault tolerance must be configured by its options alone."""
    head = spec.get("headGroupSpec", {})
    by_hand = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"} & _environment(head)
    by_hand |= {"redis-password", "redis-username"} & head.get("rayStartParams", {}).keys()
    by_hand |= {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & annotations.keys()
    if by_hand:
        yield f"{', '.join(sorted(by_hand))}: use gcsFaultToleranceOptions"


def _environment(group: Object) -> set[str]:
    """The names of the environment variables of a group's first container, which runs Ray."""
    containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return {variable.get("name", "") for variable in containers[0].get("env", [])}
