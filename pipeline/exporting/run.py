"""C* → a folder that other trainers read: TRL, LLaMA-Factory, axolotl (docs/exporting.md).

In: the folder that merge wrote. Out, in `config.output`: rows/00000.jsonl or .parquet, a row per text in
the order of C*; manifest.json; README.md, the data set's card. Rows are streamed: memory does not grow
with C*. The folder appears when it is complete, and an earlier one is replaced then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.augmentation.merge import MergeManifest, merge_problem
from pipeline.base.config import ExportConfig
from pipeline.exporting.augmented_text import ExportError, WrittenCall, parts_of
from pipeline.exporting.formats import Row, format_of
from pipeline.exporting.hub import push
from pipeline.storage.card import Card, write_card
from pipeline.storage.kinds import EXPORT
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.provenance import versions
from pipeline.storage.row_files import ROWS, read_batches
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write, now, read_model, writing
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder, require_own
from tools_service.base.settings import Frozen
from tools_service.contract.declarations import in_order, installed_tools
from tools_service.contract.schemas import with_schema
from tools_service.contract.spec import ToolSpec


class ExportManifest(Frozen):
    """manifest.json of an export."""

    config: ExportConfig
    versions: dict[str, str]
    created: str
    source: Path
    format: str
    texts: int
    tools: dict[str, int]
    """Calls by tool."""


def export(config: ExportConfig) -> ExportManifest:
    """Write C* in another format to `config.output`, and upload it if asked.

    Raises ConfigurationError for a folder that merge did not write, NotOwnError for an output that export
    did not write, OutputInUseError, ExportError for a text that cannot be taken apart, and PushError.
    """
    if problem := merge_problem(config.data):
        raise ConfigurationError(f"data: {problem}; name a folder that merge wrote, or merge again")
    require_own(config.output, EXPORT)
    with output_lock(config.output):
        manifest = _export(config, read_model(config.data / MANIFEST, MergeManifest))
    if config.push_to_hub is not None:
        push(config.output, config.push_to_hub, public=config.public)
    return manifest


def _export(config: ExportConfig, merged: MergeManifest) -> ExportManifest:
    specs = _specs(merged)
    rows = format_of(config, specs)
    calls = Counter(dict.fromkeys(specs, 0))
    texts = 0
    with replacing_folder(config.output, EXPORT) as folder, writing(config.output):
        (folder / ROWS).mkdir()
        with _writer(folder / ROWS / f"00000.{config.file_type}", rows.schema) as write:
            for batch in read_batches(config.data, ("text_id", "text", "plain")):
                exported: list[Row] = []
                for row in batch.to_pylist():
                    try:
                        parts = parts_of(row["text"], row["plain"], tuple(specs))
                    except ExportError as error:
                        raise ExportError(f"{config.data}: text {row['text_id']}: {error}") from error
                    calls.update(part.tool for part in parts if isinstance(part, WrittenCall))
                    exported.append(rows.row(row["text_id"], parts))
                write(exported)
                texts += len(exported)
        manifest = ExportManifest(
            config=config,
            versions=versions(),
            created=now(),
            source=config.data,
            format=config.format,
            texts=texts,
            tools=dict(calls),
        )
        atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        write_card(folder, _card(manifest, merged), earlier=config.output)
    return manifest


def _specs(merged: MergeManifest) -> dict[str, ToolSpec]:
    """The declarations of the tools of C*. Manifests of earlier versions have none."""
    declared = {spec.name: spec for spec in merged.tool_specs}
    specs = {}
    for name in in_order(merged.tools):
        spec = declared.get(name) or installed_tools().get(name)
        specs[name] = with_schema(spec or ToolSpec(name=name, implementation="unknown:unknown"))
    return specs


class _Write(Protocol):
    def __call__(self, rows: list[Row], /) -> None: ...


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[_Write]:
    """Give the block a function that appends rows to a new file."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, schema) as writer:
            yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema))
        return
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _card(manifest: ExportManifest, merged: MergeManifest) -> Card:
    config = manifest.config
    masked = ", results masked" if config.mask_results else ""
    facts: dict[str, Any] = {
        "format": f"{config.format}{masked} ({config.file_type})",
        "texts": manifest.texts,
        "made from": f"C* of {merged.created}",
        "models": ", ".join(sorted({source.model for source in merged.sources})),
        "thresholds": ", ".join(f"{tool} {examples.tau_f}" for tool, examples in merged.tools.items()),
    }
    tools = {
        name: {"calls": manifest.tools.get(name, 0), "texts": examples.examples, "tau_f": examples.tau_f}
        for name, examples in merged.tools.items()
    }
    return Card(
        title=f"Texts with tool calls, as {config.format}",
        facts=facts,
        tools=tools,
        versions=manifest.versions,
        created=manifest.created,
        data_files=f"{ROWS}/*.{config.file_type}",
    )
