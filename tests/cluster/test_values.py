"""Wrong values are refused in one sentence: file, line, value, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.values import Values
from tests.cluster.variants import VARIANTS, values_of
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

WRONG = {
    "namespace: a\ngpu:\n  nodes: -1\n": "values.yaml, line 3: gpu.nodes = -1: must be at least 1",
    "gpu: {perNode: 0}": "line 1: gpu.perNode = 0: must be at least 1",
    "gpu: {nodes: two}": "gpu.nodes = 'two': must be a whole number",
    "gpu: {perNode: 3}": "1 x 3: 3 training workers do not divide the batch of 128; set",
    "job: {workers: 3}": "set job.workers to one of 1, 2, 4, 8",
    "job: {workers: 9}": "job.workers = 9 is more than the 8 GPUs",
    "gpus: {nodes: 1}": "line 1: gpus: there is no such value; did you mean gpu?",
    "gpu: {replicas: 1}": "gpu.replicas: there is no such value; there are nodes, perNode, pod",
    "gpu: 8": "gpu: write its values below it",
    "gpu: {tolerations: [{taint: a}]}": "gpu.tolerations.0.taint",
    "gpu: {pod: {memory: 64GB}}": "such as 64Gi",
    "gpu: {pod: {cpu: 7}}": "gpu.pod.cpu = 7: 8 GPUs need at least 8 CPUs",
    "tools: {pod: {cpu: 1}}": "tools.pod.cpu = 1: 1 GPUs need at least 2 CPUs",
    "image: {repository: 'registry.yours.org/toolformer:1'}": "REGISTRY/NAME without a tag",
    "image: {repository: Registry/Toolformer}": "in lower case",
    "image: {tag: latest}": "must be a fixed version",
    "image: {tag: 1.0}": "image.tag = 1.0: must be text",
    "namespace: My_Namespace": "must be a Kubernetes name",
    "gpuResource: gpu": "VENDOR/NAME",
    "cpu: {minNodes: 9}": "cpu.minNodes = 9 is more than cpu.nodes = 8",
    "queue: {elastic: true}": "no effect without queue.name",
    "job: {recipe: demo}": "'paper' or 'single_gpu'",
    "gpu: {nodes: 1, nodes: 2}": "nodes is given twice",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        Values.read(path)
    assert WRONG[text] in str(refused.value)
    assert str(refused.value).startswith(f"--values {path}")
    assert "\n" not in str(refused.value)


def test_a_file_of_the_user_s_own_lies_over_the_defaults(tmp_path: Path) -> None:
    default, own = Values.read(), values_of(tmp_path, {"gpu": {"nodes": 2, "pod": {"cpu": 40}}})
    assert (own.gpu.nodes, own.gpu.per_node, own.gpu.pod.cpu) == (2, 8, 40)
    assert own.gpu.pod.memory == default.gpu.pod.memory
    assert own.model_copy(update={"gpu": default.gpu}) == default


def test_sizes_follow_from_gpus_and_nodes(tmp_path: Path) -> None:
    values = {name: values_of(tmp_path, changes) for name, changes in VARIANTS.items()}
    assert [one.gpu.gpus for one in values.values()] == [8, 1, 8, 32, 24]
    assert [one.workers for one in values.values()] == [8, 1, 8, 32, 16]
    assert [one.micro_batch for one in values.values()] == [None, None, None, 4, None]
    assert [one.tool_replicas for one in values.values()] == [2, 1, 2, 2, 2]
    assert [one.fixed_size for one in values.values()] == [False, False, True, False, False]
