"""Which steps of a chain are finished, and whether their inputs have changed since.

steps.json, beside the outputs, holds for each step a fingerprint of everything that decides its
result: its configuration, the files it reads (name, size, time of change) and the fingerprints of
the steps before it. A step that finished under the same fingerprint is skipped; one that began
under it is started again and resumes by itself. Under another fingerprint its old output is removed
first, if it is of the step's kind and holds nothing else (tools_service/base/ownership.py). A
finished step whose output has lost files is started again, too.

finetuning/checkpoints/run_folder.py and the annotation manifest cannot replace this: they refuse another
configuration and name the fields. A chain covers merge and evaluate, too, and starts over unasked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import RootModel

from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write_json, read_model, writing
from tools_service.base.fingerprint import FileState, fingerprint, input_states
from tools_service.base.locks import output_lock
from tools_service.base.options import RENAMED_OPTIONS
from tools_service.base.ownership import OutputKind, remove_own
from tools_service.base.settings import Frozen
from tools_service.base.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """A step: its name, what decides its result, its output, and the function to run."""

    name: str
    config: Frozen
    reads: tuple[str | Path, ...] = ()
    """Files, folders, globs and URIs. What is not on this machine counts by its name only."""
    output: Path
    kind: OutputKind
    run: Callable[[], object]
    summary: str = ""
    """What the step does, in a few words."""
    share: Callable[[], float] = lambda: 0.0
    """How much of the output there is while the step runs, from 0 to 1; 0 if that is not known."""
    problem: Callable[[], str | None] = lambda: None
    """What is wrong with a finished output, such as lost files; None if it is whole."""


class _StepEntry(Frozen):
    fingerprint: str
    state: Literal["begun", "finished"]
    owns: str = ""


class _StepEntries(RootModel[dict[str, _StepEntry]]):
    """The content of steps.json."""


@dataclass
class StepCache:
    """The state of the steps in one folder. `path` is rewritten at each change."""

    path: Path
    entries: dict[str, _StepEntry] = field(default_factory=dict)
    chain: str = ""  # fingerprint of the steps so far
    former_chain: str = ""  # the same, as earlier versions computed it

    @staticmethod
    def open(path: Path) -> StepCache:
        """The cache in `path`, empty if there is no file. ConfigurationError if it is damaged."""
        try:
            return StepCache(path, read_model(path, _StepEntries).root)
        except FileNotFoundError:
            return StepCache(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path} is not a cache of steps: {brief(error)}; remove it, and every step is started again"
            ) from error

    def is_unchanged(self, step: PipelineStep) -> bool:
        """Whether `step` began before with what decides its result. Call it once for each step of the chain,
        in order."""
        states = list(input_states(step.reads))
        config = step.config.model_dump(mode="json")
        self.chain = fingerprint([__version__, self.chain, step.name, config, *states])
        self.former_chain = _former_fingerprint(step, self.former_chain, states)
        return self.entry(step).fingerprint in (self.chain, self.former_chain)

    def is_finished(self, step: PipelineStep) -> bool:
        """Whether `step` ended, with whatever inputs, and left its output."""
        return self.entry(step).state == "finished" and step.output.exists()

    def entry(self, step: PipelineStep) -> _StepEntry:
        """What is stored of `step`."""
        return self.entries.get(step.name, _StepEntry(fingerprint="", state="begun"))

    def run(
        self,
        step: PipelineStep,
        *,
        force: bool = False,
        watched: Callable[[PipelineStep], AbstractContextManager[object]] = nullcontext,
    ) -> bool:
        """Run `step` unless it is finished, in the context of `watched`; return whether it ran."""
        unchanged = self.is_unchanged(step) and not force
        owns = self.entry(step).owns
        if unchanged and self.is_finished(step):
            problem = step.problem()
            if problem is None:
                return False
            logger.warning("%s: %s; running it again", step.name, problem)
        if not unchanged:
            # Remove an output of an earlier run. Any other output is left to the step itself.
            if owns == str(step.output) or (force and step.kind.is_marked(step.output)):
                with output_lock(step.output):  # nobody may be writing there
                    remove_own(step.output, step.kind, f"output of {step.name}")
            owns = "" if step.output.exists() else str(step.output)
        self._write(step, "begun", owns)
        with watched(step):
            step.run()
        self._write(step, "finished", owns)
        return True

    def _write(self, step: PipelineStep, state: Literal["begun", "finished"], owns: str) -> None:
        self.entries[step.name] = _StepEntry(fingerprint=self.chain, state=state, owns=owns)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.path, _StepEntries(self.entries).model_dump(mode="json"))


def _former_fingerprint(step: PipelineStep, chain: str, states: Iterable[str | FileState]) -> str:
    """The fingerprint of earlier versions, with old field names: their steps stay finished."""
    config = step.config.model_dump_json()
    for old, new in RENAMED_OPTIONS.items():
        config = config.replace(f'"{new.replace("-", "_")}":', f'"{old.replace("-", "_")}":')
    lines = [s if isinstance(s, str) else f"{s.name} {s.size} {s.mtime_ns}" for s in states]
    text = "\n".join([__version__, chain, step.name, config, *lines])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
