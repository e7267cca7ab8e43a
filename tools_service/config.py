"""Typed configuration of the tools: a section per tool, each with its deployment on Ray.

In: values from a recipe, a TOML file (`--tools-file`) and the command line, the later over the
earlier. Out: a validated ToolsConfig. Each tool's class takes its own section.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tools_service.base.settings import (
    FilePath,
    Frozen,
    Gpus,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Probability,
    Resource,
    Text,
)

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]
Seconds = Annotated[float, Field(gt=0.0, le=1e6)]


class Deployment(Frozen):
    """How a tool runs on Ray Serve, and how long its callers wait."""

    min_replicas: PositiveInt = 1
    """Replicas that always run."""
    max_replicas: PositiveInt = 1
    """Maximum of replicas; Ray Serve adds and removes those above min_replicas with the load."""
    target_ongoing_requests: Positive = 2.0
    """Requests per replica, running and waiting, above which a replica is added."""
    cpus: Resource = 0.1
    """CPUs reserved by a replica; a fraction leaves the rest to the annotating actors."""
    gpus: Gpus = 0.0
    """GPUs reserved by a replica; with a fraction several replicas share one."""
    deadline_s: Seconds = 30.0
    """Seconds, retries included, after which an unanswered list of calls has no results."""
    list_size: PositiveInt = 256
    """Maximum of calls in one request to a replica."""
    threads: PositiveInt = 8
    """Requests that a replica works on at a time; other accepted requests wait in it."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that a replica accepts at a time."""
    max_queued_requests: PositiveInt = 1_024
    """Requests that each client queues for a replica; others are retried until the deadline."""
    health_check_s: Seconds = 10.0
    """Seconds between health checks; a replica that fails three is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> Deployment:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas} is below min_replicas = {self.min_replicas}: raise it"
            )
        return self


# A model computes one list at a time, while others wait in its replica.
_MODEL = Deployment(deadline_s=120.0, threads=1, max_ongoing_requests=4)


class EncoderConfig(Frozen):
    """The encoder of dense retrieval: any encoder of transformers, used as its authors say."""

    model: Text = "intfloat/e5-base-v2"
    """Folder or hub name for AutoModel.from_pretrained."""
    pooling: Literal["mean", "cls"] = "mean"
    """How token vectors become one vector: their mean, or the first (cls)."""
    query_prefix: str = "query: "
    """Text in front of a query."""
    passage_prefix: str = "passage: "
    """Text in front of a passage."""
    normalize: bool = True
    """Scale vectors to length 1, so that inner products are cosines."""
    max_tokens: PositiveInt = 256
    """Longer queries and passages are cut."""
    batch_size: PositiveInt = 64
    """Texts in one forward pass."""
    device: Device = "auto"
    """auto uses a GPU if there is one."""
    dtype: DType = "float32"
    """Type of the weights."""


class VectorsConfig(Frozen):
    """The FAISS index over the passages' vectors."""

    kind: Literal["flat", "ivfpq", "hnsw"] = "flat"
    """flat is exact; ivfpq is small; hnsw is fast."""
    lists: PositiveInt | None = None
    """ivfpq: cells; None chooses by the number of passages."""
    probes: PositiveInt = 64
    """ivfpq: cells searched for a query."""
    code_bytes: PositiveInt = 64
    """ivfpq: bytes per passage; a divisor of the encoder's dimensions."""
    refine: NotNegativeInt = 10
    """ivfpq: candidates per passage, ranked again by vectors stored in float16; 0 stores none."""
    neighbours: PositiveInt = 32
    """hnsw: links per passage."""
    build_effort: PositiveInt = 200
    """hnsw: candidates examined while building."""
    search_effort: PositiveInt = 128
    """hnsw: candidates examined for a query."""
    gpu: Literal["auto", "never"] = "auto"
    """auto searches on a GPU if there is one that FAISS can use."""


class WikiSearchConfig(Frozen):
    """Wikipedia search: its source, index and retriever."""

    source: tuple[Text, ...] = ()
    """Files, folders or globs of articles (KILT jsonl, DPR tsv, jsonl with title and text)."""
    index: FilePath = Path("runs/index")
    """Folder of the index, built again when the source changes. All nodes must see it."""
    retriever: Literal["bm25", "dense", "hybrid"] = "bm25"
    """BM25 (the paper's), vectors, or both fused by reciprocal rank."""
    encoder: EncoderConfig = EncoderConfig()
    vectors: VectorsConfig = VectorsConfig()
    deployment: Deployment = Deployment()


class QAConfig(Frozen):
    """Question answering: a reader over passages of WikiSearch's index, as Atlas is."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    model: Text = "google/flan-t5-large"
    """Folder or hub name for AutoModelForSeq2SeqLM.from_pretrained."""
    reader: Literal["fid", "concatenated"] = "concatenated"
    """fid encodes passages one by one (T5 architectures); concatenated makes one input of them."""
    passages: PositiveInt = 5
    """Passages read for a question."""
    question_format: str = "question: {question}"
    """Format of a question; passages follow."""
    passage_format: str = "title: {title} context: {text}"
    """Format of a passage."""
    max_passage_tokens: PositiveInt = 200
    """Maximum of tokens for a passage, with title and (fid) question; its end is cut off."""
    max_answer_tokens: PositiveInt = 32
    """Maximum of an answer's tokens; a longer answer is no result."""
    beams: PositiveInt = 1
    """Width of the beam search; 1 is greedy."""
    max_batch_tokens: PositiveInt = 16_384
    """Maximum of passages' tokens in one forward pass, padding included."""
    dtype: DType = "float32"
    """Type of the weights."""
    device: Device = "auto"
    """auto uses a GPU if there is one."""
    deployment: Deployment = _MODEL

    @field_validator("question_format", "passage_format")
    @classmethod
    def _has_slots(cls, value: str, info: ValidationInfo) -> str:
        slots = ["question"] if info.field_name == "question_format" else ["title", "text"]
        try:
            filled = value.format(**dict.fromkeys(slots, "\0"))
        except (LookupError, ValueError, AttributeError):
            filled = ""
        if "\0" in value or "\0" not in filled:
            marks = " and ".join(map("{{{}}}".format, slots))
            raise ValueError(f"mark with {marks} where they go, and write other braces twice")
        return value


class CalculatorConfig(Frozen):
    """The calculator; only its deployment can be set."""

    deployment: Deployment = Deployment()


class CalendarConfig(Frozen):
    """The calendar."""

    today: bool = False
    """Whether a call without a date gets today's (inference) or no result."""
    deployment: Deployment = Deployment()


class MTConfig(Frozen):
    """Machine translation into English."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012

    model: Text = "facebook/nllb-200-distilled-600M"
    """Folder or hub name of a checkpoint of NLLB's architecture (the paper's, Appendix A)."""
    min_confidence: Probability = 0.5
    """Confidence of fastText below which a text has no result."""
    max_input_tokens: PositiveInt = 256
    """Longer inputs have no result."""
    beams: PositiveInt = 1
    """Width of the beam search; 1 is greedy, a few times faster than NLLB's published 4."""
    max_batch_tokens: PositiveInt = 4_096
    """Maximum of source tokens in one forward pass, padding included."""
    dtype: DType = "float32"
    """Type of the weights."""
    device: Device = "auto"
    """auto uses a GPU if there is one."""
    deployment: Deployment = _MODEL


ToolConfig = WikiSearchConfig | QAConfig | CalculatorConfig | CalendarConfig | MTConfig


class ToolsConfig(Frozen):
    """The five tools, and how clients treat their answers."""

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "toolformer"
    """Prefix of the Serve applications' names; jobs on a cluster with the same one share tools."""
    wikisearch: WikiSearchConfig = WikiSearchConfig()
    qa: QAConfig = QAConfig()
    calculator: CalculatorConfig = CalculatorConfig()
    calendar: CalendarConfig = CalendarConfig()
    mt: MTConfig = MTConfig()
    max_result_tokens: PositiveInt = 100
    """Longer results are cut at a word boundary."""
    cache_size: NotNegativeInt = 65_536
    """Answers that each client caches."""

    def of(self, tool: str) -> ToolConfig:
        """Return the section of a tool; KeyError if there is none of that name."""
        sections: dict[str, ToolConfig] = {"QA": self.qa, "WikiSearch": self.wikisearch, "MT": self.mt}
        sections |= {"Calculator": self.calculator, "Calendar": self.calendar}
        return sections[tool]


class HttpConfig(Frozen):
    """The optional HTTP endpoint of `python -m tools_service serve --http`."""

    host: Text = "127.0.0.1"
    """Address to listen on. Every other than this machine's own requires a token."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_700
    """Port to listen on; 0 chooses a free one."""
    allowed_hosts: tuple[Text, ...] = ()
    """Other names by which callers reach an endpoint on loopback, as a proxy passes them on."""
    token_file: FilePath | None = None
    """File with the token that callers must send; None reads the variable TOOLS_TOKEN."""
    max_body_bytes: PositiveInt = 4 * 2**20
    """Larger requests are refused."""
    max_inputs: PositiveInt = 4_096
    """Longer lists are refused."""
