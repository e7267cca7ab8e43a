"""The commands `sweep`, `scaling`, `thresholds` and `table`: the paper's analyses.

Out: a table on standard output in a format that files can hold; `sweep` and `scaling` evaluate first,
and their results are files of `evaluate` that `table` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.base.analysis_config import TableConfig, ThresholdsConfig
from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.cli.evaluating import configs_of
from tools_service.base.errors import ConfigurationError, brief

if TYPE_CHECKING:
    from pipeline.analysis.result_table import ResultTable
    from pipeline.evaluation.results import Evaluation

_DISABLED = "disabled"


def sweep(config: EvaluateConfig, ks: Sequence[int], *, disabled: bool, label: str | None) -> None:
    """Evaluate one model with each k, and print the table of decoding."""
    from pipeline.analysis.decoding import decoding_tables

    _evaluate(sweep_configs(config, ks, disabled=disabled, label=label), decoding_tables)


def scaling(config: EvaluateConfig, models: Sequence[str]) -> None:
    """Evaluate each model with and without calls, and print the table of sizes."""
    from pipeline.analysis.scaling import scaling_table

    _evaluate(scaling_configs(config, models), lambda evaluation: [scaling_table(evaluation)])


def thresholds(config: ThresholdsConfig) -> None:
    """Print the table of examples by threshold."""
    from pipeline.analysis.thresholds import examples_by_threshold, thresholds_table

    _print([thresholds_table(examples_by_threshold(config), paper=config.paper)], config.format)


def table(config: TableConfig) -> None:
    """Print the tables of stored results."""
    from pipeline.analysis.decoding import decoding_tables
    from pipeline.analysis.evaluations import read_evaluations
    from pipeline.analysis.scaling import scaling_table
    from pipeline.analysis.scores import TABLES, score_tables

    evaluation = read_evaluations(config.evaluations)
    names = [name for name in config.layout if name in TABLES]
    tables = []
    if names or not config.layout:
        tables += score_tables(
            evaluation, names, rows=config.rows, intervals=config.intervals, paper=config.paper
        )
    if "decoding" in config.layout:
        tables += decoding_tables(evaluation, intervals=config.intervals, paper=config.paper)
    if "scaling" in config.layout:
        tables.append(scaling_table(evaluation, intervals=config.intervals))
    _print(tables, config.format)


def sweep_configs(
    config: EvaluateConfig, ks: Sequence[int], *, disabled: bool, label: str | None
) -> dict[str, EvaluateConfig]:
    """A configuration for each k, and one with calls disabled, by label: k0, k1, …, disabled; after
    `label` if there is one."""
    prefix = f"{label}-" if label else ""
    configs = {f"{prefix}k{k}": _with(config, k=k, disabled=False) for k in ks}
    if disabled:
        configs[prefix + _DISABLED] = _with(config, disabled=True)
    if not configs:
        raise ConfigurationError("k: give one or more, as in --k 0 1 3 10")
    return configs


def scaling_configs(config: EvaluateConfig, models: Sequence[str]) -> dict[str, EvaluateConfig]:
    """A configuration with and one without calls for each LABEL=PATH, by LABEL and LABEL-disabled; for
    LABEL=PATH,disabled one without calls, by LABEL. Other settings are those of evaluate."""
    if not models:
        raise ConfigurationError("--models: name one or more: --models small=runs/small large=runs/large")
    configs: dict[str, EvaluateConfig] = {}
    for label, found in configs_of(config, None, tuple(models)).items():
        added = {label: found}
        if not found.generation.disabled:
            added[f"{label}-{_DISABLED}"] = _with(found, disabled=True)
        if twice := configs.keys() & added.keys():
            raise ConfigurationError(f"--models {label}: there are two results with the label {min(twice)}")
        configs |= added
    return configs


def _with(config: EvaluateConfig, **values: object) -> EvaluateConfig:
    """The same evaluation with other settings of decoding. Raises ConfigurationError for a wrong one."""
    try:
        generation = GenerateConfig.model_validate(dict(config.generation) | values)
    except ValidationError as error:
        raise ConfigurationError(brief(error)) from error
    return config.model_copy(update={"generation": generation})


def _evaluate(
    configs: dict[str, EvaluateConfig], tables_of: Callable[[Evaluation], list[ResultTable]]
) -> None:
    """Evaluate, print the table of these labels, what each lost, and the output."""
    from pipeline.evaluation.results import Evaluation
    from pipeline.evaluation.run import evaluate
    from pipeline.report.losses import evaluation_losses

    models = evaluate(configs).models
    _print(tables_of(Evaluation(models={label: models[label] for label in configs})), "markdown")
    for label, config in configs.items():
        for sentence in evaluation_losses(models[label], config):
            print(f"! {label}: {sentence}")
    print(next(iter(configs.values())).output)


def _print(tables: Sequence[ResultTable], form: str) -> None:
    from pipeline.analysis.formats import FORMATS

    sys.stdout.write(FORMATS[form](tables))
