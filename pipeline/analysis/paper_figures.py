"""What the paper reports (paper.toml): results by model, by k, and examples in C* by threshold."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from pydantic import Field

from tools_service.base.settings import Frozen

PERPLEXITY = "perplexity"
"""The name of the table in which lower is better."""
HELD_OUT = "held_out"
"""The column of the perplexity on the held-out texts (CCNet); the others are benchmarks."""


class TableFigures(Frozen):
    """One of the paper's tables 3 to 8. Columns are benchmarks, with their titles."""

    name: str
    source: str
    title: str
    columns: Mapping[str, str]
    base: Mapping[str, float] = Field(default_factory=dict)
    plain: Mapping[str, float] = Field(default_factory=dict)
    disabled: Mapping[str, float] = Field(default_factory=dict)
    toolformer: Mapping[str, float] = Field(default_factory=dict)

    def of(self, row: str) -> Mapping[str, float]:
        """The figures of one model, by benchmark."""
        figures: Mapping[str, float] = getattr(self, row)
        return figures


class SettingFigures(Frozen):
    """Toolformer with one k: percent right of all inputs, of those with and without a call; the share
    of inputs with a call."""

    k: int
    all: float
    with_call: float | None = None
    without_call: float | None = None
    calls: float


class DecodingFigures(Frozen):
    """Table 9 for one benchmark."""

    benchmark: str
    title: str
    settings: tuple[SettingFigures, ...]


class ExampleFigures(Frozen):
    """Table 2 at one threshold: examples by tool."""

    tau_f: float
    tools: Mapping[str, int]


class PaperFigures(Frozen):
    """The content of paper.toml."""

    rows: Mapping[str, str]
    table: tuple[TableFigures, ...]
    decoding: tuple[DecodingFigures, ...]
    examples: tuple[ExampleFigures, ...]

    def title(self, benchmark: str) -> str:
        """The paper's name of a benchmark; the benchmark's own if the paper does not have it."""
        titles = {name: title for table in self.table for name, title in table.columns.items()}
        return titles.get(benchmark, benchmark)


@cache
def paper_figures() -> PaperFigures:
    """Read paper.toml."""
    text = files("pipeline.analysis").joinpath("paper.toml").read_text(encoding="utf-8")
    return PaperFigures.model_validate(tomllib.loads(text))
