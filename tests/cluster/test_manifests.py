"""The repository's manifests against the rules of KubeRay's controller; the rules against broken ones."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import documents, faults, main, schema_faults, strict_schema
from pipeline.__main__ import parse

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MANIFESTS = [ROOT / "ray_job.yaml", *sorted((ROOT / "cluster").glob("*.yaml"))]


def job() -> dict[str, Any]:
    (document,) = documents(ROOT / "ray_job.yaml")
    separate: dict[str, Any] = json.loads(json.dumps(document))  # YAML's aliases share what they name
    return separate


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = document["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_no_manifest_breaks_a_rule(path: Path) -> None:
    found = [fault for document in documents(path) for fault in faults(document)]
    assert found == []


def test_the_head_takes_no_work_and_every_container_is_bounded_and_unprivileged() -> None:
    head, gpu, _cpu = groups(job())
    assert head["resources"] == {"CPU": "0"}
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    for group in groups(job()):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            secret = [v for v in container["env"] if re.search("TOKEN|KEY|PASSWORD|SECRET", v["name"])]
            assert all("value" not in variable for variable in secret)


def test_versions_are_those_of_the_requirements() -> None:
    pinned = re.search(r"^ray\[.*\]==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned
    assert job()["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "ttl": (lambda d: d["spec"].update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished needs"),
    "name": (lambda d: d["metadata"].update(name="1-Toolformer"), "DNS-1035"),
    "long name": (lambda d: d["metadata"].update(name="t" * 48), "at most 47"),
    "version": (lambda d: d.update(apiVersion="ray.io/v1alpha1"), "not ray.io/v1"),
    "selector": (
        lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "c"}),
        "excludes backoffLimit",
    ),
    "nothing to run on": (lambda d: d["spec"].pop("rayClusterSpec"), "one of rayClusterSpec"),
    "restart": (lambda d: groups(d)[1]["template"]["spec"].update(restartPolicy="Always"), "restartPolicy"),
    "both": (lambda d: groups(d)[0].update(rayStartParams={"num-cpus": "0"}), "not both"),
    "numbers": (lambda d: groups(d)[2].update(rayStartParams={"block": 1}), "quote the numbers"),
    "labels": (lambda d: groups(d)[1].update(rayStartParams={"labels": "a=b"}), "labels belong"),
    "replicas": (lambda d: groups(d)[1].update(minReplicas=2), "minReplicas <= replicas"),
    "no maximum": (lambda d: groups(d)[2].pop("maxReplicas"), "minReplicas <= replicas"),
    "no container": (lambda d: groups(d)[2]["template"]["spec"].update(containers=[]), "no container"),
    "volume": (lambda d: groups(d)[2]["template"]["spec"]["volumes"].pop(), "volumes and volumeMounts"),
    "same name": (lambda d: groups(d)[2].update(groupName="gpu"), "used twice"),
    "token": (lambda d: d["spec"]["rayClusterSpec"].pop("rayVersion"), "needs rayVersion"),
    "autoscaler": (lambda d: d["spec"]["rayClusterSpec"].pop("enableInTreeAutoscaling"), "do nothing"),
    "runtime environment": (lambda d: d["spec"].update(runtimeEnvYAML="- a"), "runtimeEnvYAML"),
    "redis": (
        lambda d: groups(d)[0]["template"]["spec"]["containers"][0].update(
            env=[{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]
        ),
        "gcsFaultToleranceOptions",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_finds_what_breaks_it(case: str) -> None:
    damage, expected = BROKEN[case]
    document = job()
    damage(document)
    assert any(expected in fault for fault in faults(document)), list(faults(document))


CRD = {
    "kind": "CustomResourceDefinition",
    "apiVersion": "apiextensions.k8s.io/v1",
    "metadata": {"name": "rayjobs.ray.io"},
    "spec": {
        "names": {"kind": "RayJob"},
        "versions": [
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "apiVersion": {"type": "string"},
                            "kind": {"type": "string"},
                            "spec": {
                                "type": "object",
                                "required": ["entrypoint", "backoffLimit"],
                                "properties": {
                                    "entrypoint": {"type": "string"},
                                    "backoffLimit": {"type": "integer", "format": "int32", "default": 0},
                                    "port": {"x-kubernetes-int-or-string": True, "type": "integer"},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "open": {
                                        "type": "object",
                                        "properties": {},
                                        "x-kubernetes-preserve-unknown-fields": True,
                                    },
                                },
                            },
                        },
                    }
                },
            }
        ],
    },
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"entrypoint": "run", "port": "http", "labels": {"any": "x"}, "open": {"any": 1}}, None),
        ({"entrypoint": "run", "entryPoint": "run"}, "'entryPoint' was unexpected"),
        ({"backoffLimit": 1}, "'entrypoint' is a required property"),
        ({"entrypoint": "run", "backoffLimit": "1"}, "is not of type 'integer'"),
    ],
)
def test_unknown_and_missing_fields_are_faults_and_defaulted_ones_are_not(
    spec: dict[str, Any], expected: str | None
) -> None:
    schemas = {"RayJob": strict_schema(CRD)}
    document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
    found = list(schema_faults(document, schemas))
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_the_command_reads_definitions_by_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rayjobs.yaml").write_text(yaml.safe_dump(CRD))
    assert main([str(ROOT / "ray_job.yaml")]) == 0
    assert main([str(ROOT / "ray_job.yaml"), "--crds", str(tmp_path)]) == 1
    assert "'submissionMode'" in capsys.readouterr().out.replace('"', "'")


def test_the_job_runs_commands_that_exist(tmp_path: Path) -> None:
    """cluster/paper.sh with commands that write down how they were called; the real ones parse that."""
    entrypoint = shlex.split(job()["spec"]["entrypoint"])
    assert entrypoint[:2] == ["bash", "cluster/paper.sh"]
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "svamp.jsonl").touch()
    for name in ("python", "ray"):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/bash\nprintf "%s\\n" "$(printf " %q" {name} "$@")" >> "{tmp_path}/calls"\n'
        )
        command.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run([*entrypoint[:2], str(tmp_path)], cwd=ROOT, env={"PATH": path}, check=True, timeout=20)
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    commands = [call[call.index("pipeline") + 1 :] for call in calls]
    assert [command[0] for command in commands] == ["annotate", "merge", "finetune", "evaluate"]
    parsed = [parse(command[0], command[1:]) for command in commands]
    assert {arguments.recipe for arguments in parsed} == {"paper"}
    assert "--entrypoint-num-gpus" in calls[3]
    annotate, merge, finetune, evaluate = (arguments.config for arguments in parsed)
    assert merge.annotations == (annotate.output,)
    assert finetune.data == merge.output
    assert evaluate.generation.model.path == str(finetune.output)


def test_there_is_a_deepspeed_file_for_each_stage() -> None:
    for stage in range(4):
        settings = json.loads((ROOT / "cluster" / "deepspeed" / f"zero{stage}.json").read_text())
        assert settings["zero_optimization"]["stage"] == stage
        assert settings["gradient_clipping"] == 1.0
