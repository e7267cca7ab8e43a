"""Plans held against what happened: the demo's whole run, foreseen from a part of it.

    python -m bench.plan [--texts 512] [--real runs/demo/annotations]

Annotates the first texts of the demo's corpus, plans the whole like that part, and again with the built-in
assumptions at that part's speed, and compares both with the whole run: `--real`, a finished folder of the
recipe `demo`, or one made here. Times mean something only if both ran on one idle machine. Out: the
ratios foreseen / real, the assumptions of the whole run (for pipeline/forecast/assumptions.py), and
runs/bench/plan.json; exit code 1 if a plan is off by more than it may be.
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
from pipeline.planning.from_run import experience
from pipeline.storage.manifest import AnnotationManifest, read_manifest

FOLDER = results.FOLDER / "plan"
MOST_TOKENS, MOST_TIME = 0.25, 0.35  # that a plan may be off


def run(texts: int | None, output: Path) -> AnnotationManifest:
    """The demo's annotations, of its first texts or of all."""
    config: AnnotateConfig = demo().annotate
    corpus = config.corpus.model_copy(update={"max_texts": texts})
    return annotate(config.model_copy(update={"corpus": corpus, "output": output}))


def compare(config: PlanConfig, real: AnnotationManifest) -> dict[str, float]:
    """Foreseen / real."""
    assert real.counts is not None
    assert real.compute is not None
    made, wall_s = plan(config), sum(session.wall_s or 0 for session in real.sessions)
    ratios = {
        "texts": made.texts / real.counts.texts,
        "token_forwards": made.token_forwards / real.counts.token_forwards,
        "flops": made.flops / real.compute.flops,
    }
    if made.time is not None:
        ratios["time"] = 3_600 * made.time.hours / wall_s
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(description="Hold plans of the demo against a run of it.")
    parser.add_argument("--texts", type=int, default=512, help="of the part that is planned from")
    parser.add_argument("--real", type=Path, help="finished annotations of the whole demo")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    part = FOLDER / "part"
    run(arguments.texts, part)
    real = read_manifest(arguments.real) if arguments.real else run(None, FOLDER / "whole")
    config = COMMANDS["plan"].config(demo())
    assert isinstance(config, PlanConfig)
    seen = experience(part)
    assert seen.pace is not None, "too few batches to see a speed: give more --texts"
    found: dict[str, Any] = {
        f"like {arguments.texts} texts": compare(config.model_copy(update={"like": part}), real),
        "built in": compare(config.model_copy(update={"flops_per_s": seen.pace.flops_per_s}), real),
    }
    off = []
    for name, ratios in found.items():
        if abs(ratios["token_forwards"] - 1) > MOST_TOKENS or abs(ratios["time"] - 1) > MOST_TIME:
            off.append(name)
        print(f"{name}: {ratios}{'  (off by more than it may be)' * (name in off)}")
    whole = experience(arguments.real or FOLDER / "whole")
    print(whole.model_dump_json(indent=1))
    summary = {"foreseen_per_real": found, "assumptions": whole.model_dump(mode="json")}
    print(results.write("plan", vars(arguments), summary))
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
