"""LoRA against full fine-tuning in the demo's world: accuracy on held-out questions, and what is trained.

    python -m bench.lora [--full runs/demo/model] [--rank 14] [--learning-rate 0.003]

Both are trained with the recipe `demo` on the same C*, for the same steps of the same texts, and differ in
`lora` and the learning rate only; a model that is there already is not trained again. The accuracy is the
mean over the demo's questions that need a tool. Printed: accuracy by tool, the ratio of the means, the
share of the parameters that is trained. Exit code 1 unless LoRA reaches 90 % of the accuracy with less
than 10 % of the trained parameters. About five minutes on two cores, two if the demo has run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.results import write
from pipeline.evaluation.results import Evaluation
from pipeline.finetuning.checkpoints.run_folder import RunFolder

LEAST_RATIO, LARGEST_SHARE = 0.9, 0.1
_NO_TOOL = "plain"  # questions that need no tool: every model answers them


def main() -> int:
    """Train what is missing, evaluate, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("runs/demo/augmented"))
    parser.add_argument("--full", type=Path, default=Path("runs/demo/model"))
    parser.add_argument("--folder", type=Path, default=Path("runs/lora"))
    parser.add_argument("--rank", type=int, default=14)
    parser.add_argument("--alpha", type=float, default=28.0)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    arguments = parser.parse_args()
    adapter = arguments.folder / f"rank-{arguments.rank}-{arguments.alpha:g}-{arguments.learning_rate:g}"
    lora = ["--lora.rank", str(arguments.rank), "--lora.alpha", str(arguments.alpha)]
    train(arguments.data, arguments.full)
    train(arguments.data, adapter, *lora, "--learning-rate", str(arguments.learning_rate))
    file = arguments.folder / "evaluation.json"
    models = [f"full={arguments.full}", f"lora={adapter}"]
    run("evaluate", "--models", *models, "--output", str(file), "--no-report")
    by_tool = {label: accuracies(file, label) for label in ("full", "lora")}
    means = {label: sum(values.values()) / len(values) for label, values in by_tool.items()}
    counts = RunFolder(adapter).manifest().parameters
    assert counts is not None
    share, ratio = counts.trained / counts.total, means["lora"] / means["full"]
    for label, values in by_tool.items():
        shown = ", ".join(f"{name} {value:.0%}" for name, value in values.items())
        print(f"{label}: {means[label]:.1%} ({shown})")
    print(f"LoRA reaches {ratio:.1%} of full fine-tuning's accuracy")
    print(f"and trains {counts.trained:,} of {counts.total:,} parameters ({share:.1%})")
    measured = {"accuracy": by_tool, "ratio": ratio, "parameters": counts.model_dump(), "share": share}
    print(write("lora", vars(arguments), measured))
    return int(not (ratio >= LEAST_RATIO and share < LARGEST_SHARE))


def train(data: Path, output: Path, *options: str) -> None:
    """Fine-tune with the recipe `demo`, unless `output` is a finished run."""
    if not RunFolder(output).is_finished():
        run("finetune", "--data", str(data), "--output", str(output), "--no-report", *options)


def run(command: str, *options: str) -> None:
    """A command of the pipeline with the recipe `demo`. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "pipeline", command, "--recipe", "demo", *options], check=True)


def accuracies(file: Path, label: str) -> Mapping[str, float]:
    """Accuracy of a model by the tool that the questions need."""
    results = Evaluation.read(file).models[label].benchmarks
    return {name: result.accuracy for name, result in results.items() if name != _NO_TOOL}


if __name__ == "__main__":
    sys.exit(main())
