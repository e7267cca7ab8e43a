"""Every rule of KubeRay's operator reports its violation, and unknown fields are found on every
level."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.manifests import ROOT, documents
from cluster.rules import ELASTIC, FIELDS, QUEUE, problems

pytestmark = pytest.mark.unit

Object = dict[str, Any]


@pytest.fixture
def job() -> Object:
    (document,) = documents(ROOT / "ray_job.yaml")
    separate: Object = json.loads(json.dumps(document))  # YAML aliases share their objects
    return separate


def cluster_of(job: Object) -> Object:
    cluster: Object = job["spec"]["rayClusterSpec"]
    return cluster


def group(job: Object, number: int) -> Object:
    """The head group (0), or a worker group (from 1 on)."""
    cluster = cluster_of(job)
    found: Object = cluster["workerGroupSpecs"][number - 1] if number else cluster["headGroupSpec"]
    return found


def pod(job: Object, number: int) -> Object:
    found: Object = group(job, number)["template"]["spec"]
    return found


def variable(name: str) -> Callable[[Object], object]:
    return lambda d: pod(d, 0)["containers"][0].update(env=[{"name": name, "value": "1"}])


BROKEN: dict[str, tuple[Callable[[Object], object], str]] = {
    # the object
    "name": (lambda d: d["metadata"].update(name="1-Toolformer"), "DNS-1035"),
    "long name": (lambda d: d["metadata"].update(name="t" * 48), "at most 47"),
    "version": (lambda d: d.update(apiVersion="ray.io/v1alpha1"), "not ray.io/v1"),
    "kind": (lambda d: d.update(kind="Rayjob"), "kind Rayjob is none of"),
    "root field": (lambda d: d.update(specs={}), "no field is called specs"),
    # the job
    "job field": (lambda d: d["spec"].update(backOffLimit=1), "no field is called backOffLimit"),
    "ttl": (lambda d: d["spec"].update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished needs"),
    "negative": (lambda d: d["spec"].update(backoffLimit=-1), "at least 0"),
    "suspended": (lambda d: d["spec"].update(suspend=True, shutdownAfterJobFinishes=False), "suspend needs"),
    "two ways to delete": (
        lambda d: d["spec"].update(deletionStrategy={"deletionRules": []}),
        "exclude each",
    ),
    "interactive": (lambda d: d["spec"].update(submissionMode="InteractiveMode"), "InteractiveMode excludes"),
    "sidecar": (lambda d: d["spec"].update(submissionMode="SidecarMode"), "SidecarMode excludes"),
    "nothing to run": (lambda d: d["spec"].pop("entrypoint"), "entrypoint is missing"),
    "submitter": (lambda d: d["spec"]["submitterPodTemplate"]["spec"].pop("restartPolicy"), "a job's pod"),
    "submitter field": (lambda d: d["spec"].update(submitterConfig={"backoff": 1}), "called backoff"),
    "selector": (
        lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "c"}),
        "excludes backoffLimit",
    ),
    "selector's name": (lambda d: d["spec"].update(clusterSelector={"cluster": "c"}), "as ray.io/cluster"),
    "nothing to run on": (lambda d: d["spec"].pop("rayClusterSpec"), "one of rayClusterSpec"),
    "runtime environment": (lambda d: d["spec"].update(runtimeEnvYAML="- a"), "runtimeEnvYAML"),
    "not YAML": (lambda d: d["spec"].update(runtimeEnvYAML="{"), "runtimeEnvYAML"),
    "resources": (lambda d: d["spec"].update(entrypointResources="cpu: 1"), "entrypointResources"),
    # the cluster
    "cluster field": (lambda d: cluster_of(d).update(enableAutoscaling=True), "called enableAutoscaling"),
    "token": (lambda d: cluster_of(d).pop("rayVersion"), "needs rayVersion"),
    "old Ray": (lambda d: cluster_of(d).update(rayVersion="2.51.2"), "needs rayVersion"),
    "auth field": (lambda d: cluster_of(d)["authOptions"].update(modes="token"), "no field is called modes"),
    "autoscaler": (lambda d: cluster_of(d).pop("enableInTreeAutoscaling"), "have no effect"),
    "autoscaler by hand": (variable("RAY_enable_autoscaler_v2"), "use autoscalerOptions.version"),
    "redis by hand": (variable("RAY_REDIS_ADDRESS"), "use gcsFaultToleranceOptions"),
    "redis by annotation": (
        lambda d: d["metadata"].update(annotations={"ray.io/ft-enabled": "true"}),
        "use gcsFaultToleranceOptions",
    ),
    "redis by parameter": (
        lambda d: group(d, 0)["rayStartParams"].update({"redis-password": "x"}),
        "use gcsFaultToleranceOptions",
    ),
    # its groups
    "group field": (lambda d: group(d, 1).update(maxReplica=1), "no field is called maxReplica"),
    "restart": (lambda d: pod(d, 1).update(restartPolicy="Always"), "restartPolicy must be Never"),
    "both": (lambda d: group(d, 0).update(rayStartParams={"num-cpus": "0"}), "not both"),
    "numbers": (lambda d: group(d, 3).update(rayStartParams={"block": 1}), "quote the numbers"),
    "labels": (lambda d: group(d, 1).update(rayStartParams={"labels": "a=b"}), "labels belong"),
    "label": (lambda d: group(d, 1).update(labels={"gpu": "A 100"}), "not a Kubernetes label"),
    "replicas": (lambda d: group(d, 1).update(minReplicas=2), "minReplicas <= replicas"),
    "no maximum": (lambda d: group(d, 3).pop("maxReplicas"), "minReplicas <= replicas"),
    "idle": (lambda d: cluster_of(d)["autoscalerOptions"].pop("version"), "needs autoscaler v2"),
    "suspended group": (lambda d: group(d, 3).update(suspend=True), "cannot be suspended"),
    "no container": (lambda d: pod(d, 3).update(containers=[]), "no container"),
    "volume": (lambda d: pod(d, 3)["volumes"].clear(), "volumes and volumeMounts"),
    "same name": (lambda d: group(d, 3).update(groupName="gpu"), "used twice"),
    "resource": (
        lambda d: pod(d, 1)["containers"][0]["resources"]["limits"].update(memroy="1Gi"),
        "memroy is none of",
    ),
    "GPUs": (
        lambda d: pod(d, 1)["containers"][0]["resources"]["requests"].update({"nvidia.com/gpu": "4"}),
        "must be equal",
    ),
}


QUEUED: dict[str, tuple[Callable[[Object], object], str]] = {
    "autoscaler": (lambda d: None, "excludes enableInTreeAutoscaling without the annotation"),
    "elastic": (lambda d: d["metadata"].update(annotations={ELASTIC: "true"}), ""),
    "cluster stays": (
        lambda d: d["spec"].update(shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0),
        f"{QUEUE} needs shutdownAfterJobFinishes",
    ),
    "groups": (lambda d: cluster_of(d)["workerGroupSpecs"].extend([{}] * 5), "at most 7 workerGroupSpecs"),
}


@pytest.mark.parametrize("case", QUEUED)
def test_what_kueue_refuses_is_reported_for_a_job_in_a_queue(job: Object, case: str) -> None:
    change, expected = QUEUED[case]
    change(job)
    assert not any(QUEUE in problem for problem in problems(job))
    job["metadata"]["labels"][QUEUE] = "user-queue"
    found = [problem for problem in problems(job) if QUEUE in problem]
    assert any(expected in problem for problem in found) if expected else not found


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_reports_its_violation(job: Object, case: str) -> None:
    damage, expected = BROKEN[case]
    assert list(problems(job)) == []
    damage(job)
    assert any(expected in problem for problem in problems(job)), list(problems(job))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.clear(),
        lambda d: d.pop("spec"),
        lambda d: cluster_of(d).pop("headGroupSpec"),
        lambda d: group(d, 1).pop("template"),
        lambda d: pod(d, 1)["containers"][0]["volumeMounts"][0].pop("name"),
    ],
)
def test_missing_fields_are_problems_and_no_crash(job: Object, damage: Callable[[Object], object]) -> None:
    damage(job)
    assert list(problems(job))


def test_every_known_field_of_the_job_is_known_once() -> None:
    assert FIELDS["RayJob"].isdisjoint(FIELDS["RayCluster"] - {"managedBy", "suspend"})


def test_a_misspelt_field_of_a_monitor_s_endpoint_is_named() -> None:
    (monitor,) = documents(ROOT / "cluster" / "kubernetes" / "pod_monitor.yaml")
    assert [*problems(monitor)] == []
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    endpoint["intervall"] = endpoint.pop("interval")
    assert [*problems(monitor)] == ["podMetricsEndpoints: no field is called intervall"]
