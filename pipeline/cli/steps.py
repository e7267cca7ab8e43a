"""Which steps of a chain are finished, and whether what they read has changed since.

A ledger (one json file beside the outputs) holds, for each step, a fingerprint of everything that decides
its result: its configuration, the files it reads (path, size, time of change) and the fingerprints of the
steps before it. A step whose fingerprint stands there as finished is not run again; one that was begun
under the same fingerprint goes on where it stopped, which is the step's own affair; under another
fingerprint its old output is removed first. A folder that neither the ledger nor a manifest claims is never
removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.settings import Frozen
from tools_service.base.version import __version__

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step: what it is called, what decides its result, what it leaves, and how it is done."""

    name: str
    config: Frozen
    reads: tuple[str | Path, ...] = ()
    """Files, folders, globs and URIs; of those that are not on this machine only the name counts."""
    output: Path
    run: Callable[[], object]


@dataclass
class StepCache:
    """The steps done in one folder. `path` is rewritten whole at each change."""

    path: Path
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    chain: str = ""
    """Fingerprint of the steps seen so far in this run."""

    @staticmethod
    def open(path: Path) -> StepCache:
        """The ledger in `path`, empty if there is none yet."""
        try:
            return StepCache(path, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return StepCache(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} is not a ledger of steps; remove it: {error}") from error

    def do(self, step: Step, *, force: bool = False, say: Say = print) -> bool:
        """Do `step` unless it is finished; whether anything was done."""
        self.chain = _fingerprint(step, self.chain)
        entry = self.entries.get(step.name, {})
        same = entry.get("fingerprint") == self.chain and not force
        if same and entry.get("state") == "finished" and step.output.exists():
            say(f"{step.name}: finished before, {step.output}")
            return False
        if not same:
            _remove(step.output, owned=entry.get("owns") == str(step.output), force=force)
            entry = {"owns": "" if step.output.exists() else str(step.output)}
        say(f"{step.name} → {step.output}")
        self._write(step, "begun", entry["owns"])
        started = time.monotonic()
        step.run()
        self._write(step, "finished", entry["owns"])
        say(f"{step.name}: {time.monotonic() - started:.0f} s")
        return True

    def _write(self, step: Step, state: str, owns: str) -> None:
        self.entries[step.name] = {"fingerprint": self.chain, "state": state, "owns": owns}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def _fingerprint(step: Step, before: str) -> str:
    parts = [__version__, before, step.name, step.config.model_dump_json(), *_state_of(step.reads)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _state_of(reads: Iterable[str | Path]) -> Iterator[str]:
    """One line per file that `reads` names."""
    for name in map(str, reads):
        yield name
        for found in map(Path, sorted(glob(name, recursive=True))):
            files = sorted(found.rglob("*")) if found.is_dir() else [found]
            for file in filter(Path.is_file, files):
                status = file.stat()
                yield f"{file} {status.st_size} {status.st_mtime_ns}"


def _remove(output: Path, *, owned: bool, force: bool) -> None:
    """Remove what an earlier run of the chain left; leave what it did not make to the step itself."""
    if not output.exists():
        return
    manifest = output.is_dir() and (output / "manifest.json").is_file()
    if owned or (force and manifest):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
