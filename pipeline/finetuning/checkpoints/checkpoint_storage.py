"""The folder of a run's checkpoints: below its output, in another folder, or in an object store.

In: `storage` of the configuration and the name of the run's folder in it. Out: which checkpoints are
there, their files on this machine, and their removal. Ray Train writes them (worker_checkpoints.py).
"""

from __future__ import annotations

import json
import logging
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files

from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import OutputError
from tools_service.base.uris import is_uri, open_uri

logger = logging.getLogger(__name__)

_INDEX = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints


@dataclass(frozen=True)
class CheckpointStorage:
    """One run's folder."""

    location: str
    """For messages: the folder or URI that holds the run's folder."""
    filesystem: FileSystem
    parent: str  # path of `location` in the file system
    name: str

    @staticmethod
    def of(location: Path | str, name: str) -> CheckpointStorage:
        """The folder `name` in a folder or at a URI. Raises ConfigurationError if that is no URI."""
        if not is_uri(str(location)):
            return CheckpointStorage(str(location), LocalFileSystem(), str(location), name)
        return CheckpointStorage(str(location), *open_uri(str(location), "storage"), name)

    @property
    def is_shared_folder(self) -> bool:
        """Whether workers write into the folder itself; otherwise they upload."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def folder(self) -> str:
        """Path in the file system."""
        return posixpath.join(self.parent, self.name)

    def __str__(self) -> str:
        return f"{self.location.rstrip('/')}, folder {self.name}"

    def require_writable(self) -> None:
        """Write a file, read it and remove it. Raises ConfigurationError, in one sentence."""
        path = posixpath.join(self.parent, f".write-test-{uuid.uuid4().hex[:8]}")
        try:
            if self.is_shared_folder:
                self.filesystem.create_dir(self.parent, recursive=True)
            with self.filesystem.open_output_stream(path) as file:
                file.write(b"test")
            self.filesystem.open_input_stream(path).close()
            self.filesystem.delete_file(path)
        except (OSError, ValueError, ArrowException) as error:
            hint = "" if self.is_shared_folder else ", the credentials and the endpoint (AWS_ENDPOINT_URL)"
            raise ConfigurationError(
                f"storage = {self.location}: cannot be written: {brief(error)}. Check the path{hint}"
            ) from error

    def repair_index(self) -> int:
        """Make Ray Train's list agree with the checkpoints that are there; returns the steps of the latest.

        Ray Train rewrites the list in place, and a crash or a full disk can leave a part of it. Without
        it, training starts at step 0, and the result is the same. It also names checkpoints that have
        been removed since, and Ray Train would stop at them.
        """
        try:
            content = self.read(_INDEX)
            index = json.loads(content)
        except FileNotFoundError:
            return 0
        except ValueError as error:
            logger.warning(
                "%s in %s was not written to its end: training starts at step 0 (%s)", _INDEX, self, error
            )
            with self._naming_failures("written"):
                self.filesystem.delete_file(posixpath.join(self.folder, _INDEX))
            return 0
        with self._naming_failures("read"):
            present = set(self._names())
        try:
            steps = _keep_present(index, present)
        except (KeyError, TypeError, ValueError):
            return 0  # Ray Train will say what is wrong with it
        if index != json.loads(content):
            self.write(_INDEX, json.dumps(index))
        return steps

    def write(self, name: str, text: str) -> None:
        """Write a small file into the run's folder."""
        with self._naming_failures("written"):
            self.filesystem.create_dir(self.folder, recursive=True)
            with self.filesystem.open_output_stream(posixpath.join(self.folder, name)) as file:
                file.write(text.encode())

    def read(self, name: str) -> bytes:
        """A small file of the run's folder. Raises FileNotFoundError."""
        path = posixpath.join(self.folder, name)
        with self._naming_failures("read"), self.filesystem.open_input_stream(path) as file:
            content: bytes = file.read()
            return content

    def _names(self) -> Iterator[str]:
        selector = FileSelector(self.folder, allow_not_found=True)
        return (info.base_name for info in self.filesystem.get_file_info(selector))

    def download(self, folder: str, target: Path, names: Iterable[str] | None = None) -> None:
        """Copy the files of a folder in the file system, or those `names` of it, into `target`."""
        with self._naming_failures("read"):
            for name in self.files(folder) if names is None else names:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                source = posixpath.join(folder, name)
                copy_files(source, str(target / name), source_filesystem=self.filesystem)

    def files(self, folder: str) -> list[str]:
        """Paths of all files in a folder of the file system, relative to it; none if it does not exist."""
        selector = FileSelector(folder, allow_not_found=True, recursive=True)
        with self._naming_failures("read"):
            infos = self.filesystem.get_file_info(selector)
        return [posixpath.relpath(info.path, folder) for info in infos if info.is_file]

    def remove_checkpoint(self, name: str) -> None:
        """Remove the checkpoint `name`, if it is there."""
        self._remove(posixpath.join(self.folder, name))

    def remove(self) -> None:
        """Remove the run's folder and all that is in it."""
        self._remove(self.folder)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError), self._naming_failures("removed"):
            self.filesystem.delete_dir(path)

    @contextmanager
    def _naming_failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputError(f"storage = {self}: cannot be {verb}: {brief(error)}") from error


def _keep_present(index: dict[str, Any], present: set[str]) -> int:
    """Drop checkpoints that are not `present`; returns the steps of the latest, 0 if none is left."""
    pairs = zip(index["checkpoint_results"], index["checkpoint_report_indices"], strict=True)
    kept = [(result, number) for result, number in pairs if result["checkpoint_dir_name"] in present]
    index["checkpoint_results"] = [result for result, _ in kept]
    index["checkpoint_report_indices"] = [number for _, number in kept]
    latest = max(kept, key=lambda pair: pair[1])[0] if kept else None
    index["latest_checkpoint_result"] = latest
    return int(latest["checkpoint_dir_name"].removeprefix("step-")) if latest else 0
