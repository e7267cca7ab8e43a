"""Examples in C* by tool and threshold (paper section 4.1, Table 2), from annotations; no model is needed.

Counted is what `merge` would keep with this tau_f for every tool, by the same functions.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from pipeline.analysis.paper_figures import paper_figures
from pipeline.analysis.result_table import Cell, ResultTable, Row
from pipeline.augmentation.annotated_rows import rows_of
from pipeline.augmentation.merge import annotated_thresholds, input_rule_of
from pipeline.augmentation.slices import expand, require_together
from pipeline.base.analysis_config import ThresholdsConfig
from pipeline.method.merging import choose
from pipeline.storage.manifest import AnnotationManifest, read_finished

Examples = dict[float, dict[str, int | None]]
"""Texts with a kept call, by threshold and tool; None where the annotations are not exact."""


def examples_by_threshold(config: ThresholdsConfig) -> Examples:
    """Count for each tau_f of `config`. Raises what `merge` raises for the annotations."""
    folders = expand(config.annotations)
    sources = {folder: read_finished(folder) for folder in folders}
    require_together(sources, config.missing_slices, config.same_texts)
    floors = {tool: max(values) for tool, values in annotated_thresholds(sources).items()}
    return {tau_f: _examples(config, sources, floors, tau_f) for tau_f in dict.fromkeys(config.tau_f)}


def _examples(
    config: ThresholdsConfig, sources: dict[Path, AnnotationManifest], floors: dict[str, float], tau_f: float
) -> dict[str, int | None]:
    limits = {tool: tau_f for tool, floor in floors.items() if tau_f >= floor}
    folders, per_position = tuple(sources), config.one_call_per_position
    counts: Counter[str] = Counter()
    with rows_of(folders, limits, config.same_texts) as rows:
        mixture = choose(
            rows.read(),
            limits,
            config.max_examples or sys.maxsize,
            config.seed,
            one_per_position=per_position,
            input_rule=input_rule_of(sources),
            cap_by=config.cap_by,
        )
        for row in rows.read():
            counts.update({call.tool for call in mixture.calls(row)})
    return {tool: counts[tool] if tool in limits else None for tool in floors}


def thresholds_table(examples: Examples, *, paper: bool = True) -> ResultTable:
    """A row for each threshold, a column for each tool; then the paper's rows for its tools."""
    tools = list(dict.fromkeys(tool for counts in examples.values() for tool in counts))
    rows = [
        Row((f"{tau_f:g}",), tuple(Cell.number(counts.get(tool), 0) for tool in tools))
        for tau_f, counts in examples.items()
    ]
    if paper:
        rows += [
            Row(
                (f"{figures.tau_f:g} (paper)",),
                tuple(Cell.number(figures.tools.get(tool), 0) for tool in tools),
                paper=True,
            )
            for figures in paper_figures().examples
        ]
    notes: tuple[str, ...] = ()
    if any(count is None for counts in examples.values() for count in counts.values()):
        notes = (
            "A dash: the threshold is below the tau_f of the annotations; annotate again with a lower one.",
        )
    title = "Texts in C* by tool and threshold (Table 2, section 4.1)"
    return ResultTable(title, ("tau_f",), tuple(("", tool) for tool in tools), tuple(rows), notes)
