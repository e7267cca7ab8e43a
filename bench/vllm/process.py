"""The process that runs vLLM: the interpreter of an environment that the user names.

In: the interpreter and the engine's model. Out: `VllmProcess.request`, which calls a method of
bench/vllm/worker.py there. How the requests annotate texts is in job.py.
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
_SHARE_OF_FREE = 0.9  # of the GPU's free memory is given to vLLM


class VllmProcess:
    """The worker's process. It answers one request at a time."""

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        """`python` belongs to an environment with vLLM. SystemExit if it does not start."""
        self.python, self.log = python, tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [str(Path(python).absolute()), "-c", "from bench.vllm.worker import main; main()"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, env=dict(env), text=True, **pipes)
        except OSError as error:
            raise SystemExit(f"--vllm-python {python}: {error}") from error

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
            raise SystemExit(f"--vllm-python {self.python}: {response['error']}")
        return response

    def close(self) -> None:
        """End the process. It may have ended before it read all requests."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a request is still in the pipe's buffer
                    pipe.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return "the process ended:\n" + "\n".join(log.read().decode(errors="replace").splitlines()[-20:])


def engine_settings(model: LanguageModel, path: str) -> dict[str, Any]:
    """Arguments of vllm.LLM for this model. How they were chosen: docs/decisions/0014."""
    settings: dict[str, Any] = {
        "model": path,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "enable_prefix_caching": True,
        "block_size": 32,  # the smallest on a CPU; the last block of a context is never cached
        "max_model_len": model.max_positions,
        "max_num_seqs": 512,
        "max_num_batched_tokens": 16_384,
        "max_logprobs": -1,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "seed": 0,
    }
    if model.device.type == "cuda":  # vLLM assumes an empty GPU, but the engine's model stays on it
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(model.device)
        settings["gpu_memory_utilization"] = round(_SHARE_OF_FREE * free / total, 3)
    return settings


def environment(python: str, device: torch.device) -> dict[str, str]:
    """The process's variables: vLLM in one process, with as many bound threads as this process has.

    Variables that the user has set for vLLM, and LD_PRELOAD, keep their values.
    """
    env = dict(os.environ)
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device.type == "cpu":
        cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        env["OMP_NUM_THREADS"] = str(len(cores))
        openmp = Path(python).absolute().parent.parent / "lib/libiomp5.so"  # vLLM needs and installs it
        if openmp.is_file():
            defaults["LD_PRELOAD"] = str(openmp)
    return defaults | env


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
