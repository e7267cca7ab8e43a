"""Typed configuration of the analyses: tables of results, examples by threshold, report and status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.base.config import CapBy, SameTexts
from tools_service.base.settings import FilePath, Frozen, Nats, PositiveInt, Seed, Text

Format = Literal["markdown", "latex", "csv"]
PaperRow = Literal["base", "plain", "disabled", "toolformer"]
Layout = Literal["lama", "math", "qa", "mlqa", "temporal", "perplexity", "other", "decoding", "scaling"]


class ThresholdsConfig(Frozen):
    """Examples in C* by tool and tau_f (section 4.1, Table 2)."""

    annotations: Annotated[tuple[FilePath, ...], Field(min_length=1)] = (Path("runs/annotations"),)
    """Folders that annotate wrote, or globs of them; for a sliced corpus, all slices."""
    missing_slices: bool = False
    """Count even if slices of a corpus are missing."""
    same_texts: SameTexts = "refuse"
    """A text that several annotations hold: refuse, or unite the calls of all of them, as in merge."""
    tau_f: Annotated[tuple[Nats, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    """Thresholds, each for all tools. Below the tau_f of the annotations a count is a dash."""
    max_examples: PositiveInt | None = None
    """Maximum texts per tool, as in merge. None: no maximum."""
    cap_by: CapBy = "random"
    """Which texts stay if a tool has more, as in merge: random or gain."""
    one_call_per_position: bool = False
    """If several tools help at one position, count one, as in merge."""
    seed: Seed = 0
    """Seed of merge's random choices."""
    paper: bool = True
    """Show the paper's figures too."""
    format: Format = "markdown"
    """Form of the table on standard output; LaTeX needs the package booktabs."""


class TableConfig(Frozen):
    """Results in the paper's layout (sections 4.2 to 4.4, 5)."""

    evaluations: Annotated[tuple[FilePath, ...], Field(min_length=1)] = (Path("runs/evaluation.json"),)
    """Files that evaluate, sweep or scaling wrote."""
    layout: tuple[Layout, ...] = ()
    """Tables to print. Without one: those of lama to other for which there is a result."""
    rows: dict[Text, PaperRow] | None = None
    """The paper's rows of labels that have other names than its rows: --rows gptj base mine toolformer."""
    intervals: bool = False
    """Show 95 % intervals."""
    paper: bool = True
    """Show the paper's figures too."""
    format: Format = "markdown"
    """Form of the tables on standard output; LaTeX needs the package booktabs."""


class ReportConfig(Frozen):
    """The HTML page on what a folder holds."""

    folder: FilePath = Path("runs")
    """A folder that annotate, merge or finetune wrote, a file of evaluate, or a folder with such."""
    output: FilePath | None = None
    """File for the page. None: report.html in the folder; X.html beside a file X.json of evaluate."""


class StatusConfig(Frozen):
    """How far a run is."""

    folder: FilePath = Path("runs")
    """As for report; the run may be going on."""
    watch: Annotated[float, Field(gt=0.0, le=86_400.0)] | None = None
    """Print again after so many seconds, until nothing runs any more."""
