"""The defaults render to the manifests of the repository; sizes reach resources and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import KUBERNETES, RAY_JOB, check, documents
from cluster.render import AWS, main
from cluster.rules import ELASTIC, QUEUE, problems
from cluster.values import DEFAULTS
from tests.cluster.test_manifests import arguments_of, matches, values
from tests.cluster.variants import VARIANTS, groups_of, limits, rendered

pytestmark = pytest.mark.unit


def written(folder: Path, variant: Any = None, text: str | None = None) -> Path:
    path, output = folder / "values.yaml", folder / "rendered"
    path.write_text(text if text is not None else yaml.safe_dump(variant or {}))
    assert main(["--values", str(path), "--output", str(output)]) == 0
    return output


def test_the_defaults_render_to_the_manifests_of_the_repository(tmp_path: Path) -> None:
    output = written(tmp_path)
    plain = {path.relative_to(KUBERNETES): path for path in KUBERNETES.rglob("*.yaml")}
    for name, path in (plain | {Path("ray_job.yaml"): RAY_JOB, Path("ray_up/aws.yaml"): AWS}).items():
        assert documents(output / name) == documents(path), name
    (job,), (cluster,) = documents(RAY_JOB), documents(output / "ray_cluster.yaml")
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]
    assert cluster["metadata"] == {"name": "toolformer", "labels": job["metadata"]["labels"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_the_rules(tmp_path: Path, variant: str) -> None:
    output = written(tmp_path, VARIANTS[variant])
    manifests = [path for path in output.rglob("*.yaml") if path.name != "aws.yaml"]
    assert len(manifests) >= 8
    assert check(manifests) == []
    assert all("example.com" not in path.read_text() for path in manifests) == ("queue" in variant)


def test_every_commented_example_of_the_values_renders(tmp_path: Path) -> None:
    lines = DEFAULTS.read_text().splitlines()
    examples = [number for number, line in enumerate(lines) if re.match(r"  +# (- \{|\w+: [^ ])", line)]
    assert len(examples) == 9
    for number in examples:
        indent, example = re.fullmatch(r"( +)# (.*)", lines[number]).groups()  # type: ignore[union-attr]
        key = f"{indent}{example.partition(':')[0]}:"
        active = [line for line in lines if example.startswith("-") or not line.startswith(key)]
        if not example.startswith("-"):  # instead of the value in the same section
            above = max(n for n in range(number) if lines[n].startswith(key))
            active = [line for n, line in enumerate(lines) if n != above]
        place = active.index(lines[number])
        active[place] = indent + example
        if "priorityClass" in example:
            active = [line.replace("  name: null", "  name: user-queue") for line in active]
        output = written(tmp_path, text="\n".join(active))
        assert check(path for path in output.rglob("*.yaml") if path.name != "aws.yaml") == [], example
        value = re.split(r"[:,] *", example.partition(" #")[0].strip(" {}-"))[-1].strip('" ')
        found = "".join(path.read_text() for path in output.rglob("*.yaml"))
        assert (value if "effect" not in example else re.findall(r"key: (\S+),", example)[0]) in found


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_reach_resources_and_commands(tmp_path: Path, variant: str) -> None:
    files = rendered(tmp_path, variant)
    (job,), (config,) = files["ray_job.yaml"], files["ray_up/aws.yaml"]
    groups = groups_of(job)
    resource = VARIANTS[variant].get("gpuResource", "nvidia.com/gpu")
    nodes, per_node = groups["gpu"]["maxReplicas"], int(limits(groups["gpu"])[resource])
    annotate, _, finetune, plain, evaluate, *_ = arguments_of(job, tmp_path)
    assert annotate.recipe == VARIANTS[variant].get("job", {}).get("recipe", "paper")
    assert annotate.config.ray.actors == nodes * per_node
    workers = VARIANTS[variant].get("job", {}).get("workers", nodes * per_node)
    assert finetune.config.workers == plain.config.workers == workers
    assert finetune.config.batch_size == 128
    tools = groups["tools"]["maxReplicas"] * int(limits(groups["tools"])[resource])
    for settings in (annotate.config.tools, evaluate.config.generation.tools):
        deployments = [settings.of(tool).deployment for tool in ("QA", "MT")]
        assert sum(each.gpus * each.max_replicas for each in deployments) <= tools
        assert all(each.max_replicas >= 1 for each in deployments)
    types = config["available_node_types"]
    assert (types["gpu"]["max_workers"], types["gpu"]["resources"]) == (nodes, {"GPU": per_node})
    slices = files["slices.yaml"][0]["spec"]
    assert limits(slices)[resource] == str(per_node)
    command, environment = slices["template"]["spec"]["containers"][0]["command"], values(slices, "env")
    assert command[-1] == str(slices["completions"])
    assert {"name": "GPUS", "value": str(per_node)} in next(environment)


def test_one_place_for_names_reaches_all_objects(tmp_path: Path) -> None:
    files = rendered(tmp_path, "2 x 4 in a queue")
    kubernetes = [document for name in files if name != "ray_up/aws.yaml" for document in files[name]]
    assert {document["metadata"]["namespace"] for document in kubernetes} == {"research"}
    images = {image for image in values(kubernetes, "image") if "redis" not in image}
    assert images == {f"registry.yours.org:5000/toolformer:1.2-{target}" for target in ("cpu", "cuda")}
    pods = [pod for pod in values(kubernetes, "containers") if "redis" not in str(pod)]
    assert len(list(values(kubernetes, "imagePullSecrets"))) == len(pods)
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in files["setup/network.yaml"]}
    admitted = policies["toolformer-ray"]["ingress"][-1]["from"][0]["namespaceSelector"]
    assert matches(admitted, {"kubernetes.io/metadata.name": "observability"})
    assert files["pod_monitor.yaml"][0]["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_alerts_become_a_rule_of_the_prometheus_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = tmp_path / "rules.yml"
    alerts.write_text("groups: [{name: toolformer, rules: [{alert: Stalled, expr: stalled > 0}]}]\n")
    monkeypatch.setattr("cluster.render.ALERTS", alerts)
    (rule,) = rendered(tmp_path, "2 x 4 in a queue")["prometheus_rule.yaml"]
    assert rule["spec"] == yaml.safe_load(alerts.read_text())
    assert rule["metadata"]["namespace"] == "research"
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert list(problems(rule)) == []


def test_a_job_in_a_queue_waits_suspended_and_has_its_full_size(tmp_path: Path) -> None:
    files = rendered(tmp_path, "2 x 4 in a queue")
    for name in ("ray_job.yaml", "ray_cluster.yaml", "trial.yaml", "slices.yaml"):
        (document,) = files[name]
        assert document["spec"]["suspend"], name
        assert document["metadata"]["labels"][QUEUE] == "user-queue"
        assert document["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "batch"
        assert "annotations" not in document["metadata"]
    cluster = files["ray_job.yaml"][0]["spec"]["rayClusterSpec"]
    assert not cluster["enableInTreeAutoscaling"]
    sizes = [
        (each["minReplicas"], each["replicas"], each["maxReplicas"]) for each in cluster["workerGroupSpecs"]
    ]
    assert sizes == [(2, 2, 2), (4, 4, 4), (2, 2, 2)]


def test_an_elastic_job_in_a_queue_keeps_ray_s_autoscaler(tmp_path: Path) -> None:
    files = rendered(tmp_path, "4 x 8 on spot nodes")
    for name in ("ray_job.yaml", "ray_cluster.yaml"):
        (document,) = files[name]
        cluster = document["spec"].get("rayClusterSpec") or document["spec"]
        assert document["metadata"]["annotations"] == {ELASTIC: "true"}
        assert (cluster["enableInTreeAutoscaling"], cluster["tlsOptions"]) == (True, {"enabled": True})
    assert "annotations" not in files["trial.yaml"][0]["metadata"]


def test_only_the_pods_that_may_be_lost_run_on_spot_nodes(tmp_path: Path) -> None:
    (job,) = rendered(tmp_path, "4 x 8 on spot nodes")["ray_job.yaml"]
    pods = {name: group["template"]["spec"] for name, group in groups_of(job).items()}
    spot = [name for name, pod in pods.items() if "gke-spot" in str(pod)]
    assert spot == ["gpu"]
    assert pods["head"]["nodeSelector"] == {"pool": "stable"}
    assert pods["gpu"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "tolerations" not in pods["cpu"]


def test_ray_is_told_of_gpus_whose_name_it_does_not_know(tmp_path: Path) -> None:
    files = rendered(tmp_path, "24 shares of GPUs")
    groups = groups_of(files["ray_job.yaml"][0]) | {"trial": groups_of(files["trial.yaml"][0])["head"]}
    given = {name: group.get("resources") for name, group in groups.items()}
    assert given == {
        "head": {"CPU": "0"},
        "gpu": {"GPU": "8"},
        "tools": {"GPU": "1"},
        "cpu": None,
        "trial": {"GPU": "1"},
    }


def test_the_trial_needs_one_gpu_and_nothing_but_the_images(tmp_path: Path) -> None:
    for variant in VARIANTS:
        (job,) = rendered(tmp_path, variant)["trial.yaml"]
        resource = VARIANTS[variant].get("gpuResource", "nvidia.com/gpu")
        (head,) = groups_of(job).values()
        assert limits(head)[resource] == "1"
        assert not {"secretKeyRef", "persistentVolumeClaim", "gcsFaultToleranceOptions"} & names(job)
        entrypoint = shlex.split(job["spec"]["entrypoint"])
        assert entrypoint == ["bash", "cluster/trial.sh"]


def names(document: Any) -> set[str]:
    inner = document.values() if isinstance(document, dict) else document
    below = [names(each) for each in inner if isinstance(each, dict | list)]
    return set(document if isinstance(document, dict) else ()).union(*below)


def test_only_files_of_the_command_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = written(tmp_path)
    assert "image.repository is still the placeholder" in capsys.readouterr().err
    written(tmp_path, {"gpu": {"nodes": 2}})
    assert documents(output / "ray_job.yaml")[0]["spec"]["entrypoint"].startswith("env GPUS=16 ")
    (output / "trial.yaml").write_text("kind: Mine\n")
    kept = {path: path.read_text() for path in output.rglob("*.yaml")}
    assert main(["--values", str(tmp_path / "values.yaml"), "--output", str(output)]) == 2
    assert f"{output}/trial.yaml was not made by this command" in capsys.readouterr().err
    assert {path: path.read_text() for path in output.rglob("*.yaml")} == kept


def test_a_wrong_value_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("gpu: {nodes: 0}\n")
    assert main(["--values", str(path), "--output", str(tmp_path / "rendered")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "rendered").exists()
    assert main(["--values", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "rendered")]) == 2
    assert "No such file" in capsys.readouterr().err
