"""The commands `report` and `status`, and the report that other commands write at their end.

Out: one HTML file (pipeline/report/html), and lines on standard output. A folder is only read, but for its
report.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.analysis_config import ReportConfig, StatusConfig
from tools_service.base.errors import brief

if TYPE_CHECKING:
    from pipeline.report.run_parts import RunParts

logger = logging.getLogger(__name__)


def report(config: ReportConfig) -> None:
    """Write the report of a folder and print its path. Raises ConfigurationError before anything is read
    for an output that is not a report."""
    from pipeline.report.html.document import require_report, write_report
    from pipeline.report.html.sources import collect
    from pipeline.report.run_parts import report_path

    path = config.output or report_path(config.folder)
    require_report(path)
    content = collect(config.folder)
    write_report(content, path)
    for problem in content.problems:
        print(f"! {problem}")
    print(path)


def report_at_end(output: Path, *, wanted: bool, parts: RunParts | None = None) -> None:
    """Write the report of an output, or of the `parts` of a run in it, and print its path.

    A failure is one warning: the run has its result.
    """
    if not wanted:
        return
    try:
        from pipeline.report.html.document import write_report
        from pipeline.report.html.sources import collect, report_of
        from pipeline.report.run_parts import report_path

        path = report_path(output)
        write_report(collect(output) if parts is None else report_of(parts, output), path)
    except Exception as error:  # whatever it is: the run is done, and its result stands
        logger.warning("%s: no report was written: %s", output, brief(error))
        logger.debug("the report failed", exc_info=True)
        return
    print(f"report: {path}")


def status(config: StatusConfig, *, as_json: bool = False) -> None:
    """Print the status of a folder, every `watch` seconds if that is given, until everything is finished."""
    from pipeline.report.status import StatusReader
    from pipeline.report.status_lines import status_lines

    reader = StatusReader(config.folder)
    while True:
        found = reader.read()
        print(found.model_dump_json() if as_json else "\n".join(status_lines(found)), flush=True)
        if config.watch is None or all(part.state in ("finished", "stopped") for part in found.parts):
            return
        time.sleep(config.watch)
        if not as_json:
            print()
