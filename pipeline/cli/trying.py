"""The command `try`: prints each text as soon as it is done, then the summary.

In: `TryConfig`. Out: text or JSON lines on standard output, progress on standard error. A command that is
interrupted prints the summary of what was done.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from pipeline.base.config import TryConfig
from pipeline.trying.run import TryRun, prepare
from tools_service.base.standard_streams import json_must_be_ascii

if TYPE_CHECKING:
    from pipeline.trying.trial import Trial

_MAX_WIDTH = 120  # of lines that people read
_INTERRUPTED = 130


def try_tool(config: TryConfig, *, all_draws: bool = False, as_json: bool = False) -> None:
    """Try a tool. Raises ConfigurationError before the first text, and exits with 130 if interrupted."""
    progress = Console(stderr=True)
    trials: list[Trial] = []
    interrupted = False
    try:
        with progress.status("starting") as status:
            run = prepare(config, status.update)
        if not as_json:
            _print_heading(run)
        started = time.monotonic()
        stream, total = run.trials(), len(run.scan.selected)
        for number in range(1, total + 1):
            with progress.status(f"text {number} of {total}"):
                trials.append(next(stream))
            _print_trial(run, number, trials[-1], all_draws=all_draws, as_json=as_json)
    except KeyboardInterrupt:
        progress.print("interrupted")
        interrupted = True
    if trials:
        _print_summary(run, trials, time.monotonic() - started, as_json=as_json)
    if interrupted:
        raise SystemExit(_INTERRUPTED)


def _print_heading(run: TryRun) -> None:
    from pipeline.trying.render import heading

    _print(heading(run))


def _print_trial(run: TryRun, number: int, trial: Trial, *, all_draws: bool, as_json: bool) -> None:
    from pipeline.trying.json_lines import trial_line
    from pipeline.trying.render import trial_view

    if as_json:
        _print_json(trial_line(trial, run.settings.tau_s))
    else:
        total = len(run.scan.selected)
        _print(trial_view(number, total, trial, run.tool, run.settings, all_draws=all_draws))


def _print_summary(run: TryRun, trials: list[Trial], seconds: float, *, as_json: bool) -> None:
    from pipeline.trying.json_lines import summary_line
    from pipeline.trying.render import summary_view
    from pipeline.trying.summary import Summary

    summary = Summary.of(trials, run.scan, run.settings)
    if as_json:
        _print_json(summary_line(summary, run.tool, seconds))
    else:
        _print(summary_view(summary, run.tool, seconds))


def _print(view: RenderableType) -> None:
    from pipeline.report.tables import console

    terminal = console()
    with terminal.capture() as captured:
        terminal.print(view, width=min(terminal.width, _MAX_WIDTH), highlight=False)
    # rich fills lines up with spaces, which a file or a paste would keep
    lines = captured.get().split("\n")
    terminal.file.write("\n".join(lines if terminal.is_terminal else map(str.rstrip, lines)))
    terminal.file.flush()


def _print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line, ensure_ascii=json_must_be_ascii()), flush=True)
