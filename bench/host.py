"""The work of one CPU core for each text, which no accelerator shortens: annotate without its forwards.

    python -m bench.host [--model demo] [--workload Calculator:5x5 Calculator:20x10 WikiSearch:5x5 QA:5x5]

One real run over the texts records what the model answered: p(<API>), the drawn tokens, the
log-probabilities of scored tokens; the tools' results are in their cache. Then a stand-in takes the
model's place. Its
forwards return tensors with the right numbers of rows and slots and a hidden size of 8, and write one number
a slot into the KV cache of each layer. The recorded answers come back in order, so the annotations must be
equal to the real run's to the last bit, costs included; otherwise the command stops.

Counted is the CPU time of everything but the forwards: Python, numpy, the tokenizer, and starting torch
operators. Where an operator works on a tensor whose size does not depend on the model, such as a mask, a
GPU would do that work beside the host. So the operators' own time, from torch's profiler in a run of its
own, is replaced by their number times `--launch-us`. Not counted: starting the kernels within a forward;
the number of forwards is printed. Out: a table for each workload, and runs/bench/host.json. The texts per
second are those of one core that does nothing else: an actor cannot exceed them.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from bench import results
from bench.systems import BATCH, count_forwards
from bench.workload import PROMPTS, Workload
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation
from pipeline.engine import sampler
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.sampler import Sampler
from pipeline.engine.unpadding import current_layout
from pipeline.method import annotator, drawn_calls, filtering, sampling
from pipeline.method.annotator import Annotator
from tools_service.syntax.prompts import PromptTemplate

HIDDEN = 8
FORWARD, ROWS, REST = "forward (replaced)", "rows", "rest"
STAGES: tuple[tuple[Any, str, str], ...] = (
    (Annotator, "_select", "select"),
    (LanguageModel, "encode", "tokenise"),
    (filtering._Scorer, "_encode_prefixes", "tokenise"),
    (PrefilledBatch, "__init__", "prefill"),
    (PrefilledBatch, "api_probabilities", "prefill"),
    (sampling._Scheduler, "_choose_positions", "choose positions"),
    (sampling._Scheduler, "_keys", "choose positions"),
    (Sampler, "add", "start draws, join"),
    (Sampler, "step", "draw"),
    (drawn_calls.DrawReader, "_input_of_draw", "parse"),
    (drawn_calls.DrawReader, "sampled_text", "sampled records, costs"),
    (annotator, "score_calls", "scored records"),
    (filtering, "token_logprobs", "score"),
    (filtering, "scoring_work", "scoring costs"),
)
"""Functions whose own time is counted under a name; what they call under another name is not."""

Change = tuple[Any, str, Callable[[Any], Any]]
"""An owner, the name of its attribute, and what makes the new attribute of the old one."""


class StandIn(nn.Module):
    """A model with `lm`'s configuration and layers, and nothing to compute."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.config, self.dtype, self.device = lm.config, lm.dtype, lm.device
        self.base_model = _Layers(lm.config.get_text_config().num_hidden_layers, lm.dtype)
        self.head = nn.Linear(HIDDEN, HIDDEN, bias=False, dtype=lm.dtype)

    def get_output_embeddings(self) -> nn.Module:
        """The output embedding of a vocabulary of 8."""
        return self.head


class _Layers(nn.Module):
    def __init__(self, layers: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.dtype = layers, dtype

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **_: Any) -> tuple[Tensor]:
        states = torch.zeros(*input_ids.shape, HIDDEN, dtype=self.dtype)
        if past_key_values is not None:
            layout = current_layout(states.device)
            rows, slots = input_ids.shape if layout is None else (1, len(layout.row))
            of_layer = torch.zeros(rows, 1, slots, 1, dtype=self.dtype)
            for layer in range(self.layers):
                past_key_values.update(of_layer, of_layer, layer)
        return (states,)


class Recorder:
    """What the model answered, in order: written in a real run, read with a stand-in."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Tensor]] = {"log_probability": [], "invert_cdf": []}
        self._next: Counter[str] = Counter()
        self._replays = False

    def replay(self) -> None:
        """From now on the recorded answers come back, from the first one on."""
        self._replays, self._next = True, Counter()

    def wrappers(self) -> list[Change]:
        """The functions that answer, to be `replaced`."""
        return [
            (LanguageModel, "log_probability", functools.partial(self.wrap, "log_probability")),
            (sampler, "invert_cdf", functools.partial(self.wrap, "invert_cdf")),
        ]

    def wrap(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function`, whose results are recorded or replaced by recorded ones."""

        def answered(*args: Any, **options: Any) -> Tensor:
            own = function(*args, **options)
            recorded = self.answers[name]
            if not self._replays:
                recorded.append(own)
                return own
            answer = recorded[self._next[name]]
            self._next[name] += 1
            if answer.shape != own.shape:
                raise SystemExit(f"{name}: {tuple(own.shape)} numbers, recorded were {tuple(answer.shape)}")
            return answer

        return answered


class OneThread(Annotator):
    """An annotator whose model works in the caller's thread, where the profiler sees it."""

    async def _with_model(self, work: Callable[[], Any]) -> Any:
        return work()


class Stopwatch:
    """The CPU seconds of stages, each without those of the stages within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def wrappers(self) -> list[Change]:
        """The functions of all stages, and the forward, to be `replaced`."""
        stages = [*STAGES, (LanguageModel, "hidden_states", FORWARD)]
        return [(owner, name, functools.partial(self.wrap, stage)) for owner, name, stage in stages]

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed under `stage` and named so for the profiler."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            self._within.append(0.0)
            began = time.thread_time()
            try:
                with record_function(stage):
                    return function(*args, **options)
            finally:
                elapsed = time.thread_time() - began
                self.seconds[stage] += elapsed - self._within.pop()
                if self._within:
                    self._within[-1] += elapsed

        return timed


@contextmanager
def replaced(changes: Sequence[Change]) -> Iterator[None]:
    """Within the block, attributes are what the functions make of them."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, change in changes:
        setattr(owner, name, change(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def annotate(annotator: Annotator, texts: Sequence[Any]) -> list[Annotation]:
    """The annotations of all texts, in batches as an actor gets them."""
    batches = [annotator.annotate(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    annotations = [annotation for batch in batches for annotation in batch]
    if failed := [annotation for annotation in annotations if annotation.status == "failed"]:
        raise SystemExit(f"{len(failed)} texts failed: {failed[0].reason}")
    return annotations


def make_rows(annotations: Sequence[Annotation]) -> Any:
    """The Arrow table that an actor writes."""
    import pyarrow as pa

    return pa.Table.from_pylist([each.to_row() for each in annotations], schema=ANNOTATION_SCHEMA)


def operators(annotate_all: Callable[[], Any]) -> dict[str, tuple[int, float]]:
    """By stage the number of torch operators that Python starts, and their CPU seconds."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        annotate_all()
    names = {stage for _, _, stage in STAGES} | {FORWARD, ROWS}
    by_stage: dict[str, tuple[int, float]] = {}
    for event in profiled.events():
        parent = event.cpu_parent
        stage = REST if parent is None else parent.name
        # Operators within operators are part of these.
        if event.name in names or not (stage in names or parent is None):
            continue
        count, seconds = by_stage.get(stage, (0, 0.0))
        by_stage[stage] = count + 1, seconds + event.cpu_time_total / 1e6
    return by_stage


def run(workload: Workload, repeats: int, launch_us: float) -> dict[str, Any]:
    """Record a real run, then time runs with the stand-in."""
    model, texts, recorder = workload.model, workload.texts, Recorder()
    annotator = OneThread(model, workload.tools, workload.method)
    with replaced(recorder.wrappers()):
        expected = annotate(annotator, texts)
    best: dict[str, float] = {}

    def once(watch: Stopwatch) -> list[Annotation]:
        recorder.replay()
        annotations = annotate(annotator, texts)
        watch.wrap(ROWS, make_rows)(annotations)
        return annotations

    with stand_in(model, annotator._prompts.values()), replaced(recorder.wrappers()):
        for _ in range(repeats):
            watch = Stopwatch()
            with replaced(watch.wrappers()), count_forwards(model) as forwards:
                began = time.process_time()
                annotations = once(watch)
                total = time.process_time() - began
            if annotations != expected:
                raise SystemExit("the run with the stand-in differs from the real one")
            if not best or total < sum(best.values()):
                best = watch.seconds | {REST: total - sum(watch.seconds.values())}
        watch = Stopwatch()
        with replaced(watch.wrappers()):
            by_stage = operators(functools.partial(once, watch))
    stages = {
        stage: _stage(best.get(stage, 0.0), by_stage.get(stage, (0, 0.0)), len(texts), launch_us)
        for stage in dict.fromkeys((*(stage for _, _, stage in STAGES), ROWS, REST, FORWARD))
    }
    return {"counts": counts(expected, len(forwards)), "stages": stages}


@contextmanager
def stand_in(model: LanguageModel, prompts: Iterable[PromptTemplate | None]) -> Iterator[None]:
    """Within the block, `model` computes nothing; its prompts are cached."""
    model._prompts.clear()
    try:
        with replaced([(model, "model", StandIn), (LanguageModel, "log_probability", _small_targets)]):
            for prompt in prompts:
                model.prompt(prompt)
            yield
    finally:
        model._prompts.clear()


def _small_targets(log_probability: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`log_probability` with targets in the vocabulary of the stand-in."""

    def small(model: LanguageModel, states: Tensor, targets: Tensor, phase: Any) -> Tensor:
        return log_probability(model, states, targets.clamp(max=0), phase)

    return small


def _stage(seconds: float, operators: tuple[int, float], texts: int, launch_us: float) -> dict[str, float]:
    number, within = operators
    host = max(0.0, seconds - within) + number * launch_us / 1e6
    return {
        "cpu_ms": 1e3 * seconds / texts,
        "operators": number / texts,
        "operators_ms": 1e3 * within / texts,
        "host_ms": 1e3 * host / texts,
    }


def counts(annotations: Sequence[Annotation], forwards: int) -> dict[str, float]:
    """What ran for a text on average."""
    funnels = [funnel for annotation in annotations for funnel in annotation.funnel]
    work = [part for annotation in annotations for part in annotation.work]
    texts = len(annotations)
    return {
        "texts": texts,
        "draws": sum(funnel.draws for funnel in funnels) / texts,
        "tokens drawn and run": sum(w.run.tokens for w in work if w.phase == "decode") / texts,
        "candidates": sum(funnel.candidates for funnel in funnels) / texts,
        "calls scored": sum(funnel.scored for funnel in funnels) / texts,
        "tokens scored": sum(w.run.tokens for w in work if w.phase in ("empty", "plus", "call")) / texts,
        "forwards": forwards / texts,
    }


def report(name: str, measured: dict[str, Any]) -> None:
    """The numbers of one workload as a table."""
    averages = ", ".join(f"{value:.4g} {what}" for what, value in measured["counts"].items())
    print(f"\n{name}, for each text: {averages}")
    print(f"{'':26}{'CPU ms':>9}{'operators':>11}{'their ms':>10}{'host ms':>9}")
    for stage, row in measured["stages"].items():
        print(
            f"{stage:26}{row['cpu_ms']:9.2f}{row['operators']:11.1f}{row['operators_ms']:10.2f}"
            f"{row['host_ms']:9.2f}"
        )
    print(
        f"without the forwards: {measured['cpu_ms']:.2f} ms of a core with all operators, "
        f"{measured['host_ms']:.2f} ms with operators that only start: at most "
        f"{1e3 / measured['host_ms']:.0f} texts/s an actor"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="The work of a CPU core for each text, without forwards.")
    add = parser.add_argument
    add("--model", default="demo", help="demo, gpt2-small, a folder or a hub name")
    add(
        "--workload",
        nargs="+",
        default=["Calculator:5x5", "Calculator:20x10", "WikiSearch:5x5", "QA:5x5"],
        metavar="TOOL:KxM",
    )
    add("--texts", type=int, default=64)
    add("--corpus", nargs="+", default=["demo/pages"])
    add("--prompts", type=Path, default=PROMPTS, help="folder of prompts; default: the demo's")
    add("--max-tokens", type=int, default=112, help="longest text; default: the demo recipe's")
    add("--tau-s", type=float, default=0.0, help="default 0: draws at k positions of every text")
    add("--max-batch-tokens", type=int)
    add("--repeats", type=int, default=3, help="timed runs; the fastest counts")
    add("--launch-us", type=float, default=5.0, help="microseconds to start an operator")
    args = parser.parse_args(argv)
    args.device, args.dtype = "cpu", "float32"
    return args


def main() -> None:
    """Command line."""
    args = parse()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # times are those of one thread
    runs = {}
    for name in args.workload:
        tool, _, size = name.partition(":")
        args.k, args.m = map(int, size.split("x"))
        runs[name] = measured = run(Workload.create(args.model, tool, args), args.repeats, args.launch_us)
        counted = [row for stage, row in measured["stages"].items() if stage != FORWARD]
        measured |= {key: sum(row[key] for row in counted) for key in ("cpu_ms", "host_ms")}
        report(name, measured)
    print(f"written: {results.write('host', vars(args), runs)}")


if __name__ == "__main__":
    main()
