"""Training data through Ray Data, for a C* that does not fit the nodes of the workers.

In: the files of C*, or a token store and a step to begin at. Out: tokenised texts, made on all CPUs of the
cluster; or, for one worker, the very batches that IndexedBatches has, step by step from that step on.

A read task computes from the index of the store which examples a worker has in a few steps, reads these from
the files, and sends them. It takes no logical CPU, so that a cluster whose CPUs all belong to the workers
does not wait forever, and a worker has one such task at a time. What the tasks have read ahead is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import Dataset, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.batches import IndexedBatches, StepBatch, StepRows
from pipeline.finetuning.data.examples import Examples
from pipeline.finetuning.data.token_store import TokenStore

DATASET = "train"
_STEPS_PER_TASK = 16
_MAX_TASKS = 1_000
_MAX_AHEAD = 64 * 2**20  # bytes that the tasks of one worker may have read ahead
_NO_PROGRESS_TIMEOUT_S = 30 * 24 * 3_600  # the reader waits as long as a step or an evaluation takes
_COLUMNS = ("text_id", "tokens", "is_result", "results", "cut")

Tables = Callable[[], Iterator[pa.Table]]


class _Tables(Datasource):
    """Tables made by functions, one read task each."""

    def __init__(self, tasks: Sequence[Tables]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One for each function; `parallelism` is ignored."""
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(task, metadata, per_task_row_limit=per_task_row_limit) for task in self._tasks]


def in_order(tasks: Sequence[Tables], *, batch_size: int | None, **options: Any) -> Iterator[pa.Table]:
    """The rows of all tables, in the order of the tasks, `batch_size` of them a table."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=_MAX_AHEAD)
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    for handler in logging.getLogger("ray.data").handlers:  # its reports stay in Ray's log files
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    with DataContext.current(context):
        dataset: Dataset = ray.data.read_datasource(_Tables(tasks), override_num_blocks=len(tasks), **options)
    yield from dataset.iter_batches(batch_size=batch_size, batch_format="pyarrow", prefetch_batches=1)


# Examples in Arrow tables


def table_of(examples: Examples) -> pa.Table:
    """A row per example."""
    offsets = np.concatenate([[0], np.cumsum(examples.lengths)])
    # Positions of the tokens in the flat arrays, which may hold other examples, too.
    positions = np.repeat(examples.starts - offsets[:-1], examples.lengths) + np.arange(offsets[-1])
    tokens, is_result = (pa.array(flat[positions]) for flat in (examples.tokens, examples.is_result))
    columns = (
        examples.text_ids,
        pa.LargeListArray.from_arrays(offsets, tokens),
        pa.LargeListArray.from_arrays(offsets, is_result),
        examples.results,
        examples.cut,
    )
    return pa.table([pa.array(column) for column in columns], names=_COLUMNS)


def examples_of(batch: pa.RecordBatch) -> Examples:
    """The inverse of `_table_of`."""
    text_ids, tokens, is_result, results, cut = (batch[name] for name in _COLUMNS)
    lengths = tokens.value_lengths().to_numpy()
    return Examples(
        text_ids=text_ids.to_numpy(),
        tokens=tokens.flatten().to_numpy(),
        is_result=is_result.flatten().to_numpy(zero_copy_only=False),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        results=results.to_numpy(),
        cut=cut.to_numpy(zero_copy_only=False),
    )


# Batches


@dataclass(frozen=True, slots=True)
class StepStream:
    """The steps of one worker: what `ray.train.get_dataset_shard` gives it."""

    config: FinetuneConfig
    store: TokenStore
    rank: int

    def steps(self, first: int) -> Iterator[tuple[int, StepBatch]]:
        """The batches of step `first` and of those after it; what comes before it is not read."""
        remaining = self.config.max_steps + 1 - first
        size = max(_STEPS_PER_TASK, -(-remaining // _MAX_TASKS))
        tasks = [
            partial(_read_steps, self, range(start, min(start + size, self.config.max_steps + 1)))
            for start in range(first, self.config.max_steps + 1, size)
        ]
        for table in in_order(tasks, batch_size=1, num_cpus=0, concurrency=1):
            yield step_of(table, self.config)


class StepsByRank(ray.train.DataConfig):
    """Gives each worker its own StepStream. Only the worker knows the step that it resumes from."""

    def __init__(self, config: FinetuneConfig, store: TokenStore) -> None:
        super().__init__()
        self._streams = partial(StepStream, config, store)

    def configure(self, datasets: Any, world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """A dict per rank. The dataset that Ray Train was given only stands for the name."""
        return [dict.fromkeys(datasets, self._streams(rank)) for rank in range(world_size)]


class StreamedBatches:
    """Batches from a StepStream, read ahead; it begins at the first step that is asked for."""

    def __init__(self, stream: StepStream) -> None:
        self.stream = stream
        self._steps: Iterator[tuple[int, StepBatch]] = iter(())
        self._next = 0

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`, counted from 1."""
        if step != self._next:
            self._steps = self.stream.steps(step)
        self._next = step + 1
        number, batch = next(self._steps)
        if number != step:
            raise RuntimeError(f"Ray Data gave step {number} in place of step {step}")
        return batch


def _read_steps(stream: StepStream, steps: range) -> Iterator[pa.Table]:
    batches = _indexed(stream)
    for step in steps:
        yield table_of_step(step, batches.rows(step), batches.examples)


@lru_cache(maxsize=2)
def _indexed(stream: StepStream) -> IndexedBatches:
    return IndexedBatches(stream.store.split(stream.config).train, stream.config, stream.rank)


def table_of_step(step: int, rows: StepRows, examples: Examples) -> pa.Table:
    """One row: the examples of a worker in a step, and their rows and forwards."""
    in_rows = [row for forward in rows.forwards for row in forward]
    own = table_of(examples.take(np.concatenate(in_rows)))
    columns = {name: own[name].combine_chunks() for name in own.column_names}
    values = {
        "step": step,
        "predicted_tokens": rows.predicted_tokens,
        "forwards": len(rows.forwards),
        "row_sizes": np.array([len(row) for row in in_rows]),
    }
    lists = {
        name: pa.LargeListArray.from_arrays([0, len(column)], column) for name, column in columns.items()
    }
    return pa.table({name: pa.array([value]) for name, value in values.items()} | lists)


def step_of(table: pa.Table, config: FinetuneConfig) -> tuple[int, StepBatch]:
    """The inverse of `table_of_step`: the number of the step, and its batch."""
    [row] = table.select(["step", "predicted_tokens", "forwards", "row_sizes"]).to_pylist()
    columns = [table[name].combine_chunks().flatten() for name in _COLUMNS]
    batch = pa.RecordBatch.from_arrays(columns, names=list(_COLUMNS))
    ends = np.cumsum(row["row_sizes"])
    in_rows = [np.arange(end - size, end) for end, size in zip(ends, row["row_sizes"], strict=True)]
    width = len(in_rows) // row["forwards"]
    forwards = tuple(tuple(in_rows[i : i + width]) for i in range(0, len(in_rows), width))
    examples = examples_of(batch).with_results_masked(config.mask_results)
    rows = StepRows(forwards, row["predicted_tokens"])
    return row["step"], rows.batch(examples, packing=config.packing)
