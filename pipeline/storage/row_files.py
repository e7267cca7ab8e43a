"""Output folders: one writer at a time, every row once, small files written whole.

What `annotate` writes is a folder of Parquet files, one for each batch, which get their names when they are
complete; and a Parquet file's index stands at its end. So the rows on disk are the only record of what is
done; there is no second one that could disagree (docs/decisions/0004). `settle` brings such a folder into
order after anything that may have happened to the processes that wrote it. Knows nothing of what is in the
rows but their `text_id`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tools_service.base.errors import ConfigurationError, PipelineError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_PART = ".part"
_READERS = 8

Ids = NDArray[np.int64]


class OutputInUseError(ConfigurationError):
    """Another process writes into the folder."""


class OutputError(PipelineError):
    """What cannot be written: no space, no right, a file system that is gone."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The operating system's refusals as an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write: {error}. Mend that and give the command again, or name another output"
        ) from error


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep it from every other process that asks. OutputInUseError if one has it already,
    OutputError if it cannot be written.

    The operating system lets go of the lock when its holder dies, however it dies, so none is ever stale. The
    file says who holds it; it stays behind, empty.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unlocked = (folder / LOCK).open("ab+", buffering=0)
    with unlocked as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise OutputInUseError(
                f"{folder}: {lock.read().decode() or 'another process'} is writing here; wait for it, stop "
                "it, or choose another output"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: cannot be locked (%s); start only one run on it at a time", folder, error)
        with writing(folder):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now()},".encode())
        try:
            yield
        finally:
            lock.truncate(0)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part. OutputError if it
    cannot be written."""
    part = path.with_name(path.name + _PART)
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def now() -> str:
    """The time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_rows(folder: Path, rows: pa.Table) -> None:
    """One batch as a file of its own, on disk when this returns. The same batch again is the same file."""
    ids = rows["text_id"].to_numpy()
    path = folder / f"{hashlib.blake2b(ids.tobytes(), digest_size=12).hexdigest()}.parquet"
    # Two processes may be at it: one that was given up may still run.
    part = folder / f"{path.name}.{uuid.uuid4().hex}{_PART}"
    try:
        with part.open("wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def parquet_files(folder: Path) -> list[Path]:
    """The folder's finished Parquet files, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def settle(folder: Path) -> Ids:
    """Remove what was not finished and what stands there twice; the ids of all rows, sorted.

    A file without its index was being written when its writer died: it goes, its texts will be done again. An
    id can stand in two files if tasks of a killed run outlived it for a moment while the next one had begun;
    equal ids have equal rows, so any one of them may stay. To be called while nothing writes.
    """
    for part in folder.glob(f"*{_PART}"):
        part.unlink()
    files = parquet_files(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        ids = list(pool.map(_ids_or_remove, files))
    together = np.concatenate([np.empty(0, np.int64), *ids])
    together.sort()  # in place: there may be 10^9 of them
    if not (together[1:] == together[:-1]).any():
        return together
    _remove_twins(files, ids)
    return np.unique(together)


def remove_rows(folder: Path, ids: Iterable[int]) -> int:
    """Remove the rows of these texts, so that they are done again; how many. While nothing writes."""
    wanted, removed = pa.array(sorted(ids), pa.int64()), 0
    for path in parquet_files(folder) if len(wanted) else []:
        gone = pc.is_in(pq.read_table(path, columns=["text_id"])["text_id"], wanted)
        if number := pc.sum(gone).as_py():
            _keep(path, pc.invert(gone))
            removed += number
    return removed


def _keep(path: Path, rows: pa.Array) -> None:
    """Rewrite a file with the rows at these indices, or where this mask is true; without any it goes."""
    whole = pq.read_table(path)
    left = whole.filter(rows) if pa.types.is_boolean(rows.type) else whole.take(rows)
    if not left.num_rows:
        path.unlink()
        return
    part = path.with_name(path.name + _PART)
    pq.write_table(left, part)
    part.replace(path)


def _ids_or_remove(path: Path) -> Ids:
    try:
        ids: Ids = pq.read_table(path, columns=["text_id"])["text_id"].to_numpy()
    except (pa.ArrowInvalid, EOFError) as error:
        logger.warning("%s: was not written to its end, its texts will be done again (%s)", path, error)
        path.unlink()
        return np.empty(0, np.int64)
    return ids


def _remove_twins(files: Sequence[Path], ids: Sequence[Ids]) -> None:
    seen: set[int] = set()
    for path, own in zip(files, ids, strict=True):
        fresh = [index for index, text_id in enumerate(own.tolist()) if not _seen(seen, text_id)]
        if len(fresh) == len(own):
            continue
        logger.warning("%s: %d rows stand in other files too and are removed", path, len(own) - len(fresh))
        _keep(path, pa.array(fresh, pa.int64()))


def _seen(seen: set[int], text_id: int) -> bool:
    known = text_id in seen
    seen.add(text_id)
    return known


def write_json(path: Path, content: object) -> None:
    """`content` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
