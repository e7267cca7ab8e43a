"""Typed configuration: one frozen model per step, the paper's values as defaults.

Every field can be set by a recipe (recipes.py) and overridden on the command line by its name. A
description names the section of the paper (arXiv 2302.04761) a value comes from. Unknown names and values
out of range are errors that name the field. Nothing here touches a file, a model or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.base.hardware import Hardware
from tools_service.base.settings import (
    Frozen,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Probability,
)
from tools_service.config import ToolsConfig
from tools_service.tools.contract import ToolName


class ModelConfig(Frozen):
    """A causal language model of transformers."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    path: str = "EleutherAI/gpt-j-6b"
    """Folder or hub name for AutoModelForCausalLM.from_pretrained; GPT-J is the paper's (section 4.1)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights. Log-probabilities are always computed in float32 or wider."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in one forward, padding included; None: what fits a GPU, 16,384 on a CPU."""
    compile: bool = False
    """Compile norms and MLPs (torch.compile): a wait of minutes, then fewer kernels; for GPUs."""
    gpus: PositiveInt = 1
    """GPUs to spread the layers over, if one cannot hold them; annotate takes ray.gpus_per_actor."""


class CorpusConfig(Frozen):
    """Which files to read, and how documents become texts."""

    paths: tuple[str, ...] = ()
    """Files, folders, globs or URIs (CCNet .json.gz, jsonl, jsonl.gz, jsonl.zst, Parquet, text)."""
    text_field: str | None = None
    """Field with the text; None recognises raw_content, text, content."""
    url_field: str | None = None
    """Field with the URL; None recognises url, source_url (also under metadata) and an id that is one."""
    title_field: str | None = None
    """Field with the title; None recognises title, metadata.title."""
    date_field: str | None = None
    """Field with the date; None recognises date, date_published (also under metadata), no date of a crawl."""
    max_tokens: PositiveInt = 512
    """Longest text in the model's tokens: the prompt, the text twice and a call must fit its context."""
    min_characters: PositiveInt = 20
    """Shorter passages are skipped with a reason."""
    max_document_characters: Annotated[int, Field(ge=1, le=2**26)] = 5_000_000
    """Longer documents (dumps, logs) are skipped with a reason; in a text file, longer lines."""
    max_texts: int | None = Field(default=None, ge=1)
    """Stop after this many texts; None reads everything."""
    slice: Annotated[str, Field(pattern=r"^[0-9]+/[0-9]+$")] | None = None
    """i/N, i from 0: only every N-th file of the list, from the i-th on; a job each (docs/operations.md)."""

    @property
    def part(self) -> tuple[int, int]:
        """i and N; a whole corpus is 0 of 1."""
        index, of = (self.slice or "0/1").split("/")
        return int(index), int(of)

    @model_validator(mode="after")
    def _slice_there(self) -> CorpusConfig:
        index, of = self.part
        if index >= of:
            raise ValueError(f"slice = {self.slice}: the slices of {of} are 0/{of} to {of - 1}/{of}")
        return self


class ToolMethod(Frozen):
    """Sampling and filtering of one tool (paper section 2, Appendix A)."""

    tau_s: Probability = 0.05
    """A position is a candidate if p(<API>) is above this."""
    k: PositiveInt = 5
    """Most positions per text."""
    m: PositiveInt = 5
    """Draws per position."""
    tau_f: float = 1.0
    """A call is kept if it lowers the loss by at least this many nats."""
    max_call_tokens: PositiveInt = 60
    """A draw that has not closed after this many tokens is discarded."""


class MethodConfig(Frozen):
    """The five tools' settings; the defaults are the paper's (Appendix A)."""

    tools: tuple[ToolName, ...] = ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
    """Tools to annotate with."""
    qa: ToolMethod = ToolMethod()
    """Question answering."""
    wikisearch: ToolMethod = ToolMethod()
    """Wikipedia search."""
    calculator: ToolMethod = ToolMethod(tau_s=0.0, k=20, m=10, tau_f=0.5)
    """Calculator."""
    calendar: ToolMethod = ToolMethod()
    """Calendar."""
    mt: ToolMethod = ToolMethod(tau_s=0.0, k=20, m=10, tau_f=0.5)
    """Machine translation."""
    prompts: Path | None = None
    """Folder with one prompt file per tool; None takes pipeline/prompts."""
    calculator_random_share: Probability = 0.01
    """Share of the texts with three numbers but no sign of arithmetic that the calculator gets (App. A)."""
    seed: int = 0
    """Seed of every draw; with the text, tool and position it fixes the samples."""

    @model_validator(mode="after")
    def _some_tool(self) -> MethodConfig:
        if not self.tools or len(set(self.tools)) != len(self.tools):
            raise ValueError(f"tools: name each wanted tool once, got {list(self.tools)}")
        return self

    def of(self, tool: ToolName) -> ToolMethod:
        """The settings of one tool."""
        by_name: dict[ToolName, ToolMethod] = {
            "QA": self.qa,
            "WikiSearch": self.wikisearch,
            "Calculator": self.calculator,
            "Calendar": self.calendar,
            "MT": self.mt,
        }
        return by_name[tool]


class RayConfig(Frozen):
    """How the graph runs."""

    address: str | None = None
    """Cluster to join (auto, ray://…); None starts a local one unless RAY_ADDRESS is set."""
    actors: PositiveInt = 1
    """Annotating actors, each with one copy of the model."""
    gpus_per_actor: NotNegative = 1.0
    """GPUs reserved by an annotating actor; 0 runs on the CPU, 2 and more share the layers of one model."""
    cpus_per_actor: Positive = 1.0
    """CPUs reserved by an annotating actor; also its number of threads when it runs on CPU."""
    texts_per_batch: PositiveInt = 64
    """Texts that travel together through an actor."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> RayConfig:
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"gpus_per_actor = {self.gpus_per_actor}: more than one must be a whole number")
        return self


class AnnotateConfig(Frozen):
    """Steps 1–4: select, sample, execute, filter."""

    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    tools: ToolsConfig = ToolsConfig()
    ray: RayConfig = RayConfig()
    max_failed_share: Probability = 0.01
    """Stop when more than this share of the texts fail (of 1,000 texts at least)."""
    retry_failed: bool = False
    """Before going on with a run, remove the rows of the texts that failed, so that they are tried again."""
    output: Path = Path("runs/annotations")
    """Folder for the rows (Parquet) and manifest.json; a run that was interrupted there goes on."""


class PlanConfig(AnnotateConfig):
    """What annotate would be given, and what a plan of it needs besides."""

    output: Path = Path("runs/plan.json")
    """File for the plan; nothing else is written."""
    sample: PositiveInt = 2_000
    """Texts to read, select and tokenise, spread over the corpus."""
    like: Path | None = None
    """Finished folder of annotations to take assumptions from; None takes the demo's."""
    hardware: Hardware | None = None
    """What an annotating actor runs on; with utilisation this gives its speed."""
    utilisation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of the hardware's BF16 peak that is reached: an assumption until a run of yours has shown it."""
    flops_per_s: Positive | None = None
    """Speed of an annotating actor, as measured; goes before hardware and utilisation."""
    price_per_hour: Positive | None = None
    """Of one GPU (of one actor where none has a GPU), in any currency."""
    deadline_hours: Positive | None = None
    """When annotating is to be done; gives the number of actors."""
    calls_per_s: dict[ToolName, float] | None = None
    """Calls a replica of a tool answers (bench.tools measures it); None: as forecast/hardware.py says."""


class MergeConfig(Frozen):
    """Step 5: keep by threshold, cap per tool, insert the calls."""

    annotations: tuple[Path, ...] = (Path("runs/annotations"),)
    """Folders that annotate wrote, or globs of such; of a sliced corpus all slices."""
    missing_slices: bool = False
    """Merge although slices of a corpus are missing."""
    output: Path = Path("runs/augmented")
    """Folder for C* (Parquet) and manifest.json."""
    tau_f: dict[ToolName, float] | None = None
    """Thresholds by tool, none below what was annotated with; None takes those of the annotations' recipe."""
    max_examples: PositiveInt = 25_000
    """Most texts per tool (section 4.1); a seeded choice when there are more."""
    one_call_per_position: bool = False
    """Where several tools help at one position, keep the call of one, drawn by text; False keeps all."""
    seed: int = 0
    """Seed of both choices."""


class FinetuneConfig(Frozen):
    """Step 6: language modelling on C* (section 4.1, Appendix B)."""

    model: ModelConfig = ModelConfig()
    data: Path = Path("runs/augmented")
    """Folder that merge wrote."""
    column: Literal["text", "plain"] = "text"
    """text trains on C* with its calls; plain on the same texts without them (the baseline M + CC)."""
    output: Path = Path("runs/model")
    """Folder for the final model and the checkpoints."""
    sequence_length: PositiveInt = 1_024
    """Tokens per example."""
    batch_size: PositiveInt = 128
    """Examples per optimizer step, over all workers."""
    micro_batch_size: PositiveInt = 8
    """Examples per forward on one worker."""
    learning_rate: Positive = 1e-5
    """Peak, after the warm-up."""
    warmup_share: Probability = 0.1
    """Share of the steps with linearly rising rate."""
    max_steps: PositiveInt = 2_000
    """Optimizer steps."""
    evaluate_every: PositiveInt = 500
    """Steps between evaluations of perplexity; each also writes a checkpoint."""
    held_out: PositiveInt = 1_000
    """Texts kept apart for that perplexity."""
    workers: PositiveInt = 8
    """Ray Train workers."""
    use_gpu: bool = True
    """One GPU per worker."""
    cpus_per_worker: PositiveInt = 1
    """CPUs reserved by a worker; also its number of threads."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """DeepSpeed ZeRO stage."""
    deepspeed: Path | None = None
    """DeepSpeed configuration (JSON) for that stage; None takes cluster/deepspeed/zeroSTAGE.json."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them: slower, much less memory."""
    max_failures: NotNegativeInt = 3
    """Lost workers or nodes a run survives, each time from its last checkpoint."""
    seed: int = 0
    """Seed of the held-out choice and of the order of the examples."""

    @property
    def accumulation(self) -> int:
        """Forwards on each worker per optimizer step."""
        return self.batch_size // (self.workers * self.micro_batch_size)

    @model_validator(mode="after")
    def _whole_batches(self) -> FinetuneConfig:
        if self.batch_size % (self.workers * self.micro_batch_size):
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of workers x micro_batch_size = "
                f"{self.workers} x {self.micro_batch_size}: change one of the three"
            )
        if self.zero_stage == 0 and self.model.dtype == "bfloat16":
            raise ValueError("zero_stage = 0 trains bfloat16 weights less exactly than the others: use 1")
        return self


class GenerateConfig(Frozen):
    """Step 7: decoding with tools."""

    model: ModelConfig = ModelConfig()
    tools: ToolsConfig = ToolsConfig()
    k: NotNegativeInt = 10
    """A call starts where <API> is among the k likeliest tokens (section 4.2); 0 never calls, 1 is greedy."""
    disabled: bool = False
    """Set the probability of <API> to 0."""
    tools_off: tuple[ToolName, ...] = ()
    """Tools that must not be called."""
    max_new_tokens: PositiveInt = 64
    """Longest continuation, the call and its result not counted."""
    date: str | None = None
    """The calendar's day, YYYY-MM-DD; None is today."""


class EvaluateConfig(Frozen):
    """Step 8: accuracy by benchmark and perplexity."""

    generation: GenerateConfig = GenerateConfig()
    benchmarks: tuple[Path, ...] = ()
    """Question files (jsonl: prompt, answers, scoring, date)."""
    perplexity: tuple[str, ...] = ()
    """Corpus files for perplexity, with calls disabled."""
    output: Path = Path("runs/evaluation.json")
    """Where the result goes."""
    batch_size: PositiveInt = 32
    """Prompts decoded together."""


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``field: before → after`` for what differs between two dumped configurations, with dots for nesting."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} → {new!r}")
    return found
