"""Our model in lm-evaluation-harness beside the harness's own Hugging Face model, on local tasks.

    python -m bench.harness [--model runs/demo/model] [--questions demo/questions] [--texts demo/held_out]

Perplexity (texts alone, and texts joined to several times the context), multiple choice with calls off:
both models must give the same numbers. Then the calculator's questions as a task of gsm8k's form, with calls
on and off. Needs lm_eval. Out: runs/bench/harness.json. The command fails if a metric differs by more than
1e-6, or a log-likelihood by more than 1e-5 of it (in float32).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bench import results
from bench.fixtures.harness_tasks import CHOICES, NUMBER, ROLLING, write_task
from bench.measuring import measured
from pipeline.base.config import CorpusConfig
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import RECIPES
from pipeline.corpus.files import list_files
from pipeline.corpus.texts import read_corpus

METRIC_TOLERANCE = 1e-6
LOGPROB_TOLERANCE = 1e-5  # of the value; a single token's logits are rounded at 1e-6
TEXTS, JOINED = 200, 40
LIKELIHOODS = ("texts", "joined", "choices")


def write_tasks(folder: Path, corpus: str, questions: Path) -> None:
    """The four tasks, from held-out texts and the calculator's questions."""
    config = CorpusConfig(paths=(corpus,))
    found = read_corpus(list_files(config), config, lambda text: len(text) // 4)
    texts = [text.text for text in islice((text for text in found if not text.skipped), TEXTS)]
    joined = ["\n".join(texts[start : start + JOINED]) for start in range(0, len(texts), JOINED)]
    rows = [json.loads(line) for line in (questions / "calculator.jsonl").read_text().splitlines()]
    write_task(folder, "texts", ROLLING, [{"text": text} for text in texts])
    write_task(folder, "joined", ROLLING, [{"text": text} for text in joined])
    write_task(folder, "choices", CHOICES, list(_choices(rows)))
    write_task(folder, "calculator", NUMBER, rows)


def _choices(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each question with its answer and three others, without and with a space at its end, and without
    a prompt."""
    rng = random.Random(0)
    for row in rows:
        wrong = rng.sample(sorted({other["answers"][0] for other in rows} - {row["answers"][0]}), 3)
        choices = rng.sample([row["answers"][0], *wrong], 4)
        for prompt in (row["prompt"], row["prompt"] + "  ", ""):
            yield {"prompt": prompt, "choices": choices, "answer": row["answers"][0]}


def metrics_of(evaluated: Any, task: str) -> dict[str, float]:
    """The metrics of a task, by name."""
    return {
        metric.partition(",")[0]: value
        for metric, value in evaluated["results"][task].items()
        if isinstance(value, float) and "stderr" not in metric
    }


def logprobs_of(evaluated: Any, task: str) -> list[float]:
    """The log-likelihoods (nats) of all requests of a task."""
    responses = [response for sample in evaluated["samples"][task] for [response] in sample["resps"]]
    return [float(one[0] if isinstance(one, tuple | list) else one) for one in responses]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--questions", type=Path, default=Path("demo/questions"))
    parser.add_argument("--texts", default="demo/held_out")
    args = parser.parse_args()

    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pipeline.harness import ToolformerLM

    recipe: Any = COMMANDS["harness"].config(RECIPES["demo"]())
    model = recipe.generation.model.model_copy(
        update={"path": args.model, "dtype": "float32", "device": "cpu"}
    )
    on = recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"model": model})})
    ours = ToolformerLM(on.model_copy(update={"calls": False}))
    theirs = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=8)
    report: dict[str, Any] = {}
    same = True
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), args.texts, args.questions)
        manager = TaskManager(include_path=folder, include_defaults=False)

        def evaluate(lm: Any, *tasks: str) -> Any:
            with measured(ours.engine.device) as timing:
                evaluated = lm_eval.simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager)
            return evaluated, timing

        for task in LIKELIHOODS:
            (mine, seconds), (other, their_seconds) = evaluate(ours, task), evaluate(theirs, task)
            metrics, their_metrics = metrics_of(mine, task), metrics_of(other, task)
            of_metrics = max(abs(metrics[name] - value) for name, value in their_metrics.items())
            pairs = list(zip(logprobs_of(mine, task), logprobs_of(other, task), strict=True))
            of_logprobs = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)
            report[task] = {"metrics": metrics, "hf_metrics": their_metrics, "requests": len(pairs)}
            report[task] |= {"difference_of_metrics": of_metrics, "difference_of_logprobs": of_logprobs}
            report[task] |= {"cpu_s": seconds["cpu_s"], "hf_cpu_s": their_seconds["cpu_s"]}
            same &= of_metrics <= METRIC_TOLERANCE and of_logprobs <= LOGPROB_TOLERANCE
            print(
                f"{task}: metrics differ by at most {of_metrics:.1e}, {len(pairs)} log-likelihoods by "
                f"{of_logprobs:.1e} of their value; "
                f"{seconds['cpu_s']:.1f} CPU-seconds, hf {their_seconds['cpu_s']:.1f}"
            )
            for name, value in metrics.items():
                print(f"  {name:<16} {value:.9f}  hf {their_metrics[name]:.9f}")
        for label, lm in (("calls on", ToolformerLM(on, ours.engine)), ("calls off", ours)):
            evaluated, _ = evaluate(lm, "calculator")
            accuracy = metrics_of(evaluated, "calculator")["exact_match"]
            counts = evaluated["config"]["toolformer"]["calls_by_tool"]
            report[f"calculator, {label}"] = {"exact_match": accuracy, "calls_by_tool": counts}
            print(f"calculator, {label}: exact_match {accuracy:.2f}, calls {counts}")
    print(results.write("harness", vars(args), report))
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
