"""The section of a report about C*, the texts that merge wrote (paper section 4.1, Table 2).

In: the folder of merge. Out: counts by tool beside the paper's, and texts to read. The texts are neither the
first nor the best: a hash of their id selects them, and the tools take turns, as long as each has texts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analysis.paper_figures import paper_figures
from pipeline.augmentation.merge import MergeManifest, ToolExamples, texts_annotated
from pipeline.report.html.data import AugmentedSection, Fact, MergedText, MergedTool
from pipeline.report.losses import merge_losses
from pipeline.storage.manifest import MANIFEST, ManifestError
from pipeline.storage.row_files import ROWS, parquet_files, read_file_batches
from tools_service.base.errors import brief
from tools_service.base.files import read_model
from tools_service.contract.declarations import in_order

_EXAMPLES = 40
_NAMES = ("tool_names", "tools")  # of one column; the second in earlier versions


def augmented_section(folder: Path) -> AugmentedSection:
    """Read C* in `folder`. Raises ManifestError for a bad manifest, RowFileError for damaged rows."""
    manifest = read_merge_manifest(folder)
    return AugmentedSection(
        folder=str(folder),
        facts=tuple(_facts(manifest)),
        texts=manifest.texts,
        calls=manifest.calls,
        tools=tuple(_tool(tool, manifest.tools[tool]) for tool in in_order(manifest.tools)),
        losses=tuple(merge_losses(manifest)),
        examples=tuple(_examples(folder)),
    )


def read_merge_manifest(folder: Path) -> MergeManifest:
    """The manifest of C*. Raises ManifestError."""
    try:
        return read_model(folder / MANIFEST, MergeManifest)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{folder / MANIFEST} cannot be read as that of merge: {brief(error)}") from error


def _facts(manifest: MergeManifest) -> Iterator[Fact]:
    config = manifest.config
    yield Fact(name="annotations", value=", ".join(str(source.folder) for source in manifest.sources))
    yield Fact(name="models", value=", ".join(sorted({source.model for source in manifest.sources})))
    yield Fact(name="texts annotated", value=f"{texts_annotated(manifest):,}")
    yield Fact(name="most texts of a tool (max_examples)", value=f"{config.max_examples:,}")
    position = "one call" if config.one_call_per_position else "calls of different tools"
    yield Fact(name="at one position", value=position)
    if config.plain_share:
        yield Fact(name="texts without a call", value=f"{manifest.plain_texts:,}")
    yield Fact(name="seed", value=str(config.seed))
    yield Fact(name="made", value=manifest.created)
    yield Fact(name="version", value=manifest.versions.get("toolformer-on-ray", "unknown"))


def _tool(tool: str, examples: ToolExamples) -> MergedTool:
    return MergedTool(
        tool=tool,
        tau_f=examples.tau_f,
        candidates=examples.candidates,
        examples=examples.examples,
        calls=examples.calls,
        at=examples.at,
        paper={
            str(figures.tau_f): figures.tools[tool]
            for figures in paper_figures().examples
            if tool in figures.tools
        },
    )


def _examples(folder: Path) -> Iterator[MergedText]:
    """At most 40 texts, in turn by turn of the tools."""
    chosen = _chosen(folder)
    columns = ("text_id", "text", "plain")
    texts: dict[int, MergedText] = {}
    for path in parquet_files(folder / ROWS):
        for batch in read_file_batches(path, [*columns, names := _names_column(path)]):
            wanted = batch.filter(pc.is_in(batch["text_id"], pa.array(list(chosen), pa.int64())))
            for row in wanted.to_pylist():
                texts[row["text_id"]] = MergedText(
                    text=row["text"], plain=row["plain"], tools=tuple(row[names])
                )
    return (texts[text_id] for text_id in chosen if text_id in texts)


def _chosen(folder: Path) -> dict[int, None]:
    """Ids of texts. First only ids and names are read: C* may have 10^5 texts."""
    ids: defaultdict[str, list[int]] = defaultdict(list)
    for path in parquet_files(folder / ROWS):
        for batch in read_file_batches(path, ["text_id", names := _names_column(path)]):
            for text_id, tools in zip(batch["text_id"].to_pylist(), batch[names].to_pylist(), strict=True):
                for tool in tools:
                    ids[tool].append(text_id)
    by_tool = [sorted(ids[tool], key=_sort_key)[:_EXAMPLES] for tool in in_order(ids)]
    alternating = chain.from_iterable(zip_longest(*by_tool))
    return dict.fromkeys(islice(dict.fromkeys(i for i in alternating if i is not None), _EXAMPLES))


def _names_column(path: Path) -> str:
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        present = []  # read_file_batches says what is wrong
    return next((name for name in _NAMES if name in present), _NAMES[0])


def _sort_key(text_id: int) -> bytes:
    return hashlib.blake2b(str(text_id).encode(), digest_size=8).digest()
