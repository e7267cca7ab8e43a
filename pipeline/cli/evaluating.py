"""The command `evaluate`: one model, or several in one command, and the results in a table.

In: `EvaluateArguments`. Out: the files of the evaluation; on standard output the table, and what was lost.

    --models base=demo/models/annotator toolformer=runs/demo/model disabled=runs/demo/model,disabled
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.base.inference_config import EvaluateConfig
from pipeline.cli.reporting import report_at_end
from tools_service.base.errors import ConfigurationError, brief

M = TypeVar("M", bound=BaseModel)

_OF_GENERATION = (
    *("k", "disabled", "max_calls", "max_failed_calls", "chained_calls", "max_new_tokens"),
    *("temperature", "top_p", "seed", "date"),
)
_OF_EVALUATION = ("plain_perplexity", "disabled_perplexity", "first_line", "batch_size")
_SETTINGS = tuple(name.replace("_", "-") for name in (*_OF_GENERATION, *_OF_EVALUATION))


class ModelsError(ConfigurationError):
    """An entry of --models that cannot be used."""


def evaluate_models(configs: dict[str, EvaluateConfig], *, with_report: bool) -> None:
    """Evaluate, print the table, and say what was lost; one sentence for what several models lost alike."""
    from pipeline.evaluation.run import evaluate
    from pipeline.report.losses import evaluation_losses
    from pipeline.report.tables import console, result_table

    evaluation = evaluate(configs)
    console().print(result_table(evaluation))
    labels_of: dict[str, list[str]] = {}
    for label, config in configs.items():
        for sentence in evaluation_losses(evaluation.models[label], config):
            labels_of.setdefault(sentence, []).append(label)
    for sentence, labels in labels_of.items():
        print(f"! {sentence}" if len(labels) == len(configs) else f"! {', '.join(labels)}: {sentence}")
    output = next(iter(configs.values())).output
    report_at_end(output, wanted=with_report)
    print(output)


def configs_of(
    config: EvaluateConfig, label: str | None, models: tuple[str, ...]
) -> dict[str, EvaluateConfig]:
    """The configuration of each label: `config` itself, or one for each LABEL=PATH[,SETTING…] of `models`.

    Raises ModelsError, which names the entry.
    """
    if not models:
        return {label or "model": config}
    if label is not None:
        raise ModelsError(f"give --models or --label {label}, not both: an entry of --models has its label")
    configs: dict[str, EvaluateConfig] = {}
    for entry in models:
        name, equals, value = entry.partition("=")
        path, *settings = [value] if Path(value).exists() else value.split(",")
        if not name or not equals or not path:
            raise ModelsError(f"--models {entry}: use LABEL=PATH, or LABEL=PATH,disabled")
        if name in configs:
            raise ModelsError(f"--models {entry}: the label {name} is given twice")
        configs[name] = _with_settings(config, path, settings, entry)
    return configs


def with_model(config: EvaluateConfig, path: str) -> EvaluateConfig:
    """The same evaluation of another model."""
    model = config.generation.model.model_copy(update={"path": path})
    generation = config.generation.model_copy(update={"model": model})
    return config.model_copy(update={"generation": generation})


def _with_settings(config: EvaluateConfig, path: str, settings: list[str], entry: str) -> EvaluateConfig:
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if name not in (*_OF_GENERATION, *_OF_EVALUATION):
            raise ModelsError(
                f"--models {entry}: no setting {setting!r}; after the path can stand {', '.join(_SETTINGS)}"
            )
        values[name] = value if equals else "true"
    config = with_model(config, path)
    try:
        generation = _replaced(config.generation, {n: v for n, v in values.items() if n in _OF_GENERATION})
        evaluation = _replaced(config, {n: v for n, v in values.items() if n in _OF_EVALUATION})
    except ValidationError as error:
        raise ModelsError(f"--models {entry}: {brief(error)}") from error
    return evaluation.model_copy(update={"generation": generation})


def _replaced(model: M, values: dict[str, str]) -> M:
    """`model` with values as they are written on a command line."""
    return type(model).model_validate(dict(model) | values)
