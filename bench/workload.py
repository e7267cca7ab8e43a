"""The workload of bench.annotate: a model, tools without cost, settings, texts.

In: the command's options. Out: a `Workload`, the same in every process that makes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from bench.random_models import SHAPES, random_model
from bench.systems import BATCH
from demo import generate
from pipeline.base.config import CorpusConfig, MethodConfig, ModelConfig
from pipeline.base.records import Text
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from pipeline.method.selection import select
from tools_service.base.checkpoints import load_tokenizer, resolve_device
from tools_service.config import ToolsConfig
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.spec import ToolMethod
from tools_service.contract.tool import Tool, ToolInput, ToolResult
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

DEMO = "demo/models/annotator"
PROMPTS = Path("demo/prompts")


class LookupTool:
    """A tool without cost: returns the answers of the demo's pages, or a fixed phrase."""

    def __init__(self, name: str) -> None:
        self.name = name
        calls = (call for page in generate.ground_truth().values() for call in page.calls)
        self.known = {call.input: call.result for call in calls if call.tool == name}

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult(self.known.get(call.text, "It is not known to many.")) for call in inputs]


def make_tools() -> LocalTools:
    """The real calculator and calendar, and lookup tools in place of the others."""
    tools: dict[str, Tool] = {name: LookupTool(name) for name in PACKAGED}
    return LocalTools({**tools, "Calculator": Calculator(), "Calendar": Calendar()}, ToolsConfig())


def make_model(name: str, device: str, dtype: str, max_batch_tokens: int | None) -> LanguageModel:
    """The model called `name`: `demo`, one of SHAPES, or a folder or hub name."""
    if name not in SHAPES:
        fields = {"device": device, "dtype": dtype, "max_batch_tokens": max_batch_tokens}
        path = DEMO if name == "demo" else name
        return load_language_model(ModelConfig.model_validate({"path": path, **fields}))
    tokenizer = load_tokenizer(DEMO, "--model")
    place = torch.device(resolve_device(device))
    model = random_model(SHAPES[name], tokenizer, place, getattr(torch, dtype))
    return prepare_language_model(model, tokenizer, max_batch_tokens)


def make_texts(
    model: LanguageModel, method: MethodConfig, count: int, corpus: Sequence[str], max_tokens: int
) -> list[Text]:
    """The first texts that suit the tool and fit beside its prompt. SystemExit if none."""
    [tool] = method.tools
    config = CorpusConfig(paths=tuple(corpus), max_tokens=max_tokens)
    room = model.max_text_tokens(load_prompt(tool, method.prompts), method.of(tool).max_call_tokens)

    def tokens(text: str) -> int:
        return len(model.encode([text])[0].ids)

    selected = (
        text
        for text in read_corpus(list_files(config), config, tokens)
        if not text.skipped and select(tool, text, method).chosen and tokens(text.text) <= room
    )
    texts = list(islice(selected, count))
    if not texts:
        raise SystemExit(f"{', '.join(corpus)}: no text that {tool} is tried on")
    return texts


@dataclass(frozen=True)
class Workload:
    """One model, one tool and the texts to annotate."""

    model: LanguageModel
    tools: LocalTools
    method: MethodConfig
    texts: Sequence[Text]

    @classmethod
    def create(cls, name: str, tool: str, args: argparse.Namespace) -> Workload:
        """The workload that `args` describe, with the model's prompts and tables computed."""
        model = make_model(name, args.device, args.dtype, args.max_batch_tokens)
        changed = {key: getattr(args, key) for key in ("k", "m", "tau_s") if getattr(args, key) is not None}
        settings = ToolMethod.model_validate(MethodConfig().of(tool).model_dump() | changed)
        fields = {"tools": (tool,), "prompts": args.prompts, tool.lower(): settings}
        method = MethodConfig.model_validate(fields)
        texts = make_texts(model, method, args.texts, args.corpus, args.max_tokens)
        workload = cls(model, make_tools(), method, texts)
        warm_up = 1 if model.device.type == "cpu" else BATCH  # GPU libraries plan for each batch size
        workload.annotator().annotate(texts[:warm_up])
        return workload

    @property
    def settings(self) -> ToolMethod:
        """The tool's settings."""
        [tool] = self.method.tools
        return self.method.of(tool)

    def annotator(self) -> Annotator:
        """A new annotator: the engine with this model, these tools and settings."""
        return Annotator(self.model, self.tools, self.method)
