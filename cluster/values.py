"""The values of a user's cluster, from cluster/values.yaml and a file of the user's own over it.

In: YAML files; cluster/values.yaml has every value and says what it means. Out: `Values`. An unknown name
or a wrong value is a ConfigurationError of one sentence: file, line, value, what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.cli.recipes import RECIPES
from pipeline.cli.settings_file import Keys, SettingsFile
from tools_service.base.errors import describe_problem
from tools_service.base.settings import Frozen, NotNegativeInt, PositiveInt, Text

DEFAULTS = Path(__file__).with_name("values.yaml")


def _matching(pattern: str, description: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {description}")
        return value

    return AfterValidator(check)


def _not_latest(value: str) -> str:
    if value == "latest":
        raise ValueError("must be a fixed version: a replaced node would run other code than the others")
    return value


Name = Annotated[
    str, StringConstraints(max_length=63), _matching(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a Kubernetes name")
]
Size = Annotated[str, _matching(r"[1-9]\d*(Mi|Gi|Ti)", "a whole number with Mi, Gi or Ti, such as 64Gi")]
Resource = Annotated[str, _matching(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", "VENDOR/NAME, such as nvidia.com/gpu")]
Repository = Annotated[
    str,
    _matching(
        r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+",
        "REGISTRY/NAME without a tag, in lower case, such as registry.yours.org/toolformer",
    ),
]
Tag = Annotated[str, _matching(r"\w[\w.-]{0,120}", "the tag of an image"), AfterValidator(_not_latest)]
Labels = dict[Text, str]


class _Section(Frozen):
    model_config = ConfigDict(alias_generator=to_camel)


class Image(_Section):
    repository: Repository
    tag: Tag
    pull_secrets: tuple[Name, ...]


class Storage(_Section):
    class_name: Name
    size: Size


class Job(_Section):
    recipe: Literal["paper", "single_gpu"]
    model: Text | None
    workers: PositiveInt | None


class Pod(_Section):
    cpu: PositiveInt
    memory: Size
    disk: Size


class Toleration(_Section):
    key: Text | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: NotNegativeInt | None = None


class Placed(_Section):
    """A kind of pod, and the nodes it may run on."""

    pod: Pod
    node_selector: Labels
    tolerations: tuple[Toleration, ...]


class GpuNodes(Placed):
    nodes: PositiveInt
    per_node: PositiveInt

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node


class CpuNodes(Placed):
    min_nodes: PositiveInt
    nodes: PositiveInt


class Slices(_Section):
    number: PositiveInt
    nodes: PositiveInt


class Queue(_Section):
    name: Name | None
    priority_class: Name | None
    elastic: bool


class Prometheus(_Section):
    namespace: Name
    release: Text


class Instances(_Section):
    head: Text
    gpu: Text
    tools: Text
    cpu: Text


class Aws(_Section):
    region: Name
    zone: Name
    image: Text
    file_system: Text
    instances: Instances


class Values(_Section):
    """Everything in which users' clusters differ."""

    namespace: Name | None
    image: Image
    storage: Storage
    job: Job
    gpu_resource: Resource
    gpu: GpuNodes
    tools: GpuNodes
    cpu: CpuNodes
    head: Placed
    trial: Placed
    slices: Slices
    queue: Queue
    prometheus: Prometheus
    tls: bool
    aws: Aws

    @property
    def _finetune(self) -> FinetuneConfig:
        return RECIPES[self.job.recipe]().finetune

    @property
    def workers(self) -> int:
        """Training workers, with a GPU each."""
        return self.job.workers or self.gpu.gpus

    @property
    def micro_batch(self) -> int | None:
        """Examples of a worker's forward, if the batch has too few for the recipe's."""
        share = self._finetune.batch_size // self.workers
        return None if share % self._finetune.micro_batch_size == 0 else share

    @property
    def tool_replicas(self) -> int:
        """Replicas of QA, and of MT, at half a GPU each: half of the tools' GPUs, the others evaluate."""
        return max(1, self.tools.gpus // 2)

    @property
    def fixed_size(self) -> bool:
        """Whether Kueue holds all nodes for the job, without Ray's autoscaler."""
        return self.queue.name is not None and not self.queue.elastic

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """The commands that these sizes reach must accept them, and the pods must hold their processes."""
        batch = self._finetune.batch_size
        if self.workers > self.gpu.gpus:
            raise ValueError(f"job.workers = {self.workers} is more than the {self.gpu.gpus} GPUs of gpu")
        if batch % self.workers:
            fitting = ", ".join(str(count) for count in range(1, self.gpu.gpus + 1) if batch % count == 0)
            raise ValueError(
                f"gpu.nodes x gpu.perNode = {self.gpu.nodes} x {self.gpu.per_node}: {self.workers} training "
                f"workers do not divide the batch of {batch}; set job.workers to one of {fitting}"
            )
        for name, group in (("gpu", self.gpu), ("tools", self.tools)):
            needed = group.per_node * (2 if name == "tools" else 1)
            if group.pod.cpu < needed:
                raise ValueError(
                    f"{name}.pod.cpu = {group.pod.cpu}: {group.per_node} GPUs need at least {needed} CPUs"
                )
        if self.cpu.min_nodes > self.cpu.nodes:
            raise ValueError(
                f"cpu.minNodes = {self.cpu.min_nodes} is more than cpu.nodes = {self.cpu.nodes}: raise nodes"
            )
        if self.queue.name is None and (self.queue.elastic or self.queue.priority_class):
            raise ValueError(
                "queue.elastic and queue.priorityClass have no effect without queue.name: name it"
            )
        return self

    @staticmethod
    def read(path: Path = DEFAULTS) -> Values:
        """The values in `path` over those of cluster/values.yaml. Raises ConfigurationError."""
        defaults = SettingsFile.read(DEFAULTS, "--values")
        file = SettingsFile.read(path, "--values")
        try:
            return Values.model_validate(_merged(defaults.values, file.values, (), file))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place: Keys = problem["loc"]
            raise file.error(place, describe_problem(problem, ".".join(map(str, place)))) from error


def _merged(defaults: Mapping[str, Any], values: Mapping[str, Any], keys: Keys, file: SettingsFile) -> Any:
    """`values` over `defaults`, section by section."""
    merged = dict(defaults)
    for name, value in values.items():
        place = (*keys, name)
        if name not in defaults:
            similar = difflib.get_close_matches(name, defaults, n=1)
            there_are = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(defaults)}"
            raise file.error(place, f"{'.'.join(map(str, place))}: there is no such value; {there_are}")
        is_section = isinstance(defaults[name], Mapping) and name != "nodeSelector"
        if is_section and not isinstance(value, Mapping):
            raise file.error(place, f"{'.'.join(map(str, place))}: write its values below it, NAME: VALUE")
        merged[name] = _merged(defaults[name], value, place, file) if is_section else value
    return merged
