"""Typed configuration of steps 7 and 8: inference and evaluation. config.py has the other steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from pipeline.base.config import ModelConfig, require_declared
from tools_service.base.settings import (
    FilePath,
    Frozen,
    Gpus,
    IsoDate,
    NotNegative,
    NotNegativeInt,
    PositiveInt,
    Resource,
    Seed,
    Text,
)
from tools_service.config import ToolsConfig
from tools_service.contract.declarations import Declarations, installed_tools
from tools_service.contract.spec import MAX_CALL_TOKENS


class CallLengths(Frozen):
    """Tokens after which a call without an arrow fails, by tool."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, PositiveInt]

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, values: Any) -> Any:
        """Give each installed tool the limit of its declaration."""
        if not isinstance(values, Mapping):
            return values
        return {spec.section: spec.max_call_tokens for spec in installed_tools().values()} | dict(values)

    def with_declarations(self, declarations: Declarations) -> CallLengths:
        """The same with the limits of a tools file."""
        limits = {spec.section: spec.max_call_tokens for spec in declarations.declared}
        for tool, values in declarations.methods.items():
            if "max_call_tokens" in values:
                limits[tool.lower()] = values["max_call_tokens"]
        return self.model_copy(update=limits)

    def of(self, tool: str) -> int:
        """The limit of one tool."""
        return (self.__pydantic_extra__ or {}).get(tool.lower(), MAX_CALL_TOKENS)


class GenerateConfig(Frozen):
    """Step 7: decoding with tools."""

    model: ModelConfig = ModelConfig()
    tools: ToolsConfig = Field(default_factory=ToolsConfig)
    k: NotNegativeInt = 10
    """Start a call if <API> is among the top k tokens (section 4.2). 0: never; 1: greedy."""
    disabled: bool = False
    """Set the probability of <API> to 0."""
    tools_off: tuple[str, ...] = ()
    """Tools that must not be called."""
    max_new_tokens: PositiveInt = 64
    """Maximum new tokens, not counting calls and their results."""
    max_call_tokens: CallLengths = Field(default_factory=CallLengths)
    """A call without an arrow after this many tokens fails, by tool."""
    max_calls: NotNegativeInt = 1
    """Maximum calls per prompt; the paper makes one (section 4.2)."""
    max_failed_calls: PositiveInt = 1
    """Begin no further call after this many failed ones; more than 1 lets the model ask again."""
    chained_calls: bool = False
    """Let a call begin inside the input of another call: its result becomes part of that input. Needs
    max_calls of at least 2."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """End the text before any of these strings."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Sample from the distribution with this temperature. 0: greedy, as in the paper."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    seed: Seed = 0
    """Seed of sampling; a prompt gets the same text whatever is decoded beside it."""
    date: IsoDate | None = None
    """Date of the prompts, for dated tools, YYYY-MM-DD. None: today."""

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        require_declared(self.tools_off, self.tools, "tools_off")
        return self

    @property
    def calls_disabled(self) -> bool:
        """Whether no call can begin."""
        return self.disabled or not self.k or not self.max_calls


class ActorsConfig(Frozen):
    """Resources of an evaluation."""

    address: Text | None = None
    """Ray cluster to join (auto, ray://…). None: RAY_ADDRESS if it is set, else a local cluster."""
    actors: NotNegativeInt | None = None
    """Evaluating actors on Ray; each holds one copy of the model. 0: evaluate in this process. None: one for
    each GPU that the tools leave, and in this process where there is no GPU."""
    gpus_per_actor: Gpus = 1.0
    """GPUs per evaluating actor. 0: run on the CPU; 2 or more: spread the layers over them."""
    cpus_per_actor: Annotated[Resource, Field(gt=0.0)] = 1.0
    """CPUs per evaluating actor; on a CPU, also its number of threads."""
    wait_s: NotNegative = 30.0
    """Seconds to wait for nodes that a named cluster lacks, each time anew when one joins. While an
    autoscaler starts nodes, the wait has no limit."""


class EvaluateConfig(Frozen):
    """Step 8: accuracy by benchmark and perplexity."""

    generation: GenerateConfig = Field(default_factory=GenerateConfig)
    benchmarks: tuple[FilePath, ...] = ()
    """Question files (jsonl: prompt, answers, scoring, date), and the paper's benchmarks as NAME=PATH of
    the published files, svamp=SVAMP.json (docs/evaluation.md)."""
    first_line: bool = False
    """Score only the first line of an answer; question files of your own always are."""
    perplexity: tuple[Text, ...] = ()
    """Corpus files to measure perplexity on. Only without calls: disabled, or k = 0 (section 4.3)."""
    plain_perplexity: bool = False
    """Measure the perplexity of a model with calls on as that of a plain language model (a base model)."""
    disabled_perplexity: bool = False
    """Measure the perplexity of a model with calls on as that of a disabled one: <API> has probability 0."""
    window: Annotated[int, Field(ge=2, le=2**20)] = 1_024
    """Tokens of a window in a running text (wikitext); at most the model's context."""
    stride: PositiveInt = 512
    """Tokens from one window of a running text to the next; fewer give each token more context."""
    output: FilePath = Path("runs/evaluation.json")
    """File for the result."""
    batch_size: PositiveInt = 64
    """Most prompts decoded together; fewer if model.max_batch_tokens has no room for their tokens."""
    compare_with: Text | None = None
    """Label of a model in the output, or of this command, to compare with: a paired test on the same
    questions (McNemar)."""
    ray: ActorsConfig = ActorsConfig()

    @model_validator(mode="after")
    def _check_perplexity(self) -> Self:
        if self.plain_perplexity and self.disabled_perplexity:
            raise ValueError("plain_perplexity and disabled_perplexity exclude each other: choose one")
        return self
