"""Question answering (paper section 3, Appendix A): ``QA(question)`` answers with a few words.

In: a question. Out: the answer that a reader model finds in passages of WikiSearch's index, as in
Atlas. A question without a hit has no answer. There are two readers (config.QAConfig.reader):

- ``fid``, fusion-in-decoder: each passage is encoded with the question, and the decoder sees all of them.
  The cost is linear in the number of passages. For T5's architecture (no positions in cross-attention);
- ``concatenated``: the question and all passages are one input, for any encoder-decoder (Flan-T5, BART).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tools_service.config import QAConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult, ToolUnavailableError
from tools_service.retrieval.passages import Hit, Passage
from tools_service.retrieval.retriever import Retriever
from tools_service.tools.seq2seq import (
    Ids,
    Seq2Seq,
    Seq2SeqError,
    load_seq2seq,
    require_model,
    well_formed,
)
from tools_service.tools.wikisearch import require_searchable

MAX_QUESTION_CHARACTERS = 1_000

_FID_ARCHITECTURES = ("t5", "mt5", "umt5")


class QA:
    """`QA(question)`: a list of questions to a list of short answers or reasons."""

    name = "QA"

    @classmethod
    def create(cls, _spec: ToolSpec, settings: QAConfig, tools: ToolsConfig) -> QA:
        """The tool, over the index of another."""
        return cls(settings, _index_settings(settings, tools))

    @staticmethod
    def check(spec: ToolSpec, settings: QAConfig, tools: ToolsConfig) -> None:
        """Raise ToolUnavailableError if there is nothing to read, or no reader."""
        [index] = QA.depends_on(settings)
        require_searchable(spec.name, tools.spec(index).section, _index_settings(settings, tools))
        require_model(settings.model, f"tools.{spec.section}.model")

    @staticmethod
    def reads(settings: QAConfig) -> list[str]:
        """The reader."""
        return [settings.model]

    @staticmethod
    def depends_on(settings: QAConfig) -> list[str]:
        """The tool with the index."""
        if settings.index_of is None:
            raise ToolUnavailableError("tools.qa.index_of: name the tool whose index has the passages")
        return [settings.index_of]

    def __init__(
        self, config: QAConfig, search: WikiSearchConfig, retriever: Retriever | None = None
    ) -> None:
        """Load the reader, or raise Seq2SeqError, and the index unless there is a `retriever`."""
        model, self._tokenizer = load_seq2seq(config, "tools.qa")
        require_reader(config, model.config.model_type)
        self._reader = Seq2Seq(
            model, self._tokenizer, max_batch_tokens=config.max_batch_tokens, beams=config.beams
        )
        self._retriever = retriever or Retriever(search)
        self._config = config

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Answer every question for which there are passages."""
        questions = [well_formed(call.text).strip() for call in inputs]
        valid = [question for question in questions if _refusal(question) is None]
        hits = self._retriever.search(valid, self._config.passages) if valid else []
        hits_of = dict(zip(valid, hits, strict=True))

        prepared = [_refusal(text) or self._prepare(text, hits_of[text]) for text in questions]
        to_read = [segments for segments in prepared if isinstance(segments, list)]
        limits = [self._config.max_answer_tokens] * len(to_read)
        answers = iter(self._reader.generate(to_read, limits))
        return [_result(next(answers)) if isinstance(item, list) else item for item in prepared]

    def _prepare(self, question: str, hits: Sequence[Hit]) -> list[Ids] | ToolResult:
        """Return the reader's input, segment by segment; a reason if there is no hit."""
        if not hits:
            return ToolResult(reason="no passage found")
        passages = [self._retriever.passage(hit.passage) for hit in hits]
        limit = self._config.max_passage_tokens
        if self._config.reader == "concatenated":
            limit = min(limit * len(passages), self._reader.max_positions or 2**31)
        texts = reader_texts(self._config, question, passages)
        return [encode_text(self._tokenizer, text, limit) for text in texts]


def _index_settings(settings: QAConfig, tools: ToolsConfig) -> WikiSearchConfig:
    [index] = QA.depends_on(settings)
    found = tools.of(index) if index in tools.specs else None
    if not isinstance(found, WikiSearchConfig):
        raise ToolUnavailableError(f"tools.qa.index_of = {index!r}: no tool of that name has an index")
    return found


def require_reader(config: QAConfig, model_type: str) -> None:
    """Raise Seq2SeqError unless a checkpoint of this type can be the reader that `config` asks for."""
    if config.reader == "fid" and model_type not in _FID_ARCHITECTURES:
        raise Seq2SeqError(
            f"tools.qa.reader = fid: {config.model!r} is no T5 but {model_type}; use concatenated"
        )


def reader_texts(config: QAConfig, question: str, passages: Sequence[Passage]) -> list[str]:
    """Return the texts for the encoder: one per passage (fid), or one for all (concatenated)."""
    question_text = config.question_format.format(question=question)
    passage_format = config.passage_format
    passage_texts = [passage_format.format(title=p.title, text=p.text) for p in passages]
    if config.reader == "fid":
        return [f"{question_text} {passage_text}" for passage_text in passage_texts]
    return [" ".join([question_text, *passage_texts])]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> Ids:
    """Return at most `limit` ids; the last is the end token, also where the text is cut.

    Special tokens that are written out in the text are text.
    """
    options = {"truncation": True, "max_length": limit, "split_special_tokens": True, "verbose": False}
    ids: Ids = tokenizer(text, **options).input_ids
    return ids


def _refusal(question: str) -> ToolResult | None:
    if not question:
        return ToolResult(reason="empty question")
    return ToolResult(reason="question too long") if len(question) > MAX_QUESTION_CHARACTERS else None


def _result(answer: str | None) -> ToolResult:
    if answer is None:
        return ToolResult(reason="answer too long")
    return ToolResult(answer) if answer else ToolResult(reason="no answer")
