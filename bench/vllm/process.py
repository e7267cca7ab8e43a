"""The process that vLLM runs in: the interpreter of an environment the user names, with sensible settings.

In: the interpreter and the engine's model. Out: `Vllm.ask`, which puts questions to bench.vllm_worker there.
What they mean for annotating is bench.vllm_job's.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.engine.model import LanguageModel

ROOT = Path(__file__).parents[2]
_OF_FREE = 0.9  # of a GPU's free memory is for vLLM


class Vllm:
    """The worker's process: questions and answers, one at a time."""

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        """`python` is the interpreter of an environment that has vLLM."""
        self.python, self.log = python, tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [str(Path(python).absolute()), "-c", "from bench.vllm.worker import main; main()"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, env=dict(env), text=True, **pipes)
        except OSError as error:
            raise SystemExit(f"--vllm-python {python}: {error}") from error

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The worker's answer. SystemExit with its error, or with its last words if it has none."""
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None
        assert answers is not None
        try:
            print(json.dumps({"do": do} | fields), file=questions, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": _tail(self.log)}
        if "error" in answer:
            raise SystemExit(f"--vllm-python {self.python}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process, which may have ended before it read all that it was asked."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # the question is still in the pipe's buffer
                    pipe.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return "it ended:\n" + "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


def engine_settings(model: LanguageModel, path: str) -> dict[str, Any]:
    """Arguments of vllm.LLM for this model; docs/decisions/0014 says how they were found."""
    settings: dict[str, Any] = {
        "model": path,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "enable_prefix_caching": True,
        "block_size": 32,  # the least there is on a CPU: the last block of a context is always run again
        "max_model_len": model.max_positions,
        "max_num_seqs": 512,
        "max_num_batched_tokens": 16_384,
        "max_logprobs": -1,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "seed": 0,
    }
    if model.device.type == "cuda":  # vLLM counts the whole card as its own; the engine's model stays on it
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(model.device)
        settings["gpu_memory_utilization"] = round(_OF_FREE * free / total, 3)
    return settings


def environment(python: str, device: torch.device) -> dict[str, str]:
    """The process's variables: vLLM in one process, as many bound threads as this one has. What the user has
    set for vLLM or to be preloaded stays."""
    env = dict(os.environ)
    given = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device.type == "cpu":
        cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
        given |= {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        env["OMP_NUM_THREADS"] = str(len(cores))
        openmp = Path(python).absolute().parent.parent / "lib/libiomp5.so"  # comes with vLLM, which wants it
        if openmp.is_file():
            given["LD_PRELOAD"] = str(openmp)
    return given | env


@contextmanager
def folder(model: LanguageModel) -> Iterator[str]:
    """Where the model's files are; written if it was made in memory."""
    if name := model.model.name_or_path:
        yield str(Path(name).absolute()) if Path(name).is_dir() else name
        return
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        yield folder
