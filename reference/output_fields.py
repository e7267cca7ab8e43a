"""The page of the output fields: every field of every file that a command writes.

Names and types come from the schemas and records of the code. A meaning is the docstring or the comment of
the field in the code, or else it stands in meanings.py.
"""

from __future__ import annotations

import ast
import inspect
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from io import StringIO
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa

from pipeline.augmentation.merge import MergeManifest
from pipeline.base.config import AnnotateConfig, ExportConfig, MergeConfig, PlanConfig, ScoreConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.records import ANNOTATION_SCHEMA, AUGMENTED_SCHEMA
from pipeline.evaluation.predictions import SCHEMA as PREDICTION_SCHEMA
from pipeline.evaluation.results import Evaluation
from pipeline.exporting.run import ExportManifest
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest
from pipeline.finetuning.merge_lora import MergedManifest
from pipeline.finetuning.watching.metrics_log import GenerationProbe, HeldOutEvaluation, TrainStep
from pipeline.method.insertions import ScoredInsertion
from pipeline.planning.estimate import Plan
from pipeline.report.status import RunStatus
from pipeline.scoring.manifest import ScoreManifest
from pipeline.storage.manifest import AnnotationManifest
from pipeline.storage.tools_json import LearnedTools
from reference.fields import describe_type
from reference.markdown import code, prose, table
from reference.meanings import MEANINGS
from tools_service.base.staged_models import StagedManifest
from tools_service.contract.spec import ToolSpec

# Records whose fields are on the page of the configuration.
_CONFIGURATIONS = (
    AnnotateConfig,
    MergeConfig,
    FinetuneConfig,
    ScoreConfig,
    ExportConfig,
    PlanConfig,
    ToolSpec,
)


@dataclass(frozen=True)
class Output:
    """A file that a command writes: `fields` is its schema, or the records of its objects."""

    title: str
    page: str
    """Where the documentation explains the file."""
    fields: pa.Schema | type | tuple[type, ...]


@dataclass(frozen=True)
class OutputField:
    """A field of a file: dots for objects, `[]` for entries of lists, NAME for names that the data has."""

    path: str
    type: str
    meaning: str


OUTPUTS = (
    Output("annotate: rows/*.parquet", "../outputs.md#annotate-a-folder-of-annotations", ANNOTATION_SCHEMA),
    Output("annotate: manifest.json", "../outputs.md#manifestjson", AnnotationManifest),
    Output("merge: rows/*.parquet", "../outputs.md#merge-the-augmented-corpus-c", AUGMENTED_SCHEMA),
    Output("merge: manifest.json", "../outputs.md#merge-the-augmented-corpus-c", MergeManifest),
    Output("finetune: metrics.jsonl", "../finetuning.md", (TrainStep, HeldOutEvaluation, GenerationProbe)),
    Output("finetune: tools.json", "../finetuning.md", LearnedTools),
    Output("finetune: manifest.json", "../finetuning.md", FinetuneManifest),
    Output("fetch: manifest.json", "../models.md#where-they-are", StagedManifest),
    Output("merge-lora: manifest.json", "../finetuning.md#adapters-lora", MergedManifest),
    Output("evaluate: evaluation.json", "../evaluation.md#files", Evaluation),
    Output("evaluate: evaluation.LABEL.parquet", "../evaluation.md#files", PREDICTION_SCHEMA),
    Output("score: scores/*.jsonl, the field score", "../scoring.md#output", ScoredInsertion),
    Output("score: manifest.json", "../scoring.md#output", ScoreManifest),
    Output("export: manifest.json", "../exporting.md", ExportManifest),
    Output("plan: plan.json", "../outputs.md#plan-a-file", Plan),
    Output("status --json", "commands/status.md", RunStatus),
)


def page() -> str:
    """Every field of every output file."""
    parts = [_INTRODUCTION]
    for output in OUTPUTS:
        rows = ((code(field.path), field.type, prose(field.meaning)) for field in fields_of(output))
        parts += [
            f"## {output.title}\n",
            f"[More about this file]({output.page})\n",
            table(("field", "type", "meaning"), rows),
        ]
    return "\n".join(parts)


_INTRODUCTION = """# Output fields

A dot leads into an object, `[]` to the entries of a list. NAME stands for names that the data has: tools,
labels, reasons. The fields below `config` are those of the [configuration](configuration.md). Losses and
gains are in nats. `export` writes rows in the format that `--format` names ([columns](../exporting.md));
`generate --json` and `try --json` print objects ([generate](../generate.md#json),
[try](../trying.md#options)).
"""


def fields_of(output: Output) -> Iterator[OutputField]:
    """The fields of one file."""
    if isinstance(output.fields, pa.Schema):
        struct = pa.struct(list(output.fields))
        yield from (_with_meaning(path, kind, "") for path, kind in _arrow_fields(struct, ""))
        return
    records = output.fields if isinstance(output.fields, tuple) else (output.fields,)
    seen: set[str] = set()
    for record in records:
        for path, kind, meaning in _record_fields(record, ""):
            if path not in seen:
                seen.add(path)
                yield _with_meaning(path, kind, meaning)


def _with_meaning(path: str, kind: str, meaning: str) -> OutputField:
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    text = meaning or next((MEANINGS[end] for end in ends if end in MEANINGS), "")
    return OutputField(path, kind, text[:1].upper() + text[1:])


def _arrow_fields(struct: pa.StructType, prefix: str) -> Iterator[tuple[str, str]]:
    for field in struct:
        kind, path = field.type, prefix + field.name
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            yield path, "list of objects"
            yield from _arrow_fields(kind.value_type, f"{path}[].")
        elif pa.types.is_struct(kind):
            yield path, "object"
            yield from _arrow_fields(kind, f"{path}.")
        else:
            yield path, code(f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind))


def _record_fields(record: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Path, type and meaning of the fields of a record (pydantic or dataclass), and of those below them."""
    names = {name for base in record.__mro__ for name in inspect.get_annotations(base)}
    hints = {
        name: hint
        for name, hint in get_type_hints(record, include_extras=True).items()
        if name in names and not name.startswith("_") and name.islower() and not name.startswith("model_")
    }
    for name, hint in hints.items():
        path = prefix + name
        mark, nested = _nested(hint)
        yield path, describe_type(hint) if nested is None else _KINDS[mark], _meaning(record, name)
        if nested is not None and nested not in _CONFIGURATIONS:
            yield from _record_fields(nested, f"{path}{mark}.")


_KINDS = {"": "object", "[]": "list of objects", ".NAME": "objects by name"}


def _nested(hint: Any) -> tuple[str, type | None]:
    """The record in a type, and how one gets there: itself, in a list, or by a name."""
    if isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "model_fields")):
        return "", hint
    mark = {tuple: "[]", dict: ".NAME", Mapping: ".NAME"}.get(get_origin(hint) or type, "")
    for part in get_args(hint):
        inner, nested = _nested(part)
        if nested is not None:
            return mark + inner, nested
    return "", None


def _meaning(record: type, name: str) -> str:
    """What the code says of a field: its docstring, or the comment on its line."""
    for base in record.__mro__:
        if name in inspect.get_annotations(base):
            return _commented(base).get(name, "")
    return ""


@cache
def _commented(record: type) -> dict[str, str]:
    source = inspect.getsource(record)
    [node] = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    readline: Callable[[], str] = StringIO(source).readline
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    }
    meanings: dict[str, str] = {}
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = comments.get(statement.lineno, "")
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = str(after.value.value)
            text = text.partition("  # noqa")[0]
            meanings[statement.target.id] = text
    return meanings
