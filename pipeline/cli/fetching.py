"""The command `fetch`: prints what each model takes, then what goes on, then where each model is.

In: a FetchConfig. Out: the table and the folders on standard output, progress on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.base.fetch_config import FetchConfig
from pipeline.fetching.plan import PlannedModel, disk_bytes, free_bytes, gigabytes, plan_fetch
from pipeline.fetching.run import fetch
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.staged_models import staging_root

_HEADINGS = ("model", "for", "source", "download", "on disk", "memory a copy", "copies")


def fetch_models(config: FetchConfig) -> None:
    """Stage the models, and say what to do next."""
    planned = fetch(config, lambda models: print(table(models)), lambda line: print(line, file=sys.stderr))
    of_hub = any(may_be_hub_name(model.wanted.name) for model in planned)
    if of_hub and config.output is None:
        print(f"commands with this HF_HOME read models of the hub from {staging_root()}, without a network")
    for model in planned:
        print(f"{model.wanted.name}: {model.folder}")


def print_plan(config: FetchConfig) -> None:
    """Print what there is to do, and do nothing."""
    print(table(plan_fetch(config)))


def table(planned: Sequence[PlannedModel]) -> str:
    """A line for each model, and the sums."""
    rows = [_HEADINGS, *map(_row, planned)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    missing = [model for model in planned if model.files]
    if not missing:
        return "\n".join([*lines, "nothing to stage"])
    download = gigabytes(sum(model.download_bytes for model in missing))
    root, free = missing[0].folder.parent, gigabytes(free_bytes(missing))
    on_disk = f"at most {gigabytes(disk_bytes(missing))} on the disk, {free} are free in {root}"
    return "\n".join([*lines, f"to download {download}; {on_disk}"])


def _row(model: PlannedModel) -> tuple[str, ...]:
    wanted, files = model.wanted, model.files
    memory = f"{gigabytes(model.size.memory_bytes(wanted.dtype))} {wanted.dtype}"
    return (
        wanted.name,
        wanted.field,
        _source(model),
        gigabytes(model.download_bytes) if files and model.revision else "-",
        gigabytes(files.bytes) if files else "-",
        memory,
        wanted.copies or "-",
    )


def _source(model: PlannedModel) -> str:
    if model.manifest is not None:
        return f"staged, {model.manifest.commit[:12]}" if model.manifest.commit else "staged"
    if model.files is None:
        return "as it is"
    where = f"hub, {model.revision.commit[:12]}" if model.revision else "folder"
    return f"{where}, {'pickled: is converted' if model.files.pickled else 'safetensors'}"
