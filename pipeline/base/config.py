"""Typed configuration: one frozen model per step, with the values of the paper as defaults.

Recipes (cli/recipes.py) and the command line set fields by name; the docstring of a field is its help
text, with the section of the paper (arXiv 2302.04761). An unknown field or a value out of range is an
error that names the field. This module touches no file, no model and not Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.base.hardware import Hardware
from tools_service.base.settings import (
    FilePath,
    ForEveryTool,
    Frozen,
    Gpus,
    Nats,
    NotAnOption,
    NotNegative,
    Positive,
    PositiveInt,
    Probability,
    Resource,
    Seed,
    Text,
)
from tools_service.base.staged_models import staged_source
from tools_service.config import ToolsConfig
from tools_service.contract.declarations import PACKAGED, Declarations, installed_tools, undeclared
from tools_service.contract.spec import Select, ToolMethod, ToolName, ToolSpec


class ModelConfig(Frozen):
    """A causal language model for transformers."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    path: Text = "EleutherAI/gpt-j-6b"
    """Folder or hub name of a causal LM; the paper uses GPT-J (section 4.1)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of the weights. Log-probabilities are always computed in float32 or wider. With bfloat16,
    calls whose gain is near tau_f may be kept or dropped otherwise than with float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto uses a GPU if there is one."""
    max_batch_tokens: PositiveInt | None = None
    """Maximum tokens per forward pass, with padding. None: measured on a GPU, 16,384 on a CPU."""
    compile: bool = False
    """Compile norms and MLPs with torch.compile, on a GPU; ignored on a CPU. Takes minutes at the start."""
    gpus: Annotated[Gpus, Field(gt=0.0)] = 1.0
    """GPUs to spread the layers over if one is too small. Below 1: the share of one GPU's memory to use,
    so that several processes can have a model on it. On Ray, ray.gpus_per_actor is used."""

    def placed(self, gpus: float) -> ModelConfig:
        """The same on the `gpus` that Ray reserved for a process; on the CPU if there are none."""
        placement: dict[str, object] = {"gpus": gpus} if gpus else {"device": "cpu"}
        return self.model_copy(update=placement)

    def with_absolute_path(self) -> ModelConfig:
        """The same with the absolute path of a local folder, or of a staged model of the hub: Ray's workers
        have another working directory."""
        local = Path(staged_source(self.path))
        return self.model_copy(update={"path": str(local.resolve())}) if local.is_dir() else self


def _of_slice(value: str) -> str:
    if not re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", value):
        raise ValueError("must be a number and the number of all slices, as in 0/4")
    return value


class CorpusConfig(Frozen):
    """The files to read, and how to split their documents into texts."""

    paths: tuple[Text, ...] = ()
    """Files, folders, globs or URIs (CCNet .json.gz, jsonl, jsonl.gz, jsonl.zst, Parquet, text)."""
    text_field: Text | None = None
    """Field with the text. None: raw_content, text or content."""
    url_field: Text | None = None
    """Field with the URL. None: url or source_url (also under metadata), or an id that is a URL."""
    title_field: Text | None = None
    """Field with the title. None: title or metadata.title."""
    date_field: Text | None = None
    """Field with the date. None: date or date_published (also under metadata), no crawl date."""
    max_tokens: PositiveInt = 512
    """Maximum tokens per text. The context must hold the prompt, the text twice and a call."""
    min_characters: PositiveInt = 20
    """Shorter passages are skipped, with the reason recorded."""
    max_document_characters: Annotated[int, Field(ge=1, le=2**26)] = 5_000_000
    """Longer documents are skipped, with the reason recorded; in text files, longer lines."""
    skip_call_syntax: bool = False
    """Skip texts that already hold call syntax ([QA(…); they are counted in any case."""
    max_texts: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    """Stop after this many texts. None: read everything."""
    slice: Annotated[str, AfterValidator(_of_slice)] | None = None
    """i/N, i from 0: every N-th file from the i-th on, one job per slice (docs/operations.md)."""

    @property
    def slice_index_and_count(self) -> tuple[int, int]:
        """i and N of the slice; (0, 1) for the whole corpus."""
        index, count = (self.slice or "0/1").split("/")
        return int(index), int(count)

    @model_validator(mode="after")
    def _check_slice(self) -> CorpusConfig:
        index, count = self.slice_index_and_count
        if count < 1:
            raise ValueError(f"slice = {self.slice}: there must be at least one slice, as in 0/1")
        if index >= count:
            raise ValueError(f"slice = {self.slice}: {count} slices are 0/{count} to {count - 1}/{count}")
        return self


class MethodConfig(Frozen):
    """The tools to annotate with, and a section for each: by default what its declaration says."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ToolMethod]

    tools: tuple[ToolName, ...] = PACKAGED
    """Tools to annotate with; a tools file adds those that it declares."""
    prompts: FilePath | None = None
    """Folder with one prompt file per tool. None: the prompts of this package."""
    use_prompts: bool = True
    """Sample calls behind the tools' prompts. False: behind the text alone, for a model that was fine-tuned
    on C* (docs/rounds.md)."""
    seed: Seed = 0
    """Seed of sampling. Seed, text, tool and position determine the sampled calls."""

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, values: Any) -> Any:
        """Give each installed tool its section; what is not set there comes from the declaration."""
        if not isinstance(values, Mapping):
            return values
        given = dict(values)
        _read_random_share(given)  # where manifests of earlier versions have it
        return given | {
            spec.section: with_declared(given[spec.section], spec) if spec.section in given else spec.method()
            for spec in installed_tools().values()
        }

    @model_validator(mode="after")
    def _check_tools(self) -> MethodConfig:
        if not self.tools or len(set(self.tools)) != len(self.tools):
            raise ValueError(f"tools: name at least one tool and each tool once, got {list(self.tools)}")
        return self

    def of(self, tool: str) -> ToolMethod:
        """The settings of one tool; KeyError if there is none of that name."""
        sections = self.__pydantic_extra__ or {}
        return sections[tool.lower()]

    @property
    def input_rule(self) -> frozenset[str]:
        """The tools that drop calls whose input stands in the text only after them."""
        return frozenset(tool for tool in self.tools if self.of(tool).drop_input_only_after)

    def with_declarations(self, declarations: Declarations) -> MethodConfig:
        """The same with what a tools file says; the tools that it declares are annotated with, too."""
        sections = {spec.section: spec.method() for spec in declarations.declared}
        for tool, values in declarations.methods.items():
            sections[tool.lower()] = ToolMethod.model_validate(self.of(tool).model_dump() | dict(values))
        new = [spec.name for spec in declarations.declared if spec.name not in self.tools]
        return self.model_copy(update={**sections, "tools": (*self.tools, *new)})

    def with_section(self, tool: str, settings: ToolMethod) -> MethodConfig:
        """The same with other settings of one tool."""
        return self.model_copy(update={tool.lower(): settings})


def with_declared(section: Any, spec: ToolSpec) -> Any:
    """A section of `MethodConfig`; what a tool is comes from its declaration, unless it was given."""
    declared = {name: getattr(spec, name) for name in _DECLARED}
    if isinstance(section, ToolMethod):
        given = section.model_fields_set
        return section.model_copy(update={n: value for n, value in declared.items() if n not in given})
    return declared | dict(section) if isinstance(section, Mapping) else section


# Not numbers that a run varies, but what a tool is.
_DECLARED = {"prompt", "select", "takes_input", "drop_input_only_after"}


def _read_random_share(values: dict[str, Any]) -> None:
    """Move the share of random texts into its tool's section."""
    for spec in installed_tools().values():
        share = values.pop(f"{spec.section}_random_share", None)
        if share is not None:
            section = with_declared(values.get(spec.section, spec.method()), spec)
            method = section if isinstance(section, ToolMethod) else ToolMethod.model_validate(section)
            select = Select.model_validate(method.select.model_dump() | {"random_share": share})
            values[spec.section] = method.model_copy(update={"select": select})


class ActorPoolConfig(Frozen):
    """The actors of a run on Ray."""

    address: Text | None = None
    """Ray cluster to join (auto, ray://…). None: RAY_ADDRESS if it is set, else a local cluster."""
    actors: PositiveInt = 1
    """Actors; each holds one copy of the model."""
    max_actors: PositiveInt | None = None
    """Maximum actors of an elastic run. It begins when one actor has its resources, and grows to this number
    as nodes join. None: exactly ray.actors."""
    gpus_per_actor: Gpus = 1.0
    """GPUs per actor. 0: run on the CPU; 2 or more: spread the layers over them. Below 1:
    actors share a GPU, and each uses this share of its memory."""
    cpus_per_actor: Annotated[Resource, Field(gt=0.0)] = 1.0
    """CPUs per actor; on a CPU, also its number of threads."""
    wait_s: NotNegative = 30.0
    """Seconds to wait for nodes that a named cluster lacks, each time anew when one joins. While an
    autoscaler starts nodes, the wait has no limit."""

    @property
    def most_actors(self) -> int:
        """The maximum number of actors, elastic or not."""
        return self.actors if self.max_actors is None else self.max_actors

    @property
    def initial_actors(self) -> int:
        """The actors to ask Ray for at once. Those on GPUs start as nodes join. On CPUs they would take what
        reading needs: there Ray Data adds actors while CPUs are left."""
        return self.most_actors if self.gpus_per_actor else self.actors

    @property
    def needed_actors(self) -> int:
        """The actors without which a run cannot begin as it was asked for."""
        return 1 if self.max_actors is not None and self.gpus_per_actor else self.actors

    @model_validator(mode="after")
    def _check_actors(self) -> Self:
        if self.most_actors < self.actors:
            raise ValueError(f"max_actors = {self.max_actors}: must be at least actors = {self.actors}")
        return self


class RayConfig(ActorPoolConfig):
    """Resources of an annotation run on Ray."""

    texts_per_batch: PositiveInt = 64
    """Texts per batch of an actor."""
    stall_warning_s: NotNegative = 60.0
    """Seconds without a finished text after which `annotate` says what it waits for, and again at growing
    intervals. 0: never."""

    @property
    def pool(self) -> ActorPoolConfig:
        """The actors alone."""
        return ActorPoolConfig(**self.model_dump(include=set(ActorPoolConfig.model_fields)))


class CallsConfig(Frozen):
    """What decides which calls a text gets."""

    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    # Not made at import: that loads the tools of other packages, which may import this module.
    method: MethodConfig = Field(default_factory=MethodConfig)
    tools: ToolsConfig = Field(default_factory=ToolsConfig)

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        """Refuse a section of the method for a tool that is not declared, and fill in the declared ones."""
        require_declared(self.method.tools, self.tools, "method.tools")
        declared = {spec.section: spec for spec in self.tools.specs.values()}
        given = self.method.__pydantic_extra__ or {}
        for section in given.keys() - declared.keys():
            raise ValueError(f"method.{section}: no tool of that name is declared; remove the section")
        missing = {name: spec.method() for name, spec in declared.items() if name not in given}
        if missing:
            object.__setattr__(self, "method", self.method.model_copy(update=missing))
        return self


def require_declared(names: Iterable[str], tools: ToolsConfig, field: str) -> None:
    if problem := undeclared(names, tools.specs):
        raise ValueError(f"{field}: {problem}")


class AnnotateConfig(CallsConfig):
    """Steps 1–4: select, sample, execute, filter."""

    ray: RayConfig = RayConfig()
    max_failed_share: Probability = 0.01
    """Stop if more than this share of the texts fails, counted over at least 1,000 texts."""
    retry_failed: bool = False
    """When resuming, remove the rows of failed texts first, so that these texts are tried again."""
    max_hours: Positive | None = None
    """Stop after so many hours of this start; the same command goes on. Batches in progress are finished."""
    max_gpu_hours: Positive | None = None
    """Stop when this start's actors and tools have held GPUs for so many hours in all, like max_hours."""
    output: FilePath = Path("runs/annotations")
    """Folder for the rows (Parquet) and manifest.json; an interrupted run in it is resumed."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        gpus = [self.ray.gpus_per_actor, *(self.tools.of(tool).deployment.gpus for tool in self.method.tools)]
        if self.max_gpu_hours is not None and not any(gpus):
            raise ValueError(
                f"max_gpu_hours = {self.max_gpu_hours:g}: neither actors nor tools use a GPU; use max_hours"
            )
        return self


class PlanConfig(AnnotateConfig):
    """The configuration of annotate, and the options of its plan."""

    output: FilePath = Path("runs/plan.json")
    """File for the plan; nothing else is written."""
    sample: PositiveInt = 2_000
    """Texts to read, select and tokenise as a sample of the corpus."""
    like: FilePath | None = None
    """Finished annotation folder to take assumptions from. None: those of the demo."""
    hardware: Hardware | None = None
    """Accelerator of an annotating actor; its peak times utilisation is the assumed speed."""
    utilisation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Assumed share of the BF16 peak that the model reaches; replace it by a measured one."""
    flops_per_s: Positive | None = None
    """Measured speed of an annotating actor; overrides hardware and utilisation."""
    price_per_hour: Positive | None = None
    """Price of a GPU per hour (of an actor if it has no GPU), in any currency."""
    deadline_hours: Positive | None = None
    """Hours in which annotate must finish; determines the number of actors."""
    calls_per_s: Annotated[dict[str, Positive] | None, ForEveryTool] = None
    """Calls per second of a tool replica, one number or by tool (measure with bench.tools). None: built-in
    figures."""


CapBy = Literal["random", "gain"]
SameTexts = Literal["refuse", "unite"]


class MergeConfig(Frozen):
    """Step 5: keep calls by threshold, cap them per tool, insert them."""

    annotations: Annotated[tuple[FilePath, ...], Field(min_length=1)] = (Path("runs/annotations"),)
    """Folders that annotate wrote, or globs of them; for a sliced corpus, all slices."""
    missing_slices: bool = False
    """Merge even if slices of a corpus are missing."""
    same_texts: SameTexts = "refuse"
    """A text that several annotations hold: refuse, or unite the calls of all of them (docs/rounds.md)."""
    output: FilePath = Path("runs/augmented")
    """Folder for C* (Parquet) and manifest.json."""
    tau_f: Annotated[dict[str, Nats] | None, ForEveryTool] = None
    """Threshold of all tools, or thresholds by tool (Calculator 1.0 QA 0.5), not below those of the
    annotations. None: those of the annotations."""
    max_examples: PositiveInt = 25_000
    """Maximum texts per tool (section 4.1)."""
    cap_by: CapBy = "random"
    """Which texts stay if a tool has more: a seeded choice (random), or those with the largest gain."""
    one_call_per_position: bool = False
    """If several tools help at one position, keep one, drawn at random. False: keep all."""
    plain_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of C*'s texts without a call, drawn from the annotated texts that have no kept call."""
    seed: Seed = 0
    """Seed of the random choices."""


class ScoreConfig(Frozen):
    """What insertions that others made are worth, by the filter of step 4."""

    files: tuple[Text, ...] = ()
    """Files, folders, globs or URIs of JSON lines: text, position, insertion (docs/scoring.md)."""
    model: ModelConfig = ModelConfig()
    place: Literal["prefix", "position"] = "prefix"
    """prefix: the insertion stands before the whole text, as in the paper; position: where it belongs."""
    tokens: PositiveInt | None = 5
    """Tokens after the position that count. None: all that follow, equally."""
    weights: Literal["linear", "uniform"] = "linear"
    """linear: weights fall to zero over the tokens, as in the paper (section 2); uniform: they are equal."""
    per_token: bool = False
    """Also give the log-probability of each token that counts."""
    field: Text = "score"
    """Field of the output lines that holds the result."""
    ray: ActorPoolConfig = ActorPoolConfig()
    output: FilePath = Path("runs/scores")
    """Folder for the lines with their scores and manifest.json; an interrupted run in it is resumed."""


class TryConfig(CallsConfig):
    """A tool on a few texts, to see what each stage does. An option that is None leaves what is set."""

    tool: Text | None = None
    """The tool to try."""
    texts: PositiveInt = 20
    """Texts to try it on: the first that are selected."""
    text: Text | None = None
    """One text to try in place of a corpus, selected or not."""
    max_scanned: PositiveInt = 10_000
    """Stop looking for selected texts after this many texts."""
    threads: PositiveInt | None = None
    """CPU threads of the model; recipes give as many as an annotating actor has. None: one per CPU."""
    tau_s: Probability | None = None
    """Positions with p(<API>) above this threshold are candidates."""
    k: PositiveInt | None = None
    """Maximum positions per text."""
    m: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Calls sampled per position."""
    tau_f: Nats | None = None
    """Keep a call if it lowers the loss by at least this many nats."""
    given_name: Annotated[bool | None, NotAnOption()] = None
    """Draw after <API> and the tool's name instead of after <API>."""

    def method_of_tool(self, tool: str) -> MethodConfig:
        """The method with one tool, and with the options over its section. KeyError for no such tool."""
        names = ("tau_s", "k", "m", "tau_f", "given_name")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        settings = self.method.of(tool).model_copy(update=given)
        return self.method.model_copy(update={"tools": (tool,)}).with_section(tool, settings)


class ExportConfig(Frozen):
    """C* in the formats of other trainers."""

    data: FilePath = Path("runs/augmented")
    """Folder that merge wrote."""
    format: Literal["text", "chat", "sharegpt"] = "text"
    """text: as it is; chat: messages with tool calls, in the form of OpenAI's API; sharegpt: turns."""
    file_type: Literal["jsonl", "parquet"] = "jsonl"
    """Type of the file with the rows."""
    mask_results: bool = False
    """For text: segments with labels, false for tools' results, instead of one string. Trainers mask the
    results in chat and sharegpt themselves."""
    instruction: Text | None = "Write a text. Call tools where they help."
    """User's message that begins a chat. None: a chat begins with the assistant."""
    continuation: Text = "Continue."
    """User's turn before a call that follows text, which sharegpt requires."""
    tools_as: Literal["json", "list"] = "json"
    """How the column `tools` holds the schemas: as JSON (TRL, LLaMA-Factory), or as a list whose parameters
    are JSON (axolotl)."""
    push_to_hub: Text | None = None
    """Upload the result as this data set of the Hugging Face hub; the token is that of HF_TOKEN or the
    login. None: upload nothing."""
    public: bool = False
    """Make the data set on the hub public."""
    output: FilePath = Path("runs/export")
    """Folder for the rows, manifest.json and the card."""

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.mask_results and self.format != "text":
            raise ValueError(
                f"mask_results: with format = {self.format} the trainer masks the results itself"
            )
        if self.instruction is None and self.format == "sharegpt":
            raise ValueError("instruction: sharegpt needs one, because its first turn is the user's")
        return self


def changed_fields(before: BaseModel, after: BaseModel, ignore: Mapping[str, Any]) -> list[str]:
    """``field: before → after`` for each different field that is not in `ignore` (pydantic's `exclude`)."""
    old, new = (config.model_dump(mode="json", exclude=dict(ignore)) for config in (before, after))
    return list(_changed(old, new))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = _by_name(before.get(name)), _by_name(after.get(name))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old!r:.200} → {new!r:.200}"


def _by_name(value: Any) -> Any:
    """Declarations of tools by name, so that a difference names the tool and the key."""
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {item["name"]: item for item in value}
    return value
