"""The manifests: rules, equal clusters, limited and unprivileged pods, names and commands that
exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import MANIFESTS, ROOT, check, documents, main
from cluster.submit import parse as submission
from pipeline.cli.evaluating import configs_of
from pipeline.cli.main import parse

pytestmark = pytest.mark.unit

Object = dict[str, Any]
SETUP = ROOT / "cluster" / "kubernetes" / "setup"
RAY_JOB = ROOT / "ray_job.yaml"
AWS = ROOT / "cluster" / "aws.yaml"
PLACEHOLDER = re.compile(r"example\.com|shared-files|fs-0+\.|us-west-2|2Ti|monitoring }")


def job() -> Object:
    (document,) = documents(ROOT / "ray_job.yaml")
    return document


def groups() -> dict[str, Object]:
    cluster = job()["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"]} | {one["groupName"]: one for one in cluster["workerGroupSpecs"]}


def objects(kind: str) -> list[Object]:
    return [each for path in MANIFESTS for each in documents(path) if each["kind"] == kind]


def pods() -> dict[str, Object]:
    """Every pod template (metadata and spec) by its purpose."""
    templates = {name: group["template"] for name, group in groups().items()}
    templates["submitter"] = job()["spec"]["submitterPodTemplate"]
    (trial,) = documents(ROOT / "cluster" / "kubernetes" / "trial.yaml")
    templates["trial"] = trial["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    templates["trial's submitter"] = trial["spec"]["submitterPodTemplate"]
    templates["slices"] = objects("Job")[0]["spec"]["template"]
    templates["redis"] = objects("StatefulSet")[0]["spec"]["template"]
    return templates


def values(document: Any, name: str) -> Iterator[Any]:
    """The values of all keys called `name`, at any depth."""
    if isinstance(document, dict):
        yield from (value for key, value in document.items() if key == name)
    for inner in document.values() if isinstance(document, dict) else document:
        if isinstance(inner, dict | list):
            yield from values(inner, name)


def test_no_manifest_breaks_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(MANIFESTS) == []
    assert main([]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_the_command_names_file_and_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "job.yaml"
    wrong.write_text(RAY_JOB.read_text().replace("maxReplicas", "maxReplica"))
    assert main([str(wrong)]) == 1
    assert f"{wrong}: RayJob toolformer-paper: workerGroupSpecs gpu: no field" in capsys.readouterr().out
    wrong.write_text("kind: RayJob\nspec: {}\nspec: {}\n")
    assert main([str(wrong)]) == 2
    assert "spec is a duplicate key" in capsys.readouterr().err
    assert main([str(RAY_JOB), "--crds", str(tmp_path / "nowhere")]) == 2
    assert "RayCluster is missing" in capsys.readouterr().err


def test_settings_of_the_job() -> None:
    spec = job()["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert spec["entrypointNumCpus"] > 0  # not on the head
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert cluster["rayVersion"] == pinned[1]


def test_the_autoscaler_of_the_pinned_ray_reads_the_groups_correctly() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": job()["spec"]["rayClusterSpec"]}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    types = config["available_node_types"]
    resources = {name: group["resources"] for name, group in types.items()}
    assert [resources[name].get("CPU") for name in ("headgroup", "gpu", "tools", "cpu")] == [0, 32, 6, 16]
    assert [resources[name].get("GPU", 0) for name in ("headgroup", "gpu", "tools", "cpu")] == [0, 8, 1, 0]
    assert {name: (group["min_workers"], group["max_workers"]) for name, group in types.items()} == {
        "headgroup": (0, 0),
        "gpu": (0, 1),
        "tools": (0, 4),
        "cpu": (1, 8),
    }
    assert types["gpu"]["idle_timeout_s"] == 900


def test_the_groups_have_the_resources_of_the_paper_s_run() -> None:
    tools = ["--tools-file", str(ROOT / "cluster" / "tools.toml")]
    annotate = parse("annotate", ["--recipe", "paper", *tools]).config
    finetune = parse("finetune", ["--recipe", "paper"]).config
    limits = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups().items()
    }
    gpus = {name: int(limit.get("nvidia.com/gpu", 0)) for name, limit in limits.items()}
    most = {name: group.get("maxReplicas", 1) for name, group in groups().items()}
    assert annotate.ray.actors * annotate.ray.gpus_per_actor == gpus["gpu"] * most["gpu"] == finetune.workers
    deployments = [annotate.tools.of(tool).deployment for tool in annotate.method.tools]
    assert sum(each.gpus * each.max_replicas for each in deployments) <= gpus["tools"] * most["tools"]
    assert all(each.gpus <= gpus["tools"] for each in deployments)
    assert all(each.cpus <= int(limits["tools"]["cpu"]) for each in deployments)


@pytest.mark.parametrize("name", pods())
def test_every_pod_has_limits_and_no_privileges(name: str) -> None:
    pod = pods()[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    if name != "head":  # the head's autoscaler needs the token
        assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod.get("volumes", []))
    for container in pod["containers"]:
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", container["image"])  # a version, never :latest
        secret = [v for v in container.get("env", []) if re.search("TOKEN|KEY|PASSWORD|SECRET", v["name"])]
        assert all("secretKeyRef" in variable["valueFrom"] for variable in secret)


def test_the_autoscaler_container_has_limits_and_no_privileges() -> None:
    options = job()["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert {"cpu", "memory"} <= set(options["resources"]["limits"])
    assert options["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_claims_secrets_and_services_exist_under_the_names_used() -> None:
    used = [each for kind in ("RayJob", "RayCluster", "StatefulSet") for each in objects(kind)]
    claims = {claim["claimName"] for claim in values(used, "persistentVolumeClaim")}
    assert claims == {claim["metadata"]["name"] for claim in objects("PersistentVolumeClaim")}
    assert objects("PersistentVolumeClaim")[0]["spec"]["accessModes"] == ["ReadWriteMany"]
    example = ROOT / "cluster" / "kubernetes" / "secrets.yaml.example"
    secrets = {secret["metadata"]["name"]: secret["stringData"] for secret in documents(example)}
    assert {(ref["name"], ref["key"]) for ref in values(used, "secretKeyRef")} == {
        (name, key) for name, keys in secrets.items() for key in keys
    }
    assert not any(value for keys in secrets.values() for value in keys.values())
    (redis,) = objects("Service")
    address = f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    assert {options["redisAddress"] for options in values(used, "gcsFaultToleranceOptions")} == {address}


def test_services_and_network_policies_select_the_right_pods() -> None:
    """KubeRay adds labels to Ray's pods; they are added here too."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    for name in (*groups(), "trial"):
        labels[name] = labels[name] | {"ray.io/is-ray-node": "yes"}
        labels[name]["ray.io/node-type"] = "head" if name in ("head", "trial") else "worker"

    def selected(selector: Object) -> set[str]:
        return {name for name, own in labels.items() if matches(selector, own)}

    ray = {*groups(), "trial"}
    submitters = {"submitter", "trial's submitter"}
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in objects("NetworkPolicy")}
    assert {name: selected(spec["podSelector"]) for name, spec in policies.items()} == {
        "toolformer": ray | submitters | {"slices"},
        "toolformer-ray": ray,
        "toolformer-redis": {"redis"},
    }
    inside = policies["toolformer-ray"]["ingress"][0]["from"][0]["podSelector"]
    assert selected(inside) == ray | submitters
    assert selected(policies["toolformer-redis"]["ingress"][0]["from"][0]["podSelector"]) == {
        "head",
        "trial",
    }
    assert selected(policies["toolformer"]["egress"][0]["to"][0]["podSelector"]) == {
        *ray,
        *submitters,
        "slices",
        "redis",
    }
    assert selected({"matchLabels": objects("Service")[0]["spec"]["selector"]}) == {"redis"}
    (monitor,) = objects("PodMonitor")
    assert selected(monitor["spec"]["selector"]) == ray
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ports = next(values(objects("RayJob"), "ports"))
    port = {each["name"]: each["containerPort"] for each in ports}
    admitted = policies["toolformer-ray"]["ingress"][-1]["ports"]
    assert admitted == [{"protocol": "TCP", "port": port[endpoint["port"]]}]
    assert selected(objects("StatefulSet")[0]["spec"]["selector"]) == {"redis"}


def matches(selector: Object, labels: dict[str, str]) -> bool:
    matched = [labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()]
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] in ("In", "NotIn")
        is_in = labels.get(expression["key"]) in expression["values"]
        matched.append(is_in == (expression["operator"] == "In"))
    return all(matched)


@pytest.mark.parametrize("path", [*MANIFESTS, AWS], ids=lambda path: path.name)
def test_placeholders_are_marked(path: Path) -> None:
    lines = path.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if PLACEHOLDER.search(line) and not line.lstrip().startswith(("#", "fs-")):
            assert "# YOURS" in line or "# YOURS" in before, line


def test_ray_up_accepts_the_aws_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(AWS.read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert {name: group["resources"].get("GPU", 0) for name, group in types.items()} == {
        "head": 0,
        "gpu": 8,
        "tools": 1,
        "cpu": 0,
    }
    assert types["head"]["resources"]["CPU"] == 0
    assert config["max_workers"] == sum(group["max_workers"] for group in types.values())
    started = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in started if "ray start" in command)
    # Jobs on other nodes (paper.sh) submit through the address that Ray publishes.
    assert "--dashboard-host=0.0.0.0" in config["head_start_ray_commands"][-1]
    assert "security_group" not in config["provider"], "Ray's own admits only the cluster's nodes and ssh"


def arguments_of(job: Object, folder: Path) -> list[Any]:
    """Runs the job's entrypoint, cluster/paper.sh, with fake commands that record their arguments; the real
    parser reads them."""
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    assert entrypoint[-3:] == ["bash", "cluster/paper.sh", "/shared"]
    (folder / "questions").mkdir(exist_ok=True)
    (folder / "questions" / "own.jsonl").touch()
    for recipe in ("paper", "single_gpu"):
        (folder / "runs" / recipe).mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks" / "lama_trex").mkdir(parents=True, exist_ok=True)
    for name in ("svamp.json", "nq.dev.jsonl.gz", "wikitext.raw"):
        (folder / "benchmarks" / name).touch()
    command = folder / "python"
    command.write_text(f'#!/bin/bash\nprintf "%s\\n" "$(printf " %q" "$@")" >> "{folder}/calls"\n')
    command.chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    subprocess.run([*entrypoint[:-1], str(folder)], cwd=ROOT, env={"PATH": path}, check=True, timeout=20)
    calls = [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]
    commands = [call[call.index("pipeline") + 1 :] for call in calls]
    assert [command[0] for command in commands] == [
        *("annotate", "merge", "finetune", "finetune", "evaluate"),
        *("table", "table", "thresholds"),
    ]
    return [parse(command[0], command[1:]) for command in commands]


def test_the_job_runs_commands_that_exist(tmp_path: Path) -> None:
    parsed = arguments_of(job(), tmp_path)
    assert {arguments.recipe for arguments in parsed[:5]} == {"paper"}
    annotate, merge, finetune, plain, evaluate, *tables = (arguments.config for arguments in parsed)
    assert set(annotate.method.tools) == {"QA", "WikiSearch", "Calculator", "Calendar", "MT"}
    assert merge.annotations == (annotate.output,)
    assert (finetune.column, plain.column) == ("text", "plain")
    assert finetune.data == plain.data == merge.output
    assert finetune.output != plain.output
    assert evaluate.generation.tools.wikisearch == annotate.tools.wikisearch
    assert (annotate.tools.calendar.today, evaluate.generation.tools.calendar.today) == (False, True)
    assert set(evaluate.benchmarks) == {
        tmp_path / "questions" / "own.jsonl",
        Path(f"lama_trex={tmp_path}/benchmarks/lama_trex"),
        Path(f"svamp={tmp_path}/benchmarks/svamp.json"),
        Path(f"nq={tmp_path}/benchmarks/nq.dev.jsonl.gz"),
        Path(f"wikitext={tmp_path}/benchmarks/wikitext.raw"),
        Path("dateset=0"),
    }
    models = configs_of(evaluate, None, parsed[4].models)
    assert list(models) == ["base", "plain", "disabled", "toolformer"]
    assert [config.generation.model.path for config in models.values()] == [
        *(annotate.model.path, str(plain.output), str(finetune.output), str(finetune.output)),
    ]
    assert [config.generation.disabled for config in models.values()] == [False, False, True, False]
    assert [config.disabled_perplexity for config in models.values()] == [True, True, False, False]
    assert parsed[5].files == parsed[6].files == (evaluate.output,)
    assert [config.format for config in tables] == ["markdown", "latex", "markdown"]


def test_the_job_names_missing_files(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "cluster/paper.sh", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2
    assert f"no benchmark in {tmp_path}/benchmarks and no question file" in done.stderr


def test_slurm_and_kubernetes_run_every_slice_once(tmp_path: Path) -> None:
    """Runs cluster/slices.sh with a fake command that records its arguments; the real parser reads
    them."""
    indexed = objects("Job")[0]["spec"]
    assert indexed["completionMode"] == "Indexed"
    command = indexed["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["bash", "cluster/slices.sh"]
    assert command[3] == str(indexed["completions"])
    text = (ROOT / command[1]).read_text()
    assert re.search(r"^#SBATCH --array=0-63$", text, re.MULTILINE)
    assert "sbatch cluster/slices.sh FOLDER 64 " in text
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$(printf " %q" "$@")" >> "{tmp_path}/calls"\n')
    python.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    indexes: list[dict[str, str]] = [
        {"SLURM_ARRAY_TASK_ID": "0"},
        {"JOB_COMPLETION_INDEX": "63", "GPUS": "4"},
        {"INDEX": "5", "SLURM_GPUS_ON_NODE": "1"},
    ]
    for index in indexes:
        subprocess.run([*command[:2], "/s", "64"], cwd=ROOT, env=path | index, check=True, timeout=20)
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    configs = [parse("annotate", call[call.index("annotate") + 1 :]).config for call in calls]
    assert [config.corpus.slice for config in configs] == ["0/64", "63/64", "5/64"]
    assert len({config.output for config in configs}) == 3
    for config, gpus in zip(configs, (8, 4, 1), strict=True):
        deployments = [config.tools.of(tool).deployment for tool in config.method.tools]
        tool_gpus = sum(deployment.min_replicas * deployment.gpus for deployment in deployments)
        assert config.ray.actors == max(1, gpus - 1)
        assert config.ray.actors * config.ray.gpus_per_actor + tool_gpus == gpus
    unnamed = subprocess.run([*command[:2], "/s", "64"], cwd=ROOT, env=path, capture_output=True, check=False)
    assert unnamed.returncode != 0


def test_make_submit_sends_one_step_of_a_recipe() -> None:
    options = [
        "ADDRESS=http://127.0.0.1:8265",
        "STEP=merge",
        "RECIPE=single_gpu",
        "ARGS=--output '/shared/a b'",
    ]
    printed = subprocess.run(
        ["make", "--dry-run", "submit", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = shlex.split(printed.stdout.splitlines()[-1])
    sent = submission(words[words.index("cluster.submit") + 1 :])
    assert sent.address == "http://127.0.0.1:8265"
    assert sent.command[:4] == ["python", "-m", "pipeline", "merge"]
    arguments = parse("merge", sent.command[4:])
    assert (arguments.recipe, arguments.config.output) == ("single_gpu", Path("/shared/a b"))


def test_there_is_a_deepspeed_file_for_each_stage() -> None:
    for stage in range(4):
        settings = json.loads(
            (ROOT / "pipeline" / "finetuning" / "deepspeed" / f"zero{stage}.json").read_text()
        )
        assert settings["zero_optimization"]["stage"] == stage
        assert settings["gradient_clipping"] == 1.0
