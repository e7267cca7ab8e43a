"""The process that runs an inference engine: the interpreter of an environment that the user names.

In: an engine and its interpreter. Out: `WorkerProcess.request`, which calls a method of the
engine's worker there. How the requests annotate texts is in annotator.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.engine.model import LanguageModel

ROOT = Path(__file__).parents[2]
_END_S = 60.0
_LOG_LINES = 20


class WorkerProcess:
    """A worker's process. It answers one request at a time."""

    def __init__(self, module: str, option: str, python: str, env: Mapping[str, str]) -> None:
        """Run `main` of `module` with the interpreter `python`, which the user named in `option`.

        SystemExit if it does not start.
        """
        self.name, self.log = f"{option} {python}", tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        command = [str(Path(python).absolute()), "-c", f"from {module} import main; main()"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, env=dict(env), text=True, **pipes)
        except OSError as error:
            raise SystemExit(f"{self.name}: {error}") from error

    def request(self, method: str, **fields: Any) -> dict[str, Any]:
        """The worker's response. SystemExit with its error or, if it crashed, its log's end."""
        requests, responses = self.process.stdin, self.process.stdout
        assert requests is not None
        assert responses is not None
        try:
            print(json.dumps({"method": method} | fields), file=requests, flush=True)
            line = responses.readline()
        except BrokenPipeError:
            line = ""
        response: dict[str, Any] = json.loads(line) if line else {"error": _tail(self.log)}
        if "error" in response:
            raise SystemExit(f"{self.name}: {response['error']}")
        return response

    def close(self) -> None:
        """End the process. It may have ended before it read all requests."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a request is still in the pipe's buffer
                    pipe.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return "the process ended:\n" + "\n".join(log.read().decode(errors="replace").splitlines()[-_LOG_LINES:])


@contextmanager
def model_folder(model: LanguageModel) -> Iterator[str]:
    """The folder or hub name of the model; a model made in memory is written to a temporary folder."""
    if name := model.model.name_or_path:
        yield str(Path(name).absolute()) if Path(name).is_dir() else name
        return
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        yield folder
