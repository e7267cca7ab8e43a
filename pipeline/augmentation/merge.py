"""Step 5, merge: annotated texts → the augmented corpus C* (paper section 2, "Model Finetuning", and 4.1).

In: folders that annotate wrote. Out, in `config.output`: rows/*.parquet (AUGMENTED_SCHEMA, sorted by text_id)
and manifest.json. mixture.py says which calls stay; here they are put into their texts. A text without a call
left is not in C*. Needs no model: other thresholds and caps are another merge.

Annotations are streamed twice, once to choose and once to write, so memory grows with C* (at most
max_examples texts per tool), not with the corpus. The files are the same to the last byte whatever the order
of the annotations.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.augmentation.slices import expand, require_together
from pipeline.base.config import MergeConfig
from pipeline.base.records import AUGMENTED_SCHEMA
from pipeline.method.merging import THRESHOLDS, Mixture, TauF, choose
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, ManifestError, read_manifest
from pipeline.storage.provenance import versions
from pipeline.storage.row_files import ROWS, Ids, read_batches
from pipeline.syntax.calls import CallError, insert_calls, remove_calls
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import atomic_write, now
from tools_service.base.settings import Frozen
from tools_service.tools.contract import TOOL_NAMES, ToolName

logger = logging.getLogger(__name__)

_COLUMNS = ("text_id", "text", "calls")
_CHUNK_ROWS = 4_096


class MergeError(ToolformerError):
    """Annotations that do not fit together, or a call that does not fit its text."""


class ToolExamples(Frozen):
    """One tool's part of C*."""

    tau_f: float
    candidates: int
    """Texts with a call kept at tau_f, before the cap."""
    examples: int
    """Texts of C* with a call of this tool."""
    calls: int
    """Calls of this tool in C*."""
    at: dict[str, int | None]
    """Texts with a call kept at the paper's thresholds; null below what was annotated for."""


class Source(Frozen):
    """An annotation folder that went in."""

    folder: Path
    slice: str | None = None
    texts: int
    model: str


class MergeManifest(Frozen):
    """manifest.json of C*."""

    recipe: MergeConfig
    versions: dict[str, str]
    created: str
    sources: tuple[Source, ...]
    texts: int
    """Rows of C*."""
    calls: int
    tools: dict[ToolName, ToolExamples]


def merge(config: MergeConfig) -> MergeManifest:
    """Write C*, replacing an earlier one in the same folder once the new one is complete.

    Raises ManifestError for a folder that is not a finished annotation, SliceError for slices that do not
    fit together, ConfigurationError for a threshold that calls were not scored for, and MergeError when a
    text comes twice or a call does not fit its text.
    """
    _refuse_foreign(config.output)
    config = config.model_copy(update={"annotations": expand(config.annotations)})
    sources = {folder: _finished(folder) for folder in config.annotations}
    require_together(sources, config.missing_slices)
    tau_f = thresholds(config, sources)
    _refuse_twins(config.annotations)
    mixture = choose(
        _rows(config, tau_f),
        tau_f,
        config.max_examples,
        config.seed,
        one_per_position=config.one_call_per_position,
    )
    calls: Counter[ToolName] = Counter()
    table = _table(augment(_rows(config, tau_f), mixture, calls))
    manifest = MergeManifest(
        recipe=config,
        versions=versions(),
        created=now(),
        sources=tuple(
            Source(
                folder=folder,
                slice=found.recipe.corpus.slice,
                texts=counts.texts if (counts := found.counts) else 0,
                model=found.recipe.model.path,
            )
            for folder, found in sources.items()
        ),
        texts=table.num_rows,
        calls=calls.total(),
        tools=_examples(mixture, _floors(sources), calls, table),
    )
    if not table.num_rows:
        logger.warning("%s: no call reaches tau_f, C* is empty", config.output)
    _publish(config.output, table, manifest)
    return manifest


def augment(
    rows: Iterable[Mapping[str, Any]], mixture: Mixture, calls: Counter[ToolName]
) -> Iterator[dict[str, Any]]:
    """Rows of C*: each text that has calls left, with them in it. `calls` counts these by tool.

    MergeError if a call does not fit its text, or removing the calls does not give the text back.
    """
    for row in rows:
        left = mixture.calls(row)
        if not left:
            continue
        try:
            augmented = insert_calls(row["text"], left)
            restored = remove_calls(augmented, left)
        except CallError as error:
            raise MergeError(f"text {row['text_id']}: {error}") from error
        if restored != row["text"]:
            raise MergeError(f"text {row['text_id']}: removing its calls gives another text: {restored!r}")
        calls.update(call.tool for call in left)
        tools = sorted({call.tool for call in left}, key=TOOL_NAMES.index)
        yield {"text_id": row["text_id"], "text": augmented, "plain": row["text"], "tools": tools}


def thresholds(config: MergeConfig, sources: Mapping[Path, AnnotationManifest]) -> dict[ToolName, float]:
    """tau_f by tool: the user's, else the annotations' own. ConfigurationError names the field at fault."""
    tau_f: dict[ToolName, float] = {}
    given = config.tau_f or {}
    floors = _floors(sources)
    if unknown := given.keys() - floors.keys():
        raise ConfigurationError(f"tau_f.{min(unknown)}: none of the annotations is of this tool")
    for tool, floor in floors.items():
        own = {found.recipe.method.of(tool).tau_f for found in _of(tool, sources)}
        if tool not in given and len(own) > 1:
            raise ConfigurationError(
                f"tau_f.{tool}: the annotations were made with {sorted(own)}; give one of at least {floor}"
            )
        tau_f[tool] = given.get(tool, floor)
        if tau_f[tool] < floor:
            raise ConfigurationError(
                f"tau_f.{tool} = {tau_f[tool]} is below {floor}, down to which the annotations are exact: "
                f"annotate again with method.{tool.lower()}.tau_f = {tau_f[tool]}"
            )
    return tau_f


def _floors(sources: Mapping[Path, AnnotationManifest]) -> dict[ToolName, float]:
    """By tool the lowest threshold for which all annotations have every loss."""
    return {
        tool: max(found.recipe.method.of(tool).tau_f for found in of_tool)
        for tool in TOOL_NAMES
        if (of_tool := _of(tool, sources))
    }


def _of(tool: ToolName, sources: Mapping[Path, AnnotationManifest]) -> list[AnnotationManifest]:
    return [found for found in sources.values() if tool in found.recipe.method.tools]


def _finished(folder: Path) -> AnnotationManifest:
    manifest = read_manifest(folder)
    if manifest.state != "finished":
        raise ManifestError(f"{folder}: not finished; the annotate that began it, started again, goes on")
    return manifest


def _refuse_twins(folders: Sequence[Path]) -> None:
    """Slices of a corpus share no text; what does is one annotation named twice, or two of one corpus."""
    ids = np.concatenate([np.empty(0, np.int64), *(_ids(folder) for folder in folders)])
    ids.sort()
    twins = ids[1:][ids[1:] == ids[:-1]]
    if len(twins):
        having = [str(folder) for folder in folders if twins[0] in _ids(folder)]
        raise MergeError(
            f"annotations: {len(twins)} texts stand twice, text {twins[0]} for one, in {', '.join(having)}; "
            "merge annotations of different texts"
        )


def _ids(folder: Path) -> Ids:
    parts = [batch["text_id"].to_numpy() for batch in read_batches(folder, ["text_id"])]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _rows(config: MergeConfig, tau_f: TauF) -> Iterator[dict[str, Any]]:
    """The rows that have calls with a gain of at least the lowest tau_f, without their other calls.

    Most calls and texts have none; leaving them out as Arrow makes a merge several times faster.
    """
    least = min(tau_f.values(), default=0.0)
    for folder in config.annotations:
        for batch in read_batches(folder, _COLUMNS):
            calls = batch["calls"]
            keep = pc.greater_equal(calls.flatten().field("gain"), least)
            parents = pc.list_parent_indices(calls).filter(keep)
            numbers = np.bincount(parents, minlength=batch.num_rows)
            left = pa.ListArray.from_arrays(
                np.concatenate([[0], numbers.cumsum()]), calls.flatten().filter(keep)
            )
            index = batch.schema.get_field_index("calls")
            yield from batch.set_column(index, "calls", left).filter(pa.array(numbers > 0)).to_pylist()


def _table(rows: Iterator[dict[str, Any]]) -> pa.Table:
    """C* as Arrow, collected in chunks: plain rows would take several times the memory."""
    chunks = iter(lambda: list(islice(rows, _CHUNK_ROWS)), [])
    return pa.Table.from_batches(
        [pa.RecordBatch.from_pylist(chunk, AUGMENTED_SCHEMA) for chunk in chunks], AUGMENTED_SCHEMA
    )


def _examples(
    mixture: Mixture, floors: TauF, calls: Counter[ToolName], table: pa.Table
) -> dict[ToolName, ToolExamples]:
    counted = pc.value_counts(pc.list_flatten(table["tools"])).to_pylist()
    examples = {entry["values"]: entry["counts"] for entry in counted}
    return {
        tool: ToolExamples(
            tau_f=mixture.tau_f[tool],
            candidates=choice.candidates,
            examples=examples.get(tool, 0),
            calls=calls[tool],
            at={str(limit): choice.at[limit] if limit >= floors[tool] else None for limit in THRESHOLDS},
        )
        for tool, choice in mixture.tools.items()
    }


def _publish(output: Path, table: pa.Table, manifest: MergeManifest) -> None:
    """Write beside `output`, then change places: a reader finds the old C*, or the new one, complete."""
    part, old = (output.with_name(f".{output.name}.{name}") for name in ("part", "old"))
    for folder in (part, old):
        shutil.rmtree(folder, ignore_errors=True)
    (part / ROWS).mkdir(parents=True)
    _write_sorted(table, part / ROWS / "00000.parquet")
    atomic_write(part / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    if output.exists():
        output.rename(old)
    part.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _write_sorted(table: pa.Table, path: Path) -> None:
    """In the order of the ids, a chunk at a time: one piece of an Arrow string column holds 2 GiB at most."""
    order = pc.sort_indices(table["text_id"])
    with pq.ParquetWriter(path, AUGMENTED_SCHEMA) as writer:
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            writer.write_table(table.take(order.slice(start, _CHUNK_ROWS)))


def _refuse_foreign(output: Path) -> None:
    """Only what merge wrote may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        MergeManifest.model_validate_json((output / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"output {output}: something else is there; choose another folder"
        ) from error
