"""The table of commands: function, type of arguments, part of a recipe, short forms and examples.

The functions are in handlers.py, the types in arguments.py; main.py parses a command line with this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.analysis_config import ReportConfig, StatusConfig, TableConfig, ThresholdsConfig
from pipeline.base.config import (
    AnnotateConfig,
    ExportConfig,
    MergeConfig,
    PlanConfig,
    ScoreConfig,
    TryConfig,
)
from pipeline.base.fetch_config import FetchConfig
from pipeline.base.finetune_config import MergeLoraConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import EvaluateConfig
from pipeline.base.serve_config import ServeConfig
from pipeline.cli import handlers
from pipeline.cli.arguments import (
    Arguments,
    DemoArguments,
    EvaluateArguments,
    ExportArguments,
    FetchArguments,
    FinetuneArguments,
    GenerateArguments,
    ReportArguments,
    ReportedArguments,
    ReportedToolsArguments,
    ScalingArguments,
    ScoreArguments,
    StatusArguments,
    SweepArguments,
    TableArguments,
    ToolsArguments,
    TryArguments,
)
from pipeline.cli.recipes import Recipe
from tools_service.base.settings import Frozen


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: function with its summary as docstring, type of arguments, part of a recipe, help texts."""

    run: Callable[[Any], None]
    arguments: type[Arguments[Any]]
    config: Callable[[Recipe], Frozen]
    short: dict[str, str] = field(default_factory=dict)
    main: str
    """The options that people need, as they are typed: what --help shows."""
    examples: tuple[str, ...]


def _evaluation_beside(recipe: Recipe, name: str) -> EvaluateConfig:
    """The recipe's evaluation with another output in the same folder."""
    return recipe.evaluate.model_copy(update={"output": recipe.evaluate.output.with_name(name)})


_MODEL = {"--model": "--model.path"}
_CORPUS = {"--corpus": "--corpus.paths", "--slice": "--corpus.slice"}
_SHORT = {**_CORPUS, **_MODEL, "--tools": "--method.tools"}

COMMANDS: dict[str, Command] = {
    "fetch": Command(
        run=handlers.fetch,
        arguments=FetchArguments,
        config=lambda recipe: FetchConfig(
            model=recipe.annotate.model,
            tools=recipe.annotate.tools,
            for_tools=recipe.annotate.method.tools,
            actors=recipe.annotate.ray.actors,
        ),
        short={"--model": "--models", "--tools": "--for-tools"},
        main="NAMES --model --revision --tools --tools-file --output",
        examples=(
            "--recipe paper --dry-run",
            "--recipe paper --tools-file cluster/tools.toml",
            "--model EleutherAI/gpt-j-6b --revision float16 --output /shared/models",
            "--model /models/my-gpt-j",
        ),
    ),
    "plan": Command(
        run=handlers.plan,
        arguments=ToolsArguments[PlanConfig],
        config=lambda recipe: PlanConfig(
            **dict(recipe.annotate) | {"output": recipe.annotate.output.parent / "plan.json"}
        ),
        short=_SHORT,
        main=(
            "--corpus --model --tools --tools-file --hardware --flops-per-s --price-per-hour "
            "--deadline-hours --like --sample --output"
        ),
        examples=(
            "--recipe demo --like runs/demo/annotations",
            "--recipe paper --corpus s3://b/ccnet --hardware A100 --price-per-hour 2.5 --deadline-hours 48",
        ),
    ),
    "annotate": Command(
        run=handlers.annotate,
        arguments=ReportedToolsArguments[AnnotateConfig],
        config=lambda recipe: recipe.annotate,
        short=_SHORT,
        main=(
            "--corpus --model --tools --tools-file --corpus.max-tokens --corpus.max-texts "
            "--method.TOOL.tau-f --method.TOOL.k --method.TOOL.m --ray.actors --ray.max-actors "
            "--ray.gpus-per-actor --max-hours --max-gpu-hours --output"
        ),
        examples=(
            "--recipe demo",
            "--recipe single_gpu --corpus pages/ 'more/*.json.gz' --tools.wikisearch.source wiki/",
            "--recipe paper --corpus s3://bucket/ccnet --model /models/gpt-j --method.calculator.k 5",
            "--recipe paper --corpus /shared/corpus --slice 17/4096 --output /shared/runs/slices/17",
        ),
    ),
    "try": Command(
        run=handlers.try_tool,
        arguments=TryArguments,
        config=lambda recipe: TryConfig(
            corpus=recipe.annotate.corpus,
            model=recipe.annotate.model,
            method=recipe.annotate.method,
            tools=recipe.annotate.tools,
            threads=max(1, int(recipe.annotate.ray.cpus_per_actor)),
        ),
        short={**_CORPUS, **_MODEL, "--seed": "--method.seed"},
        main=(
            "--tool --text --corpus --texts --model --tools-file --tau-s --k --m --tau-f --all-draws --json"
        ),
        examples=(
            "--recipe demo --tool Calculator --texts 5",
            "--recipe demo --tool Calculator --text 'The farm had 48 hens and bought 67. Now it has 115.'",
            "--tool MT --tools-file demo/tools.toml --corpus mine.jsonl --model /models/gpt-j --tau-s 0.01",
        ),
    ),
    "merge": Command(
        run=handlers.merge,
        arguments=ReportedArguments[MergeConfig],
        config=lambda recipe: recipe.merge,
        main=(
            "--annotations --same-texts --tau-f --max-examples --cap-by --one-call-per-position "
            "--plain-share --missing-slices --seed --output"
        ),
        examples=(
            "--recipe demo",
            "--annotations runs/a runs/round-2/a --same-texts unite --output runs/round-2/augmented",
            "--annotations runs/a runs/b --output runs/augmented --tau-f Calculator 1.0",
            "--annotations 'runs/slices/*' --output runs/augmented",
        ),
    ),
    "export": Command(
        run=handlers.export,
        arguments=ExportArguments,
        config=lambda recipe: ExportConfig(
            data=recipe.merge.output, output=recipe.merge.output.parent / "export"
        ),
        main="FOLDER --format --file-type --mask-results --instruction --output --push-to-hub",
        examples=(
            "runs/augmented --format chat --output runs/chat",
            "--recipe demo --format text --mask-results",
            "runs/augmented --format sharegpt --file-type parquet --push-to-hub me/my-texts",
        ),
    ),
    "finetune": Command(
        run=handlers.finetune,
        arguments=FinetuneArguments,
        config=lambda recipe: recipe.finetune,
        short=_MODEL,
        main=(
            "--model --data --column --workers --max-steps --learning-rate --batch-size "
            "--micro-batch-size --sequence-length --zero-stage --output --force"
        ),
        examples=("--recipe demo", "--recipe demo --column plain --output runs/demo/model-plain"),
    ),
    "merge-lora": Command(
        run=handlers.merge_lora,
        arguments=Arguments[MergeLoraConfig],
        config=lambda recipe: MergeLoraConfig(
            adapter=recipe.finetune.output, output=recipe.finetune.output.with_name("merged")
        ),
        main="--adapter --dtype --output",
        examples=("--adapter runs/model --output runs/merged", "--adapter /adapters/mine --dtype bfloat16"),
    ),
    "score": Command(
        run=handlers.score,
        arguments=ScoreArguments,
        config=lambda recipe: ScoreConfig(
            model=recipe.annotate.model,
            ray=recipe.annotate.ray.pool,
            output=recipe.annotate.output.parent / "scores",
        ),
        short=_MODEL,
        main="FILES --model --place --tokens --per-token --ray.actors --ray.gpus-per-actor --output",
        examples=(
            "--recipe demo traces.jsonl",
            "traces.jsonl --model /models/gpt-j --place position --tokens None --per-token",
        ),
    ),
    "generate": Command(
        run=handlers.generate,
        arguments=GenerateArguments,
        config=lambda recipe: recipe.generate,
        short=_MODEL,
        main=(
            "PROMPTS --model --file --k --disabled --tools-off --max-new-tokens --max-calls --stop "
            "--temperature --trace --json"
        ),
        examples=(
            "--recipe demo",
            "--recipe demo 'A prompt to continue' --trace",
            "--model runs/model --file prompts.txt --json",
            "--recipe demo --tools-off QA MT --stop '\\n' 'One line with fewer tools'",
            "--recipe demo --disabled 'The same without calls'",
        ),
    ),
    "serve": Command(
        run=handlers.serve,
        arguments=ToolsArguments[ServeConfig],
        config=lambda recipe: ServeConfig(
            generation=recipe.generate,
            gpus_per_replica=recipe.annotate.ray.gpus_per_actor,
            cpus_per_replica=recipe.annotate.ray.cpus_per_actor,
        ),
        short={
            "--model": "--generation.model.path",
            "--host": "--http.host",
            "--port": "--http.port",
            "--k": "--generation.k",
            "--tools-off": "--generation.tools-off",
        },
        main=(
            "--model --host --port --replicas --gpus-per-replica --k --tools-off --chat-template "
            "--http.token-file --tools-file"
        ),
        examples=(
            "--recipe demo",
            "--recipe demo --model runs/demo/model --port 8001 --replicas 2",
            "--recipe paper --host 0.0.0.0 --http.token-file token --chat-template plain",
        ),
    ),
    "evaluate": Command(
        run=handlers.evaluate,
        arguments=EvaluateArguments,
        config=lambda recipe: recipe.evaluate,
        short={"--model": "--generation.model.path"},
        main=(
            "--model --label --models --benchmarks --perplexity --compare-with --generation.k "
            "--generation.disabled --generation.tools-off --tools-file --output"
        ),
        examples=(
            "--recipe demo --label toolformer",
            "--model runs/model --benchmarks questions/*.jsonl svamp=SVAMP.json",
            "--models base=/models/gpt-j on=runs/model off=runs/model,disabled --compare-with off",
        ),
    ),
    "harness": Command(
        run=handlers.harness,
        arguments=ToolsArguments[HarnessConfig],
        config=lambda recipe: HarnessConfig(
            generation=recipe.generate.model_copy(update={"max_new_tokens": 256}),
            output=recipe.evaluate.output.parent / "harness.json",
        ),
        short={"--model": "--generation.model.path"},
        main=(
            "--model --tasks --include-path --limit --num-fewshot --calls --generation.k --batch-size "
            "--output"
        ),
        examples=(
            "--recipe demo --tasks wikitext --no-calls",
            "--model runs/model --tasks gsm8k --limit 100",
            "--recipe demo --include-path my_tasks/ --tasks my_task",
        ),
    ),
    "sweep": Command(
        run=handlers.sweep,
        arguments=SweepArguments,
        config=lambda recipe: _evaluation_beside(recipe, "sweep.json"),
        short={"--model": "--generation.model.path"},
        main=(
            "--model --k --disabled --label --benchmarks --perplexity --generation.tools-off "
            "--tools-file --output"
        ),
        examples=(
            "--recipe demo --disabled",
            "--model runs/model --k 0 1 3 10 --benchmarks lama_trex=LAMA/ webquestions=test.json",
        ),
    ),
    "scaling": Command(
        run=handlers.scaling,
        arguments=ScalingArguments,
        config=lambda recipe: _evaluation_beside(recipe, "scaling.json"),
        main=(
            "--models --benchmarks --perplexity --generation.k --generation.tools-off --tools-file --output"
        ),
        examples=(
            "--models small=runs/small/model large=runs/large/model gpt2=openai-community/gpt2,disabled",
        ),
    ),
    "thresholds": Command(
        run=handlers.thresholds,
        arguments=Arguments[ThresholdsConfig],
        config=lambda recipe: ThresholdsConfig(annotations=(recipe.annotate.output,)),
        main="--annotations --tau-f --max-examples --one-call-per-position --missing-slices --format",
        examples=("--recipe demo", "--annotations 'runs/slices/*' --tau-f 0.5 1 1.5 2 --max-examples 25000"),
    ),
    "table": Command(
        run=handlers.table,
        arguments=TableArguments,
        config=lambda recipe: TableConfig(evaluations=(recipe.evaluate.output,)),
        main="FILES --layout --rows --intervals --paper --format",
        examples=(
            "runs/demo/evaluation.json --intervals",
            "runs/a.json runs/b.json --rows gptj base --layout lama qa --format latex",
            "runs/scaling.json --layout scaling --format csv",
        ),
    ),
    "report": Command(
        run=handlers.report,
        arguments=ReportArguments,
        config=lambda recipe: ReportConfig(folder=recipe.evaluate.output.parent),
        main="FOLDER --output",
        examples=("runs/demo", "runs/annotations --output annotations.html", "runs/evaluation.json"),
    ),
    "status": Command(
        run=handlers.status,
        arguments=StatusArguments,
        config=lambda recipe: StatusConfig(folder=recipe.evaluate.output.parent),
        main="FOLDER --watch --json",
        examples=("runs/demo", "runs/annotations --watch 30", "runs/model --json"),
    ),
    "demo": Command(
        run=handlers.demo,
        arguments=DemoArguments,
        config=lambda recipe: recipe,
        main=(
            "--rounds --force --report --annotate.method.TOOL.k --annotate.method.TOOL.m "
            "--annotate.ray.actors --finetune.max-steps --finetune.workers --evaluate.benchmarks"
        ),
        examples=("", "--rounds 2", "--force", "--annotate.method.calculator.k 5"),
    ),
}
