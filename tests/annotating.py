"""A small model that writes calls of two tools, prompts it has room for, and texts with numbers and dates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotator import Annotator
from pipeline.calls import continuation
from pipeline.config import AnnotateConfig, CorpusConfig, MethodConfig, ModelConfig, RayConfig, ToolMethod
from pipeline.corpus import all_shards, list_shards, read_corpus
from pipeline.counts import count_rows
from pipeline.datasource import TokenCounter
from pipeline.manifest import ROWS, AnnotationManifest, Session, begin
from pipeline.model import LanguageModel
from pipeline.outputs import now
from pipeline.planning import ModelShape
from pipeline.records import ANNOTATION_SCHEMA, Document, Text
from tests.models import causal_lm, teach, tokenizer
from tools_service.client import LocalTools
from tools_service.config import ToolsConfig

PROMPTS = {
    "calculator": "Add calls. 2 and 3 make [Calculator(2 + 3)] 5.\n\nInput: {text}\nOutput:",
    "calendar": "Add calls. It is [Calendar()] Monday.\n\nInput: {text}\nOutput:",
}
_TAUGHT = (
    " 48 [Calculator(48 + 67)] 1 [Calculator(7 + 8)] 5, 6 [Calendar()] 3 [Calculator(4 + 48)] on 67 "
    "[Calendar()]"
)


@cache
def annotator_model() -> LanguageModel:
    """Shared by tests, so its counters go on counting. No two tests may change it."""
    words = tokenizer("bytes")
    model = causal_lm("llama", len(words) + 3)
    teach(model, continuation(words, [_TAUGHT])[0].ids.tolist())
    return LanguageModel(model, words)


def save_model(folder: Path) -> None:
    """The same model as files, for processes that load it."""
    annotator_model().model.save_pretrained(folder)
    annotator_model().tokenizer.save_pretrained(folder)


def write_prompts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for tool, prompt in PROMPTS.items():
        (folder / f"{tool}.txt").write_text(prompt)
    return folder


def method(prompts: Path) -> MethodConfig:
    """Both tools at few positions, with thresholds that some calls reach."""
    settings = ToolMethod(tau_s=0.0, k=3, m=4, tau_f=0.0, max_call_tokens=10)
    return MethodConfig(
        tools=("Calculator", "Calendar"), calculator=settings, calendar=settings, prompts=prompts, seed=5
    )


def page(number: int) -> dict[str, str]:
    """A page with a sum in it; every third has no date in its URL."""
    first, second = 2 + number * 7 % 40, 3 + number * 11 % 50
    text = (
        f"Page {number}: sold {first} rolls on Monday and {second} on Tuesday, {first + second} in both days."
    )
    day = "page" if number % 3 == 2 else f"2019/03/{1 + number % 28:02d}"
    return {"text": text, "url": f"https://example.org/{day}/{number}"}


def texts(count: int) -> list[Text]:
    return [
        Text(10 + number, Document(f"pages.jsonl#{number + 1}", page(number)["url"]), page(number)["text"])
        for number in range(count)
    ]


def write_corpus(folder: Path, shards: int, pages: int) -> None:
    """`pages` pages in every one of `shards` files, each with one broken line too."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = [json.dumps(page(shard * pages + number)) for number in range(pages)]
        lines.insert(pages // 2, "{broken")
        (folder / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")


def config(
    world: Path, output: Path, *, actors: int = 1, texts_per_batch: int = 8, slice_: str | None = None
) -> AnnotateConfig:
    """To annotate `world`, or a slice of it: a folder with model/, prompts/ and pages/."""
    return AnnotateConfig(
        corpus=CorpusConfig(paths=(str(world / "pages"),), slice=slice_),
        model=ModelConfig(path=str(world / "model"), dtype="float32", device="cpu"),
        method=method(world / "prompts"),
        ray=RayConfig(actors=actors, gpus_per_actor=0, cpus_per_actor=1, texts_per_batch=texts_per_batch),
        output=output,
    )


def local_annotator(prompts: Path) -> Annotator:
    """The model with its tools in this process."""
    settings = method(prompts)
    return Annotator(annotator_model(), LocalTools.start(ToolsConfig(), settings.tools), settings)


def finished(world: Path, output: Path, *, batch: int = 8, slice_: str | None = None) -> AnnotationManifest:
    """Annotate `world` in this process, without Ray, into a folder like annotate's."""
    made = config(world, output, slice_=slice_)
    shards = list_shards(made.corpus)
    whole = None if slice_ is None else all_shards(made.corpus)
    texts = list(read_corpus(shards, made.corpus, TokenCounter(made.model.path)))
    begun = begin(output, made, shards, whole).with_session(
        Session(started=now(), finished=now(), wall_s=1.0)
    )
    annotator = local_annotator(world / "prompts")
    (output / ROWS).mkdir(parents=True)
    rows = []
    for start in range(0, len(texts), batch):
        block = [one.to_row() for one in annotator.annotate(texts[start : start + batch])]
        pq.write_table(
            pa.Table.from_pylist(block, schema=ANNOTATION_SCHEMA), output / ROWS / f"{start:06}.parquet"
        )
        rows += block
    manifest = begun.completed(count_rows(rows, made.method), ModelShape.of(annotator_model().model))
    manifest.write(output)
    return manifest
