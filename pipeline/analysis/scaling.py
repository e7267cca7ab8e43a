"""The scaling study: size of a model against accuracy with and without calls (paper section 4.4,
Figure 4). In: the results of `evaluate`. Out: a table; as CSV it is the series to plot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pipeline.analysis.paper_figures import paper_figures
from pipeline.analysis.result_table import Cell, ResultTable, Row
from pipeline.analysis.scores import interval_of
from pipeline.evaluation.results import Evaluation, ModelResult

logger = logging.getLogger(__name__)


def scaling_table(
    evaluation: Evaluation, *, intervals: bool = False, size_of: Callable[[str], int | None] | None = None
) -> ResultTable:
    """A row for each model, the smallest first, with its accuracy with and without calls.

    Labels that name one model share a row: the first with calls, and the first without (disabled, or
    k = 0). The paper shows these results in a figure only, so its numbers are not here.
    """
    pairs: dict[str, dict[bool, tuple[str, ModelResult]]] = {}
    for label, model in evaluation.models.items():
        first, _ = pairs.setdefault(model.model, {}).setdefault(_calls(model), (label, model))
        if first != label:
            logger.warning("%s is not in the table: it is the model of %s with other settings", label, first)
    sizes = {path: (size_of or parameters)(path) for path in pairs}
    benchmarks = list(
        dict.fromkeys(name for model in evaluation.models.values() for name in model.benchmarks)
    )
    rows = []
    for path in sorted(pairs, key=lambda path: (sizes[path] is None, sizes[path] or 0)):
        label = pairs[path].get(True, pairs[path].get(False, ("", None)))[0]
        cells = [Cell.number(sizes[path], 0)]
        cells += [
            _cell(pairs[path], name, calls, intervals) for name in benchmarks for calls in (True, False)
        ]
        rows.append(Row((label,), tuple(cells)))
    columns = [("", "Parameters")]
    titles = map(paper_figures().title, benchmarks)
    columns += [(title, calls) for title in titles for calls in ("with calls", "without")]
    title = "Size and percent right (Figure 4, section 4.4)"
    return ResultTable(title, ("Model",), tuple(columns), tuple(rows))


def parameters(model: str) -> int | None:
    """The number of parameters, from the model's configuration; no weights are read or downloaded.

    Tied matrices count once. None, with a warning, if the configuration is not on this machine.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.engine.errors import ModelError
    from pipeline.engine.loading import refused
    from tools_service.base.checkpoints import empty_model, load_config

    try:
        with refused(f"{model}: no causal LM"), torch.device("meta"):
            config = load_config(model, "models", ModelError)
            return int(empty_model(AutoModelForCausalLM, config).num_parameters())
    except ModelError as error:
        logger.debug("%s: %s", model, error)
        logger.warning("%s: no model's configuration here, so its parameters are not counted", model)
        return None


def _calls(model: ModelResult) -> bool:
    return not (model.disabled or model.k == 0)


def _cell(pair: Mapping[bool, tuple[str, ModelResult]], benchmark: str, calls: bool, intervals: bool) -> Cell:
    result = pair[calls][1].benchmarks.get(benchmark) if calls in pair else None
    if result is None:
        return Cell()
    return Cell.percent(result.accuracy, interval_of(result) if intervals else None)
