"""A chain of steps does again exactly what has to be done again, and removes nothing that is not its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli.steps import PipelineStep, StepCache
from pipeline.storage.lock import OutputInUseError, exclusive_lock
from tools_service.base.errors import ConfigurationError
from tools_service.base.ownership import NotOwnError, OutputKind
from tools_service.base.settings import Frozen
from tools_service.base.version import __version__

pytestmark = pytest.mark.unit


KIND = OutputKind(
    name="a small step's output",
    marks={"mark.json": frozenset({"small"})},
    paths=("text|attempts|mark\\.json",),
)


class Upper(Frozen):
    """Settings of the small steps below."""

    suffix: str = ""
    max_batch_tokens: int = 4


class Chain:
    """Two real steps: a.txt in capitals, and that doubled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "a.txt"
        self.source.write_text("a")
        self.fail = False

    def run(self, suffix: str = "", force: bool = False) -> list[str]:
        """The names of the steps that were done."""
        cache = StepCache.open(self.folder / "out" / "steps.json")
        first, second = self.folder / "out" / "first", self.folder / "out" / "second"
        steps = [
            self._step("first", Upper(suffix=suffix), self.source, first, str.upper),
            self._step("second", Upper(), first / "text", second, lambda text: text * 2),
        ]
        return [step.name for step in steps if cache.run(step, force=force)]

    def _step(
        self, name: str, config: Upper, source: Path, output: Path, change: Callable[[str], str]
    ) -> PipelineStep:
        def run() -> None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "mark.json").write_text('{"small": true}')
            with (output / "attempts").open("a") as file:
                file.write(name)
            if self.fail:
                raise RuntimeError("killed")
            (output / "text").write_text(change(source.read_text()) + config.suffix)

        return PipelineStep(name=name, config=config, reads=(source,), output=output, kind=KIND, run=run)

    @property
    def result(self) -> str:
        return (self.folder / "out" / "second" / "text").read_text()


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_a_second_run_does_nothing(chain: Chain) -> None:
    assert chain.run() == ["first", "second"]
    assert chain.run() == []
    assert chain.result == "AA"


def test_force_does_everything_again_from_nothing(chain: Chain) -> None:
    chain.run()
    assert chain.run(force=True) == ["first", "second"]
    assert (chain.folder / "out" / "first" / "attempts").read_text() == "first"


def test_a_changed_setting_or_input_does_the_step_and_those_after_it_again(chain: Chain) -> None:
    chain.run()
    assert chain.run(suffix="!") == ["first", "second"]
    assert chain.result == "A!A!"
    chain.source.write_text("other")
    assert chain.run(suffix="!") == ["first", "second"]
    assert chain.result == "OTHER!OTHER!"


def test_a_step_begun_goes_on_in_its_own_folder(chain: Chain) -> None:
    chain.fail = True
    with pytest.raises(RuntimeError):
        chain.run()
    chain.fail = False
    assert chain.run() == ["first", "second"]
    assert (chain.folder / "out" / "first" / "attempts").read_text() == "firstfirst"


def test_a_missing_output_is_made_again(chain: Chain) -> None:
    chain.run()
    (chain.folder / "out" / "second" / "text").unlink()
    (chain.folder / "out" / "second" / "attempts").unlink()
    (chain.folder / "out" / "second" / "mark.json").unlink()
    (chain.folder / "out" / "second").rmdir()
    assert chain.run() == ["second"]


def test_steps_that_an_earlier_version_finished_stay_finished(chain: Chain) -> None:
    """That version called the field batch_tokens and joined lines under SHA-256."""
    chain.run()
    file = chain.folder / "out" / "steps.json"
    entries, fingerprint = json.loads(file.read_text()), ""
    for name, source in (("first", chain.source), ("second", chain.folder / "out" / "first" / "text")):
        state = f"{source} {source.stat().st_size} {source.stat().st_mtime_ns}"
        lines = [__version__, fingerprint, name, '{"suffix":"","batch_tokens":4}', str(source), state]
        fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        entries[name]["fingerprint"] = fingerprint
    file.write_text(json.dumps(entries))
    assert chain.run() == []
    assert chain.run(suffix="!") == ["first", "second"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_the_chain_did_not_make_is_never_removed(chain: Chain, force: bool) -> None:
    foreign = chain.folder / "out" / "first" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("years of work")
    chain.run(force=force)
    if force:  # now with the step's own files beside it
        with pytest.raises(NotOwnError, match=r"thesis\.txt"):
            chain.run(force=True, suffix="!")
    else:
        chain.run(suffix="!")
    assert foreign.read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_what_a_user_added_to_an_output_keeps_it(chain: Chain, force: bool) -> None:
    chain.run()
    foreign = chain.folder / "out" / "first" / "notes" / "a.txt"
    foreign.parent.mkdir()
    foreign.write_text("years of work")
    with pytest.raises(NotOwnError, match=r"output of first: .*out/first is not empty .* it holds notes/"):
        chain.run(force=force, suffix="!")
    assert foreign.read_text() == "years of work"
    assert chain.result == "AA"


def test_an_output_that_another_process_writes_is_not_removed(chain: Chain) -> None:
    chain.run()
    with exclusive_lock(chain.folder / "out" / "first"), pytest.raises(OutputInUseError):
        chain.run(force=True)
    assert chain.result == "AA"
    assert chain.run(force=True) == ["first", "second"]


ENTRY = {"fingerprint": "", "state": "begun", "owns": ""}
DAMAGED = {
    "cut": b"{",
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "a string": b'"first"',
    "not UTF-8": b'{"first": "\xff"}',
    "deep": b"[" * 200_000,
    "NaN": b'{"first": NaN}',
    "long": b'{"first": "' + b"x" * 60_000_000 + b'"}',
    "zeros": b"\0" * 50,
    **{
        name: json.dumps({"first": entry}).encode()
        for name, entry in {
            "an entry that is null": None,
            "an entry that is a list": [],
            "an entry that is a number": 3,
            "an empty entry": {},
            "no fingerprint": {"state": "begun", "owns": ""},
            "no state": {"fingerprint": "", "owns": ""},
            "another state": ENTRY | {"state": "over"},
            "a fingerprint of another type": ENTRY | {"fingerprint": 3},
            "an owner of another type": ENTRY | {"owns": ["a"]},
        }.items()
    },
}


@pytest.mark.parametrize("kind", [*DAMAGED, "a folder"])
def test_a_damaged_cache_is_one_sentence_that_names_it(chain: Chain, kind: str) -> None:
    chain.run()
    path = chain.folder / "out" / "steps.json"
    path.unlink()
    path.mkdir() if kind == "a folder" else path.write_bytes(DAMAGED[kind])
    with pytest.raises(ConfigurationError, match=r"steps\.json is not a cache of steps: ") as refused:
        chain.run()
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)
    assert chain.result == "AA"


def test_a_finished_step_that_lost_files_is_started_again(tmp_path: Path) -> None:
    runs: list[None] = []
    step = PipelineStep(
        name="a",
        config=Upper(),
        output=tmp_path / "a",
        kind=KIND,
        run=lambda: runs.append((tmp_path / "a").mkdir(exist_ok=True)),
        problem=lambda: "text is missing" if len(runs) == 1 else None,
    )
    cache = StepCache.open(tmp_path / "steps.json")
    assert [cache.run(step), StepCache.open(tmp_path / "steps.json").run(step)] == [True, True]
    assert not StepCache.open(tmp_path / "steps.json").run(step)
