"""Typed configuration of the tools: a section per declared tool, each with its deployment on Ray.

In: values from a recipe, a TOML file (`--tools-file`) and the command line, the later over the
earlier. Out: a validated ToolsConfig. Each tool's class takes its own section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import (
    FilePath,
    FolderOrUri,
    Frozen,
    ModelPath,
    NotAnOption,
    NotNegativeInt,
    PositiveInt,
    Probability,
    Text,
)
from tools_service.contract.declarations import known_tools, settings_class_if_known
from tools_service.contract.settings import Deployment, ToolSettings
from tools_service.contract.spec import ToolMethod, ToolName, ToolSpec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]

# A model computes one list at a time, while others wait in its replica.
_MODEL = Deployment(deadline_s=120.0, threads=1, max_ongoing_requests=4)
_MODEL_OPERATIONAL = {"deployment": True, "max_batch_tokens": True, "device": True}


class EncoderConfig(Frozen):
    """The encoder of dense retrieval: any encoder of transformers, used as its authors say."""

    model: ModelPath = "intfloat/e5-base-v2"
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


class WikiSearchConfig(ToolSettings):
    """Wikipedia search: its source, index and retriever."""

    OPERATIONAL = {  # noqa: RUF012
        "deployment": True,
        "index": True,
        "local_copy": True,
        "encoder": {"batch_size", "device"},
        "vectors": {"gpu"},
    }

    source: tuple[Text, ...] = ()
    """Files, folders or globs of articles (KILT jsonl, DPR tsv, jsonl with title and text)."""
    index: FolderOrUri = Path("runs/index")
    """Folder of the index, which all nodes see, built again when the source changes. Or the URI of
    one (s3://bucket/path), which each node copies to its disk."""
    local_copy: FilePath | None = None
    """Folder on each node's disk to which the index is copied, once per node. None: a folder is
    read where it is, and a URI is copied below TOOLFORMER_CACHE (~/.cache/toolformer)."""
    retriever: Literal["bm25", "dense", "hybrid"] = "bm25"
    """BM25 (the paper's), vectors, or both fused by reciprocal rank."""
    encoder: EncoderConfig = EncoderConfig()
    vectors: VectorsConfig = VectorsConfig()

    @property
    def folder(self) -> Path:
        """The folder of the index; ConfigurationError if it is at a URI."""
        if isinstance(self.index, Path):
            return self.index
        raise ConfigurationError(
            f"tools.wikisearch.index = {self.index}: an index is built in a folder; name one, copy the index "
            "from there, manifest.json last, and leave out the source where the copy is used"
        )

    def writing_below(self, folder: Path) -> Self:
        """The same with the index in `folder`."""
        return self.model_copy(update={"index": folder / "index"})


class QAConfig(ToolSettings):
    """Question answering: a reader over passages of WikiSearch's index, as Atlas is."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012
    OPERATIONAL = _MODEL_OPERATIONAL

    model: ModelPath = "google/flan-t5-large"
    """Folder or hub name for AutoModelForSeq2SeqLM.from_pretrained."""
    index_of: Annotated[ToolName | None, NotAnOption()] = None
    """The tool whose index has the passages."""
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


class CalendarConfig(ToolSettings):
    """The calendar."""

    today: bool = False
    """Whether a call without a date gets today's (inference) or no result."""

    def at_inference(self) -> Self:
        """The same with today's date."""
        return self.model_copy(update={"today": True})


class MTConfig(ToolSettings):
    """Machine translation into English."""

    RENAMED = {"batch_tokens": "max_batch_tokens"}  # noqa: RUF012
    OPERATIONAL = _MODEL_OPERATIONAL

    model: ModelPath = "facebook/nllb-200-distilled-600M"
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


class ToolsConfig(Frozen):
    """The declared tools, a section each, and how clients treat their answers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, SerializeAsAny[ToolSettings]]

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "toolformer"
    """Prefix of the Serve applications' names; jobs on a cluster with the same one share tools."""
    max_result_tokens: PositiveInt = 100
    """Longer results are cut at a word boundary."""
    cache_size: NotNegativeInt = 65_536
    """Answers that each client caches."""
    declared: Annotated[tuple[ToolSpec, ...], NotAnOption()] = ()
    """The tools that a file declares, beside those of installed packages."""

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, values: Any) -> Any:
        """Give every declared tool its section, as an object of its own class of settings."""
        if not isinstance(values, Mapping):
            return values
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        own["declared"] = _SPECS.validate_python(own.get("declared", ()))
        specs = {spec.section: spec for spec in known_tools(own["declared"]).values()}
        given = {
            name: _with_declared(value, specs[name]) if name in specs else value
            for name, value in values.items()
            if name not in own
        }
        return own | dict(sections_model(own["declared"]).model_validate(given))

    @property
    def specs(self) -> dict[str, ToolSpec]:
        """The declared tools by name, in a fixed order."""
        return known_tools(self.declared)

    def spec(self, tool: str) -> ToolSpec:
        """The declaration of a tool; KeyError if there is none."""
        return self.specs[tool]

    def of(self, tool: str) -> ToolSettings:
        """Return the section of a tool; KeyError if there is none of that name."""
        section: ToolSettings = getattr(self, self.spec(tool).section)
        return section

    def with_sections(self, change: Callable[[ToolSettings], ToolSettings]) -> ToolsConfig:
        """The same with the section of each tool as `change` returns it."""
        return self.model_copy(
            update={spec.section: change(self.of(tool)) for tool, spec in self.specs.items()}
        )

    @property
    def operational(self) -> dict[str, Any]:
        """Fields that no result depends on (as pydantic's `exclude`)."""
        sections = {spec.section: dict(self.of(tool).OPERATIONAL) for tool, spec in self.specs.items()}
        # The sections of the tools and of the method have these, as they are in effect.
        declared = {"__all__": {"settings", *ToolMethod.model_fields}}
        return {"service": True, "cache_size": True, "declared": declared, **sections}

    def at_inference(self) -> ToolsConfig:
        """The same for texts that are written now."""
        return self.with_sections(lambda settings: settings.at_inference())


SECTIONS = "Sections"  # the name of the model of all sections
_SPECS = TypeAdapter(tuple[ToolSpec, ...])


def _with_declared(section: Any, spec: ToolSpec) -> Any:
    """A section with the settings of its declaration, where it says nothing else."""
    if isinstance(section, ToolSettings):
        given = {name: getattr(section, name) for name in section.model_fields_set}
        return type(section).model_validate({**spec.settings, **given}) if spec.settings else section
    return {**spec.settings, **section} if isinstance(section, Mapping) else section


def sections_model(declared: tuple[ToolSpec, ...]) -> type[Frozen]:
    """A model with a field per tool, so that an error names tool and field."""
    if not declared:
        return _installed_sections()
    return _create_sections(known_tools(declared).values())


@cache
def _installed_sections() -> type[Frozen]:
    return _create_sections(known_tools().values())


def _create_sections(specs: Iterable[ToolSpec]) -> type[Frozen]:
    fields: dict[str, Any] = {}
    for spec in specs:
        settings = settings_class_if_known(spec)
        fields[spec.section] = (settings, settings.model_validate(spec.settings))
    return create_model(SECTIONS, __base__=Frozen, **fields)


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
