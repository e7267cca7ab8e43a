"""Question answering (paper section 3, Appendix A): ``QA(question)`` answers with a few words.

In: a question. Out: what a reader model makes of the passages that a search finds for it, as Atlas does: no
answer is known by heart alone. Two ways to read (config.QAConfig.reader):

- ``fid``, fusion-in-decoder: each passage is encoded with the question, the decoder sees all of them. The
  encoder's cost grows with the number of passages, not with its square. For T5's architecture, whose
  cross-attention has no positions;
- ``concatenated``: the question and all passages as one input, for any encoder-decoder (Flan-T5, BART).

A question for which nothing is found has no answer. The passages come from WikiSearch's index (search.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from tools_service.config import QAConfig, WikiSearchConfig
from tools_service.retrieval.passages import Hit, Passage
from tools_service.tools.contract import ToolInput, ToolResult
from tools_service.tools.seq2seq import Ids, Seq2Seq, Seq2SeqError, load_seq2seq, well_formed

if TYPE_CHECKING:
    from tools_service.tools.wikisearch import Retriever

MAX_QUESTION_CHARACTERS = 1_000

_FUSING = ("t5", "mt5", "umt5")


class QA:
    """`QA(question)`: a list of questions to a list of short answers or reasons."""

    name = "QA"

    def __init__(
        self, config: QAConfig, search: WikiSearchConfig, retriever: Retriever | None = None
    ) -> None:
        """Loads the reader and opens `search`'s index, unless another `retriever` is given.

        Seq2SeqError if the checkpoint cannot be loaded or cannot read in the way that `config` says.
        """
        model, self._tokenizer = load_seq2seq(config, "tools.qa")
        if config.reader == "fid" and model.config.model_type not in _FUSING:
            raise Seq2SeqError(
                f"tools.qa.reader = fid: {config.model!r} is no T5 but {model.config.model_type}; "
                "use concatenated"
            )
        self._reader = Seq2Seq(
            model, self._tokenizer, max_batch_tokens=config.max_batch_tokens, beams=config.beams
        )
        if retriever is None:
            from tools_service.tools.wikisearch import open_retriever

            retriever = open_retriever(search)
        self._retriever = retriever
        self._config = config

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Answer every question for which passages are found."""
        questions = [well_formed(one.text).strip() for one in inputs]
        asked = [question for question in questions if _refusal(question) is None]
        hits = self._retriever.search(asked, self._config.passages) if asked else []
        found = dict(zip(asked, hits, strict=True))
        prepared = [_refusal(one) or self._prepare(one, found[one]) for one in questions]
        read = [one for one in prepared if isinstance(one, list)]
        answers = iter(self._reader.generate(read, [self._config.max_answer_tokens] * len(read)))
        return [_result(next(answers)) if isinstance(one, list) else one for one in prepared]

    def _prepare(self, question: str, hits: Sequence[Hit]) -> list[Ids] | ToolResult:
        """What the encoder reads, part by part; a reason if nothing was found."""
        if not hits:
            return ToolResult(reason="no passage found")
        passages = [self._retriever.passage(hit.passage) for hit in hits]
        limit = self._config.max_passage_tokens
        if self._config.reader == "concatenated":
            limit = min(limit * len(passages), self._reader.max_positions or 2**31)
        return [encode(self._tokenizer, part, limit) for part in parts(self._config, question, passages)]


def parts(config: QAConfig, question: str, passages: Sequence[Passage]) -> list[str]:
    """The texts that the encoder reads: one for each passage, or (concatenated) one for all."""
    asked = config.question_format.format(question=question)
    told = [config.passage_format.format(title=one.title, text=one.text) for one in passages]
    return [f"{asked} {one}" for one in told] if config.reader == "fid" else [" ".join([asked, *told])]


def encode(tokenizer: PreTrainedTokenizerBase, part: str, limit: int) -> Ids:
    """Ids with the tokenizer's end token; what is beyond `limit` is cut off before that."""
    ids: Ids = tokenizer(part, truncation=True, max_length=limit, verbose=False).input_ids
    return ids


def _refusal(question: str) -> ToolResult | None:
    if not question:
        return ToolResult(reason="empty question")
    return ToolResult(reason="question too long") if len(question) > MAX_QUESTION_CHARACTERS else None


def _result(answer: str | None) -> ToolResult:
    if answer is None:
        return ToolResult(reason="answer too long")
    return ToolResult(answer) if answer else ToolResult(reason="no answer")
