"""Typed configuration of the tools: one section per tool, each with how it is deployed on Ray.

Every field can be set by a recipe, by a TOML file (`--tools-file`) and on the command line, the later over
the earlier. Each tool's class takes its own section. Nothing here touches a file, a model or Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tools_service.base.settings import (
    Frozen,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Probability,
)

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]


class Deployment(Frozen):
    """How one tool runs on Ray Serve, and how long its callers wait."""

    min_replicas: PositiveInt = 1
    """Replicas that are always there."""
    max_replicas: PositiveInt = 1
    """Most replicas; above min_replicas, Ray Serve adds and removes them with the load."""
    target_ongoing_requests: Positive = 2.0
    """Requests per replica, running and waiting, above which a replica is added."""
    cpus: NotNegative = 0.1
    """CPUs reserved by a replica; a share leaves the rest to the annotating actors."""
    gpus: NotNegative = 0.0
    """GPUs reserved by a replica; a share lets several replicas use one."""
    deadline_s: Positive = 30.0
    """A list of calls not answered after this many seconds, retries included, has no results."""
    list_size: PositiveInt = 256
    """Most calls in one request to a replica."""
    threads: PositiveInt = 8
    """Requests that a replica works on at a time; others it accepted wait in it."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that a replica accepts at a time."""
    max_queued_requests: PositiveInt = 1_024
    """Requests that each client keeps waiting for a replica; further ones are retried until the deadline."""
    health_check_s: Positive = 10.0
    """Seconds between checks of a replica; one that fails three is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> Deployment:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas} is below min_replicas = {self.min_replicas}: raise it"
            )
        return self


# A model computes one list while the next ones wait beside it.
_MODEL = Deployment(deadline_s=120.0, threads=1, max_ongoing_requests=4)


class EncoderConfig(Frozen):
    """The encoder of dense retrieval: any of transformers, as its authors meant it."""

    model: str = "intfloat/e5-base-v2"
    """Folder or hub name for AutoModel.from_pretrained."""
    pooling: Literal["mean", "cls"] = "mean"
    """How token vectors become one: their mean, or the first."""
    query_prefix: str = "query: "
    """What stands before a query."""
    passage_prefix: str = "passage: "
    """What stands before a passage."""
    normalize: bool = True
    """Scale vectors to length 1, so that inner products are cosines."""
    max_tokens: PositiveInt = 256
    """Longer queries and passages are cut."""
    batch_size: PositiveInt = 64
    """Texts in one forward."""
    device: Device = "auto"
    """auto takes a GPU when there is one."""
    dtype: DType = "float32"
    """Type of the weights."""


class VectorsConfig(Frozen):
    """The FAISS index over the passages' vectors."""

    kind: Literal["flat", "ivfpq", "hnsw"] = "flat"
    """flat is exact; ivfpq is small; hnsw is fast."""
    lists: PositiveInt | None = None
    """ivfpq: cells; None takes a number from the number of passages."""
    probes: PositiveInt = 64
    """ivfpq: cells searched for a query."""
    code_bytes: PositiveInt = 64
    """ivfpq: bytes per passage; a divisor of the encoder's dimensions."""
    refine: NotNegativeInt = 10
    """ivfpq: candidates per wanted passage, ranked again by vectors kept in float16; 0 keeps none."""
    neighbours: PositiveInt = 32
    """hnsw: links per passage."""
    build_effort: PositiveInt = 200
    """hnsw: candidates looked at while building."""
    search_effort: PositiveInt = 128
    """hnsw: candidates looked at for a query."""
    gpu: Literal["auto", "never"] = "auto"
    """auto searches on a GPU when there is one and FAISS can use it."""


class WikiSearchConfig(Frozen):
    """Wikipedia search: what it searches, and how."""

    source: tuple[str, ...] = ()
    """Files, folders or globs of articles (KILT jsonl, DPR tsv, jsonl with title and text)."""
    index: Path = Path("runs/index")
    """Folder of the index; built again when the source changes. All nodes must see it."""
    retriever: Literal["bm25", "dense", "hybrid"] = "bm25"
    """BM25 (the paper's), vectors, or both fused by reciprocal rank."""
    encoder: EncoderConfig = EncoderConfig()
    vectors: VectorsConfig = VectorsConfig()
    deployment: Deployment = Deployment()


class QAConfig(Frozen):
    """Question answering: a reader over passages of WikiSearch's index, as Atlas is."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    model: str = "google/flan-t5-large"
    """Folder or hub name for AutoModelForSeq2SeqLM.from_pretrained."""
    reader: Literal["fid", "concatenated"] = "concatenated"
    """Passages encoded one by one and read together (T5 architectures), or as one input."""
    passages: PositiveInt = 5
    """Passages read for a question."""
    question_format: str = "question: {question}"
    """How a question is put to the model; passages follow, as the reader says."""
    passage_format: str = "title: {title} context: {text}"
    """How a passage is put to the model."""
    max_passage_tokens: PositiveInt = 200
    """Longest input for a passage, with title and (fid) question; the passage's end is cut off."""
    max_answer_tokens: PositiveInt = 32
    """A question whose answer does not end after this many tokens has no result."""
    beams: PositiveInt = 1
    """Width of the beam search; 1 is greedy."""
    max_batch_tokens: PositiveInt = 16_384
    """Most tokens of passages read at a time, padding included."""
    dtype: DType = "float32"
    """Type of the weights."""
    device: Device = "auto"
    """auto takes a GPU when there is one."""
    deployment: Deployment = _MODEL

    @model_validator(mode="after")
    def _formats(self) -> QAConfig:
        for name, places in (("question_format", ["question"]), ("passage_format", ["title", "text"])):
            written = getattr(self, name)
            try:
                used = written.format(**dict.fromkeys(places, "\0"))
            except (LookupError, ValueError, AttributeError):
                used = ""
            if "\0" not in used:
                raise ValueError(
                    f"{name} = {written!r}: say with {' and '.join(map('{{{}}}'.format, places))} "
                    "where things go, and write other braces twice"
                )
        return self


class CalculatorConfig(Frozen):
    """The calculator has nothing to set but its deployment."""

    deployment: Deployment = Deployment()


class CalendarConfig(Frozen):
    """The calendar."""

    today: bool = False
    """A call without a date gets today's (inference); False gives it no result."""
    deployment: Deployment = Deployment()


class MTConfig(Frozen):
    """Machine translation into English."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    model: str = "facebook/nllb-200-distilled-600M"
    """Folder or hub name of a checkpoint of NLLB's architecture (the paper's, Appendix A)."""
    min_confidence: Probability = 0.5
    """A text whose language fastText is less sure of has no result."""
    max_input_tokens: PositiveInt = 256
    """Longer inputs have no result."""
    beams: PositiveInt = 1
    """Width of the beam search; 1 is greedy, a few times faster than NLLB's published 4."""
    max_batch_tokens: PositiveInt = 4_096
    """Most source tokens translated at a time, padding included."""
    dtype: DType = "float32"
    """Type of the weights."""
    device: Device = "auto"
    """auto takes a GPU when there is one."""
    deployment: Deployment = _MODEL


ToolConfig = WikiSearchConfig | QAConfig | CalculatorConfig | CalendarConfig | MTConfig


class ToolsConfig(Frozen):
    """The five tools, and what their clients do with all answers."""

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "toolformer"
    """First part of the Serve applications' names; jobs on one cluster that share it share the tools."""
    wikisearch: WikiSearchConfig = WikiSearchConfig()
    qa: QAConfig = QAConfig()
    calculator: CalculatorConfig = CalculatorConfig()
    calendar: CalendarConfig = CalendarConfig()
    mt: MTConfig = MTConfig()
    max_result_tokens: PositiveInt = 100
    """Longer results are cut at a word boundary."""
    cache_size: NotNegativeInt = 65_536
    """Answers that each client remembers."""

    def of(self, tool: str) -> ToolConfig:
        """The section of one tool; KeyError if there is none of that name."""
        by_name: dict[str, ToolConfig] = {
            "QA": self.qa,
            "WikiSearch": self.wikisearch,
            "Calculator": self.calculator,
            "Calendar": self.calendar,
            "MT": self.mt,
        }
        return by_name[tool]


class HttpConfig(Frozen):
    """The optional HTTP endpoint of `python -m tools_service serve --http`."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own requires a token."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_700
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """File with the token that callers must send; None reads the variable TOOLS_TOKEN, if it is set."""
    max_body_bytes: PositiveInt = 4 * 2**20
    """Larger requests are refused."""
    max_inputs: PositiveInt = 4_096
    """Longer lists are refused."""
