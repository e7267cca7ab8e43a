"""A sixth tool in the demo's world, from its declaration to held-out questions.

    python -m bench.own_tool [--folder runs/own-tool]

A shop's price list stands behind an MCP server over stdio (server.py). The steps are those of
docs/own_tool.md: a declaration in a tools file, a prompt drafted from three examples, then annotate,
merge, fine-tune and evaluate with the recipe `demo`, each as a command of its own. The pages have 900
roses with their prices, the questions 100 other roses (shop.py); it is checked that no page and no
example names one of those. The annotator is the demo's, which copies an input only into calls of a tool
whose name resembles one that it was trained on: hence `PriceWikiSearch`, and `given_name`.

Printed: the tool's funnel, and the accuracy on the questions of the base model, of the fine-tuned one
with calls disabled, and of the same with its tool. Exit code 1 unless the last is at least 50 % and
three times that with calls disabled. About eight minutes on two cores; a second run repeats nothing
that is finished.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench.own_tool import shop
from bench.results import write
from pipeline.storage.manifest import read_finished

LEAST_PERCENT, LEAST_RATIO = 50.0, 3.0
DEMO_MODEL = "demo/models/annotator"


def main() -> int:
    """Run every step; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/own-tool"))
    folder: Path = parser.parse_args().folder
    shop.write(folder)
    require_held_out(folder)
    tools_file = declare(folder)
    if not (folder / "prices.txt").exists():
        examples = ["--from", str(folder / "examples.txt"), "--output", str(folder / "prices.txt")]
        run("tools_service", "prompt", shop.TOOL, "--tools-file", str(tools_file), *examples)
    annotations, augmented, model = (str(folder / name) for name in ("annotations", "augmented", "model"))
    tools = ["--tools-file", str(tools_file)]
    corpus = ["--corpus", str(folder / "pages.jsonl"), "--tools", shop.TOOL]
    run("pipeline", "annotate", "--recipe", "demo", *tools, *corpus, "--output", annotations)
    run("pipeline", "merge", "--recipe", "demo", "--annotations", annotations, "--output", augmented)
    if not (folder / "model" / "manifest.json").exists():
        run("pipeline", "finetune", "--recipe", "demo", "--data", augmented, "--output", model)
    percent = {
        "base": evaluate(folder, "base", DEMO_MODEL),
        "disabled": evaluate(folder, "disabled", model, "--generation.disabled"),
        "with its tool": evaluate(folder, "tool", model),
    }
    counts = read_finished(Path(annotations)).counts
    assert counts is not None
    funnel = counts.tools[shop.TOOL]
    for name in ("texts", "positions", "draws", "candidates", "executed", "scored", "kept", "texts_kept"):
        print(f"{name:12} {getattr(funnel, name):>7,}")
    for name, value in percent.items():
        print(f"{name:14} {value:5.1f} % of {shop.ROSES_ASKED} questions right")
    print(write("own_tool", {"folder": str(folder)}, {"funnel": funnel.model_dump(), "percent": percent}))
    result = percent["with its tool"]
    reached = result >= LEAST_PERCENT and result >= LEAST_RATIO * percent["disabled"]
    verdict = "reached" if reached else "missed"
    print(f"the bar, {LEAST_PERCENT:.0f} % and {LEAST_RATIO:.0f} x disabled, is {verdict}")
    return 0 if reached else 1


def declare(folder: Path) -> Path:
    """Write the tools file: all that a tool takes beside its server and its prompt."""
    file = folder / "tools.toml"
    server, prices = Path(__file__).with_name("server.py"), (folder / "prices.json").resolve()
    command = json.dumps([sys.executable, str(server), str(prices)])
    file.write_text(
        f"""[tools.{shop.TOOL}]
mcp = {{ command = {command}, tool = "price_of" }}
description = "Add searches of a price list to the text."
prompt = "prices.txt"
tau_s = 0.0
tau_f = 0.5
given_name = true
""",
        encoding="utf-8",
    )
    return file


def require_held_out(folder: Path) -> None:
    """Check that nothing the model is trained or prompted with names a rose of the questions."""
    asked = list(json.loads((folder / "prices.json").read_text(encoding="utf-8")))[shop.ROSES_ON_PAGES :]
    for file in ("pages.jsonl", "examples.txt"):
        seen = (folder / file).read_text(encoding="utf-8")
        found = [name for name in asked if name in seen]
        assert not found, f"{file} names {found[0]}"


def evaluate(folder: Path, label: str, model: str, *options: str) -> float:
    """The percentage of the questions that `model` answers right."""
    output = folder / "evaluation.json"
    run(
        *("pipeline", "evaluate", "--recipe", "demo", "--label", label, "--output", str(output), *options),
        *("--generation.model.path", model, "--benchmarks", str(folder / "roses.jsonl"), "--perplexity"),
        *("--tools-file", str(folder / "tools.toml")),
    )
    benchmark = json.loads(output.read_text(encoding="utf-8"))["models"][label]["benchmarks"]["roses"]
    return 100.0 * float(benchmark["accuracy"])


def run(*command: str) -> None:
    """Run ``python -m`` with these arguments, and show them."""
    print("$ python -m", *command, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    sys.exit(main())
