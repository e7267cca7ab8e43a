"""What bench.annotate has annotated, and with what: a model, tools that cost nothing, the method, texts.

In: the command's arguments. Out: a `Subject`, the same in whichever process it is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bench.fixtures.small_models import teach
from bench.systems import BATCH
from demo import generate
from pipeline.base.config import CorpusConfig, MethodConfig, ModelConfig, ToolMethod
from pipeline.base.records import Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.selection import select
from pipeline.syntax.prompts import load_prompt
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.config import ToolsConfig
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools
from tools_service.tools.contract import TOOL_NAMES, Tool, ToolInput, ToolName, ToolResult

DEMO = "demo/models/annotator"
PROMPTS = Path("demo/prompts")
TAUGHT = " sold [Calculator(48 + 67)] 48 + 67 [Calculator(115 / 5)] on [Calculator(12 * 4)] 12 [Calculator(7"


class Answers:
    """A tool that answers at once: what the demo's pages say, or a phrase."""

    def __init__(self, name: ToolName) -> None:
        self.name = name
        calls = (call for page in generate.truth().values() for call in page.calls)
        self.known = {call.input: call.result for call in calls if call.tool == name}

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult(self.known.get(one.text, "It is not known to many.")) for one in inputs]


def make_tools() -> LocalTools:
    """Calculator and calendar as they are, the others without their cost."""
    tools: dict[str, Tool] = {name: Answers(name) for name in TOOL_NAMES}
    return LocalTools({**tools, "Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())


def make_model(name: str, device: str, dtype: str, max_batch_tokens: int | None) -> LanguageModel:
    """`demo`, `gpt2-small`, or a folder or hub name."""
    if name != "gpt2-small":
        path = DEMO if name == "demo" else name
        return load_language_model(
            ModelConfig.model_validate(
                {"path": path, "device": device, "dtype": dtype, "batch_tokens": max_batch_tokens}
            )
        )
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = GPT2LMHeadModel(GPT2Config(tie_word_embeddings=False)).eval()
    teach(model, tokenize_continuations(tokenizer, [TAUGHT])[0].ids.tolist(), strength=0.5)
    on = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    return prepare_language_model(model.to(on, getattr(torch, dtype)), tokenizer, max_batch_tokens)


def make_texts(
    model: LanguageModel, method: MethodConfig, count: int, corpus: Sequence[str], max_tokens: int
) -> list[Text]:
    """The first texts that the tool would be tried on; its prompt leaves room for them."""
    [tool] = method.tools
    config = CorpusConfig(paths=tuple(corpus), max_tokens=max_tokens)
    room = model.max_text_tokens(load_prompt(tool, method.prompts), method.of(tool).max_call_tokens)

    def tokens(text: str) -> int:
        return len(model.encode([text])[0].ids)

    chosen = (
        text
        for text in read_corpus(list_files(config), config, tokens)
        if not text.skipped and select(tool, text, method).chosen and tokens(text.text) <= room
    )
    found = [text for text, _ in zip(chosen, range(count), strict=False)]
    if not found:
        raise SystemExit(f"{', '.join(corpus)}: no text that {tool} is tried on")
    return found


@dataclass(frozen=True)
class Subject:
    """One model and one tool."""

    model: LanguageModel
    tools: LocalTools
    method: MethodConfig
    texts: Sequence[Text]

    @classmethod
    def of(cls, name: str, tool: ToolName, args: argparse.Namespace) -> Subject:
        """As the arguments say, with the model's prompts and tables made."""
        model = make_model(name, args.device, args.dtype, args.max_batch_tokens)
        given = {key: getattr(args, key) for key in ("k", "m", "tau_s") if getattr(args, key) is not None}
        settings = ToolMethod.model_validate(MethodConfig().of(tool).model_dump() | given)
        method = MethodConfig.model_validate({"tools": (tool,), "prompts": PROMPTS, tool.lower(): settings})
        texts = make_texts(model, method, args.texts, args.corpus, args.max_tokens)
        subject = cls(model, make_tools(), method, texts)
        warm = 1 if model.device.type == "cpu" else BATCH  # a GPU's libraries make their plans by size
        subject.annotator().annotate(texts[:warm])
        return subject

    @property
    def settings(self) -> ToolMethod:
        """The tool's."""
        [tool] = self.method.tools
        return self.method.of(tool)

    def annotator(self) -> Annotator:
        """The engine."""
        return Annotator(self.model, self.tools, self.method)
