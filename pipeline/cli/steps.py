"""Which steps of a chain are finished, and whether their inputs have changed since.

steps.json, beside the outputs, holds for each step a fingerprint of everything that decides its
result: its configuration, the files it reads (name, size, time of change) and the fingerprints of
the steps before it. A step that finished under the same fingerprint is skipped; one that began
under it is started again and resumes by itself. Under another fingerprint its old output is removed
first. A folder that neither steps.json nor a manifest claims is never removed.

finetuning/run_folder.py and the annotation manifest cannot replace this: they refuse another
configuration and name the fields. A chain covers merge and evaluate, too, and starts over unasked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write_json
from tools_service.base.fingerprint import FileState, fingerprint, input_states
from tools_service.base.options import RENAMED_OPTIONS
from tools_service.base.settings import Frozen
from tools_service.base.version import __version__


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """A step: its name, what decides its result, its output, and the function to run."""

    name: str
    config: Frozen
    reads: tuple[str | Path, ...] = ()
    """Files, folders, globs and URIs. What is not on this machine counts by its name only."""
    output: Path
    run: Callable[[], object]


@dataclass
class StepCache:
    """The state of the steps in one folder. `path` is rewritten at each change."""

    path: Path
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    chain: str = ""  # fingerprint of the steps so far
    former_chain: str = ""  # the same, as earlier versions computed it

    @staticmethod
    def open(path: Path) -> StepCache:
        """The cache in `path`, empty if there is no file. ConfigurationError if it is damaged."""
        try:
            return StepCache(path, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return StepCache(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path} is not a cache of steps; remove it: {error}") from error

    def run(self, step: PipelineStep, *, force: bool = False) -> bool:
        """Run `step` unless it is finished; return whether it ran."""
        states = list(input_states(step.reads))
        config = step.config.model_dump(mode="json")
        self.chain = fingerprint([__version__, self.chain, step.name, config, *states])
        self.former_chain = _former_fingerprint(step, self.former_chain, states)
        entry = self.entries.get(step.name, {})
        unchanged = entry.get("fingerprint") in (self.chain, self.former_chain) and not force
        if unchanged and entry.get("state") == "finished" and step.output.exists():
            print(f"{step.name}: finished before, {step.output}")
            return False
        if not unchanged:
            # Remove an output of an earlier run. Any other output is left to the step itself.
            owned = entry.get("owns") == str(step.output)
            if owned or (force and (step.output / MANIFEST).is_file()):
                shutil.rmtree(step.output) if step.output.is_dir() else step.output.unlink(missing_ok=True)
            entry = {"owns": "" if step.output.exists() else str(step.output)}
        print(f"{step.name} → {step.output}")
        self._write(step, "begun", entry["owns"])
        started = time.monotonic()
        step.run()
        self._write(step, "finished", entry["owns"])
        print(f"{step.name}: {time.monotonic() - started:.0f} s")
        return True

    def _write(self, step: PipelineStep, state: str, owns: str) -> None:
        self.entries[step.name] = {"fingerprint": self.chain, "state": state, "owns": owns}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.path, self.entries)


def _former_fingerprint(step: PipelineStep, chain: str, states: Iterable[str | FileState]) -> str:
    """The fingerprint of earlier versions, with old field names: their steps stay finished."""
    config = step.config.model_dump_json()
    for old, new in RENAMED_OPTIONS.items():
        config = config.replace(f'"{new.replace("-", "_")}":', f'"{old.replace("-", "_")}":')
    lines = [s if isinstance(s, str) else f"{s.name} {s.size} {s.mtime_ns}" for s in states]
    text = "\n".join([__version__, chain, step.name, config, *lines])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
