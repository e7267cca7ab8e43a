"""Compare plans of the demo with a finished run of the whole demo.

    python -m bench.plan [--texts 512] [--real runs/demo/annotations]

Annotates the first texts of the demo's corpus, plans the whole from that partial run, and again from the
built-in assumptions at the partial run's speed. The whole run is `--real`, a finished folder of the recipe
`demo`, or is made here. Times are comparable only if both runs had the same machine to themselves. Out: the
ratios planned / real, the assumptions measured in the whole run (for pipeline/planning/assumptions.py), and
runs/bench/plan.json. Exit code 1 if a plan misses a bar.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from bench import results
from pipeline.annotation.run import annotate
from pipeline.base.config import AnnotateConfig, PlanConfig
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import demo
from pipeline.planning.estimate import plan
from pipeline.planning.from_run import assumptions_from_run
from pipeline.storage.manifest import AnnotationManifest, read_manifest

FOLDER = results.FOLDER / "plan"
MAX_TOKENS_ERROR, MAX_TIME_ERROR = 0.25, 0.35  # the bars, relative to the whole run


def run(texts: int | None, output: Path) -> AnnotationManifest:
    """Annotate the demo's first texts, or all of them."""
    config: AnnotateConfig = demo().annotate
    corpus = config.corpus.model_copy(update={"max_texts": texts})
    return annotate(config.model_copy(update={"corpus": corpus, "output": output}))


def compare(config: PlanConfig, real: AnnotationManifest) -> dict[str, float]:
    """Planned / real."""
    assert real.counts is not None
    assert real.compute is not None
    estimate, wall_s = plan(config), sum(session.wall_s or 0 for session in real.sessions)
    ratios = {
        "texts": estimate.texts / real.counts.texts,
        "token_forwards": estimate.token_forwards / real.counts.token_forwards,
        "flops": estimate.flops / real.compute.flops,
    }
    if estimate.time is not None:
        ratios["time"] = 3_600 * estimate.time.hours / wall_s
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(description="Compare plans of the demo with a run of it.")
    parser.add_argument("--texts", type=int, default=512, help="texts of the partial run")
    parser.add_argument("--real", type=Path, help="finished annotations of the whole demo")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    partial, whole = FOLDER / "part", arguments.real or FOLDER / "whole"
    run(arguments.texts, partial)
    real = read_manifest(whole) if arguments.real else run(None, whole)
    config = COMMANDS["plan"].config(demo())
    assert isinstance(config, PlanConfig)
    throughput = assumptions_from_run(partial).throughput
    assert throughput is not None, "too few batches to measure a speed: give more --texts"
    comparisons: dict[str, Any] = {
        f"like {arguments.texts} texts": compare(config.model_copy(update={"like": partial}), real),
        "built in": compare(config.model_copy(update={"flops_per_s": throughput}), real),
    }
    missed = False
    for name, ratios in comparisons.items():
        tokens_error, time_error = abs(ratios["token_forwards"] - 1), abs(ratios["time"] - 1)
        misses = tokens_error > MAX_TOKENS_ERROR or time_error > MAX_TIME_ERROR
        missed |= misses
        print(f"{name}: {ratios}{'  (misses a bar)' * misses}")
    assumptions = assumptions_from_run(whole)
    print(assumptions.model_dump_json(indent=1))
    summary = {"planned_per_real": comparisons, "assumptions": assumptions.model_dump(mode="json")}
    print(results.write("plan", vars(arguments), summary))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
