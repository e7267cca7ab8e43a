"""What each step asks of a cluster: as its configuration says, with options that the command has."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.annotation.run import needs
from pipeline.base.config import ScoreConfig
from pipeline.base.inference_config import ActorsConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli.recipes import demo, paper
from pipeline.evaluation.ray_executor import resource_request as of_evaluation
from pipeline.finetuning.run import resource_request as of_finetuning
from pipeline.scoring.run import resource_request as of_scoring
from pipeline.serving.run import resource_request as of_serving
from tools_service.config import ToolsConfig
from tools_service.runtime.resources import Node, ProcessRequest, ResourceRequest, shortage
from tools_service.serving.processes import tool_processes

pytestmark = pytest.mark.unit

TOOLS = ("WikiSearch", "Calculator", "Calendar", "QA", "MT")
EVALUATION = paper().evaluate.model_copy(update={"ray": ActorsConfig(actors=3)})
REQUESTS: dict[str, tuple[Any, ResourceRequest]] = {
    "annotate": (paper().annotate, needs(paper().annotate)),
    "score": (ScoreConfig(), of_scoring(ScoreConfig())),
    "evaluate": (EVALUATION, of_evaluation([EVALUATION])),
    "serve": (ServeConfig(), of_serving(ServeConfig(), TOOLS)),
    "finetune": (paper().finetune, of_finetuning([paper().finetune])),
    "serve of the tools": (
        SimpleNamespace(tools=ToolsConfig()),
        ResourceRequest(processes=tool_processes(ToolsConfig(), TOOLS, "tools")),
    ),
}


def phrases(process: ProcessRequest) -> list[str]:
    return [text for text in (process.fewer_cpus, process.fewer_gpus, process.fewer) if text]


@pytest.mark.parametrize("step", REQUESTS)
def test_the_options_that_help_exist(step: str) -> None:
    config, request = REQUESTS[step]
    texts = [text for process in request.processes for text in phrases(process)]
    fields = [found[1] for text in texts if (found := re.match(r"lower (?:--)?([a-z_.]+)", text))]
    assert len(fields) == len(texts) - (step == "finetune"), "but for use_gpu"
    for field in filter(None, (*fields, request.wait_option)):
        value = config
        for name in field.split("."):
            value = getattr(value, name)
        assert isinstance(value, float | int | None)


def test_the_demo_fits_two_nodes_of_two_cpus_and_nothing_smaller() -> None:
    """Where it hung for ever: an actor and replicas on each node leave no whole CPU for reading."""
    request = needs(demo().annotate)
    assert shortage(request.processes, [Node("a", 2, 0), Node("b", 2, 0)]) is None
    assert shortage(request.least, [Node("a", 1, 0), Node("b", 0.6, 0)]) is None
    assert shortage(request.least, [Node("a", 1, 0), Node("b", 0.5, 0)]) is not None


def test_the_paper_needs_eight_gpus_and_starts_with_one() -> None:
    request = needs(paper().annotate)
    assert request.gpus == 8
    nodes = [Node("cpu", 16, 0), Node("gpu", 8, 1)]
    assert shortage(request.least, nodes) is None
    assert "room for 1 of 8 annotating actors" in (shortage(request.processes, nodes) or "")
    training = of_finetuning([paper().finetune])
    assert "room for 1 of 8 training workers" in (shortage(training.least, nodes) or "")
    assert "train on the CPU (use_gpu false) or lower --workers" in (shortage(training.least, nodes) or "")


def test_an_evaluation_needs_all_the_actors_it_names_and_else_one() -> None:
    assert of_evaluation([EVALUATION]).least[0].count == 3
    assert of_evaluation([paper().evaluate]).least[0].count == 1
    disabled = EVALUATION.generation.model_copy(update={"disabled": True})
    assert len(of_evaluation([EVALUATION.model_copy(update={"generation": disabled})]).processes) == 1
