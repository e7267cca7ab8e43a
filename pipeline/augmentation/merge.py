"""Step 5, merge: annotated texts → the augmented corpus C* (paper sections 2 and 4.1).

In: folders that annotate wrote. Out, in `config.output`: rows/*.parquet (AUGMENTED_SCHEMA, sorted by
text_id) and manifest.json. method/merging.py selects the calls; this module inserts them. No model is
needed, and no text without a call is in C* but for the share that is asked for (plain_texts.py).
Annotations are streamed twice, to select and to write, so memory grows with C* and with 8 bytes a text of
the corpus, or 16 if folders share texts. The output is the same to the byte for any order of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.augmentation.annotated_rows import ReachingRows, rows_of
from pipeline.augmentation.plain_texts import plain_texts, plain_texts_for
from pipeline.augmentation.slices import expand, require_together
from pipeline.base.config import MergeConfig
from pipeline.base.records import AUGMENTED_SCHEMA
from pipeline.method.merging import THRESHOLDS, Mixture, TauF, choose
from pipeline.storage.card import Card, write_card
from pipeline.storage.kinds import AUGMENTED
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, read_finished
from pipeline.storage.provenance import versions
from pipeline.storage.row_files import ROWS, Ids, RowFileError, count_in_footers
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import atomic_write, now, read_model, writing
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder, require_own
from tools_service.base.settings import ALL, Frozen
from tools_service.contract.declarations import in_order
from tools_service.contract.schemas import with_schema
from tools_service.contract.spec import ToolSpec
from tools_service.syntax.calls import CallError, insert_calls, remove_calls

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 4_096


class MergeError(ToolformerError):
    """A call does not fit its text."""


class ToolExamples(Frozen):
    """The examples of one tool in C*."""

    tau_f: float
    candidates: int  # texts with a call kept at tau_f, before the cap
    examples: int  # texts in C* with a call of this tool
    calls: int  # calls of this tool in C*
    at: dict[str, int | None]
    """Texts with a call kept at each threshold of the paper; null below the annotations' tau_f."""
    annotated_tau_f: float | None = None  # the lowest threshold that the annotations allow
    largest_gain: float | None = None  # nats, as in their manifests
    largest_gain_is_bound: bool = False


class Source(Frozen):
    """A merged annotation folder."""

    folder: Path
    slice: str | None = None
    texts: int
    model: str
    corpus: str | None = None  # digest of its files' names and sizes


class MergeManifest(Frozen):
    """manifest.json of C*."""

    RENAMED = {"recipe": "config"}  # noqa: RUF012

    config: MergeConfig
    versions: dict[str, str]
    created: str
    sources: tuple[Source, ...]
    annotated_texts: int | None = None  # different texts in the sources; None in earlier manifests
    texts: int  # rows of C*
    plain_texts: int = 0  # rows of C* without a call
    calls: int
    tools: dict[str, ToolExamples]
    tool_specs: tuple[ToolSpec, ...] = ()
    """The declarations of these tools, with the schemas of their parameters and without their settings."""


def merge(config: MergeConfig) -> MergeManifest:
    """Write C* to `config.output`. An earlier C* there is replaced when the new one is complete.

    Raises ManifestError for a folder that is not a finished annotation, SliceError for slices that
    do not belong together, NotOwnError for an output that merge did not write, OutputInUseError if
    another process writes there, ConfigurationError for a threshold below that of the annotations,
    SameTextError if a text occurs twice, and MergeError if a call does not fit its text.
    """
    require_own(config.output, AUGMENTED)
    with output_lock(config.output):
        return _merge(config)


def _merge(config: MergeConfig) -> MergeManifest:
    """`merge`, for the holder of the lock."""
    config = config.model_copy(update={"annotations": expand(config.annotations)})
    sources = {folder: read_finished(folder) for folder in config.annotations}
    require_together(sources, config.missing_slices, config.same_texts)
    annotated_tau_f = annotated_thresholds(sources)
    floors = {tool: max(values) for tool, values in annotated_tau_f.items()}
    tau_f = thresholds(config, annotated_tau_f)
    calls: Counter[str] = Counter()
    plain: list[dict[str, Any]] = []
    scratch = config.output.resolve().parent
    with rows_of(config.annotations, tau_f, config.same_texts, scratch) as rows:
        mixture = mixture_of(rows, config, tau_f, sources)
        table = _table(augment(rows.read(), mixture, calls))
        if wanted := plain_texts_for(config.plain_share, table.num_rows):
            have_calls = _with_kept_calls(rows.read(), mixture)
            plain = list(plain_texts(config.annotations, have_calls, wanted, config.seed))
            table = pa.concat_tables([table, _table(iter(plain))])
    if len(plain) < wanted:
        logger.warning("%s: %s", config.output, too_few_plain_texts(len(plain), wanted))
    manifest = MergeManifest(
        config=config,
        versions=versions(),
        created=now(),
        sources=tuple(
            Source(
                folder=folder,
                slice=source.config.corpus.slice,
                texts=source.counts.texts if source.counts else 0,
                model=source.config.model.path,
                corpus=source.corpus.digest,
            )
            for folder, source in sources.items()
        ),
        annotated_texts=rows.texts,
        texts=table.num_rows,
        plain_texts=len(plain),
        calls=calls.total(),
        tools=_examples(mixture, floors, calls, table, tuple(sources.values())),
        tool_specs=_tool_specs(tuple(sources.values()), tau_f),
    )
    if not table.num_rows:
        logger.warning("%s: no call reaches tau_f, C* is empty", config.output)
    with replacing_folder(config.output, AUGMENTED) as folder, writing(config.output):
        (folder / ROWS).mkdir()
        _write_sorted(table, folder / ROWS / "00000.parquet")
        atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        write_card(folder, _card(manifest), earlier=config.output)
    return manifest


def merge_problem(folder: Path) -> str | None:
    """What is damaged or missing in a folder that merge wrote; None if it is whole."""
    try:
        texts = read_model(folder / MANIFEST, MergeManifest).texts
        rows = count_in_footers(folder)
    except (OSError, ValueError, RowFileError) as error:
        return f"{folder}: {brief(error)}"
    return None if rows == texts else f"{folder}: C* has {texts} texts, but {folder / ROWS} has {rows} rows"


def texts_annotated(manifest: MergeManifest) -> int:
    """Different texts in the annotations. Earlier versions merged no annotations that share texts."""
    texts = manifest.annotated_texts
    return sum(source.texts for source in manifest.sources) if texts is None else texts


def too_few_plain_texts(found: int, wanted: int) -> str:
    """That C* has fewer texts without a call than its share asks for."""
    return (
        f"C* has {found:,} of the {wanted:,} texts without a call that --plain-share asks for: no other "
        "annotated text is without a kept call"
    )


def augment(
    rows: Iterable[Mapping[str, Any]], mixture: Mixture, calls: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of C*: the texts with kept calls, the calls inserted. `calls` counts them by tool.

    Raises MergeError if a call does not fit its text, or if removing the calls does not restore the
    text.
    """
    for row in rows:
        kept_calls = mixture.calls(row)
        if not kept_calls:
            continue
        try:
            augmented = insert_calls(row["text"], kept_calls)
            restored = remove_calls(augmented, kept_calls)
        except CallError as error:
            raise MergeError(f"text {row['text_id']}: {error}") from error
        if restored != row["text"]:
            raise MergeError(f"text {row['text_id']}: removing its calls gives another text: {restored!r}")
        calls.update(call.tool for call in kept_calls)
        tools = in_order({call.tool for call in kept_calls})
        yield {"text_id": row["text_id"], "text": augmented, "plain": row["text"], "tool_names": tools}


def _with_kept_calls(rows: Iterable[Mapping[str, Any]], mixture: Mixture) -> Ids:
    """The texts with a kept call, sorted, also those that a cap leaves out of C*."""
    ids = [row["text_id"] for row in rows if mixture.kept(row)]
    return np.unique(np.array(ids, np.int64))


def annotated_thresholds(sources: Mapping[Path, AnnotationManifest]) -> dict[str, set[float]]:
    """By tool, the thresholds that its annotations were run with.

    The annotations have every loss for the highest of them, and not for lower ones.
    """
    methods = [source.config.method for source in sources.values()]
    tools = in_order({tool for method in methods for tool in method.tools})
    return {tool: {method.of(tool).tau_f for method in methods if tool in method.tools} for tool in tools}


def input_rule_of(sources: Mapping[Path, AnnotationManifest]) -> frozenset[str]:
    """The tools that drop calls whose input stands in the text only after them."""
    return frozenset().union(*(source.config.method.input_rule for source in sources.values()))


def mixture_of(
    rows: ReachingRows, config: MergeConfig, tau_f: TauF, sources: Mapping[Path, AnnotationManifest]
) -> Mixture:
    """The calls of the annotations `sources` that C* has; `rows` are theirs."""
    return choose(
        rows.read(),
        tau_f,
        config.max_examples,
        config.seed,
        one_per_position=config.one_call_per_position,
        input_rule=input_rule_of(sources),
        cap_by=config.cap_by,
    )


def thresholds(config: MergeConfig, annotated_tau_f: Mapping[str, set[float]]) -> dict[str, float]:
    """tau_f by tool, from `config` or the annotations. ConfigurationError names the field."""
    tau_f: dict[str, float] = {}
    given = config.tau_f or {}
    if unknown := given.keys() - annotated_tau_f.keys() - {ALL}:
        raise ConfigurationError(
            f"tau_f.{min(unknown)}: none of the annotations has this tool, only {', '.join(annotated_tau_f)}"
        )
    of_every = dict.fromkeys(annotated_tau_f, given[ALL]) if ALL in given else {}
    configured = of_every | dict(given)
    for tool, annotated in annotated_tau_f.items():
        floor = max(annotated)
        if tool not in configured and len(annotated) > 1:
            raise ConfigurationError(
                f"tau_f.{tool}: the annotations have {sorted(annotated)}; give one of at least {floor}"
            )
        tau_f[tool] = configured.get(tool, floor)
        if tau_f[tool] < floor:
            raise ConfigurationError(
                f"tau_f.{tool} = {tau_f[tool]} is below {floor}, down to which the annotations are exact: "
                f"annotate again with --method.{tool.lower()}.tau-f {tau_f[tool]}"
            )
    return tau_f


def _table(rows: Iterator[dict[str, Any]]) -> pa.Table:
    """C* as an Arrow table, collected in chunks: dictionaries take several times the memory."""
    chunks = iter(lambda: list(islice(rows, _CHUNK_ROWS)), [])
    return pa.Table.from_batches(
        [pa.RecordBatch.from_pylist(chunk, AUGMENTED_SCHEMA) for chunk in chunks], AUGMENTED_SCHEMA
    )


def _examples(
    mixture: Mixture,
    floors: TauF,
    calls: Counter[str],
    table: pa.Table,
    sources: Sequence[AnnotationManifest],
) -> dict[str, ToolExamples]:
    examples = Counter(pc.list_flatten(table["tool_names"]).to_pylist())
    largest = _largest_gains(sources)
    return {
        tool: ToolExamples(
            tau_f=mixture.tau_f[tool],
            candidates=choice.candidates,
            examples=examples[tool],
            calls=calls[tool],
            at={str(limit): choice.at[limit] if limit >= floors[tool] else None for limit in THRESHOLDS},
            annotated_tau_f=floors[tool],
            largest_gain=largest[tool][0] if tool in largest else None,
            largest_gain_is_bound=tool in largest and not largest[tool][1],
        )
        for tool, choice in mixture.tools.items()
    }


def _tool_specs(sources: Sequence[AnnotationManifest], tools: Iterable[str]) -> tuple[ToolSpec, ...]:
    """The declaration of each tool, from the first annotations that know it."""
    known: dict[str, ToolSpec] = {}
    for source in sources:
        known = source.config.tools.specs | known
    return tuple(with_schema(known[tool]) for tool in tools if tool in known)


def _card(manifest: MergeManifest) -> Card:
    config = manifest.config
    return Card(
        title="C*: texts with tool calls inserted",
        facts={
            "texts": manifest.texts,
            **({"texts without a call": manifest.plain_texts} if config.plain_share else {}),
            "calls": manifest.calls,
            "models": ", ".join(sorted({source.model for source in manifest.sources})),
            "corpora": ", ".join(sorted({source.corpus or "unknown" for source in manifest.sources})),
            "texts annotated": texts_annotated(manifest),
            "max_examples": config.max_examples,
            "one_call_per_position": config.one_call_per_position,
            "seed": config.seed,
        },
        tools={
            tool: {"tau_f": examples.tau_f, "texts": examples.examples, "calls": examples.calls}
            for tool, examples in manifest.tools.items()
        },
        versions=manifest.versions,
        created=manifest.created,
        data_files=f"{ROWS}/*.parquet",
    )


def _largest_gains(sources: Sequence[AnnotationManifest]) -> dict[str, tuple[float, bool]]:
    """The largest gain of each tool in the manifests, and whether it is exact."""
    largest: dict[str, tuple[float, bool]] = {}
    for counts in (source.counts for source in sources if source.counts is not None):
        for tool, sums in counts.tools.items():
            if sums.largest_gain is not None:
                gain = sums.largest_gain, not sums.largest_gain_is_bound
                largest[tool] = max(largest.get(tool, gain), gain)
    return largest


def _write_sorted(table: pa.Table, path: Path) -> None:
    """Write the rows sorted by id, in chunks: an Arrow string array holds 2 GiB at most."""
    order = pc.sort_indices(table["text_id"])
    with pq.ParquetWriter(path, AUGMENTED_SCHEMA) as writer:
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            writer.write_table(table.take(order.slice(start, _CHUNK_ROWS)))
