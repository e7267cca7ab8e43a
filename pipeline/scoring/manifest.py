"""manifest.json of a folder of scores: what was asked, of which files, and what came out.

In: a configuration and the input files, later the files of scores. Out: the manifest to start or resume a
run with, or ScoreRefusedError with the fields that differ; and its counts at the end.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base.config import ScoreConfig, changed_fields
from pipeline.corpus.files import CorpusFile
from pipeline.storage.card import Card
from pipeline.storage.manifest import MANIFEST, CorpusState
from pipeline.storage.provenance import versions
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import now, read_model
from tools_service.base.settings import Frozen

_OPERATIONAL: dict[str, Any] = {
    "ray": True,
    "output": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
}
"""Fields that the scores do not depend on: a resumed run may change them."""


class ScoreError(ToolformerError):
    """The run stopped. The scores written so far stay, and the same command resumes it."""


class ScoreRefusedError(ScoreError, ConfigurationError):
    """The files, the output or the model cannot be used."""


class ScoreManifest(Frozen):
    """manifest.json. `lines` is 0 until the run is finished."""

    state: Literal["unfinished", "finished"]
    config: ScoreConfig
    versions: dict[str, str]
    files: CorpusState
    started: str
    finished: str | None = None
    parts: int = 0
    lines: int = 0
    scored: int = 0
    reasons: dict[str, int] = {}  # noqa: RUF012
    """Lines without a score, by reason."""
    median_gain: float | None = None
    positive: int = 0
    """Lines with a gain above 0: the insertion makes what follows more likely."""

    def written(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=1) + "\n"


def begin(config: ScoreConfig, files: Sequence[CorpusFile]) -> ScoreManifest:
    """The manifest to start or resume with. ScoreRefusedError, with the fields, if it is of another run."""
    state = CorpusState.of(files)
    path = config.output / MANIFEST
    if not path.exists():
        return ScoreManifest(
            state="unfinished", config=config, versions=versions(), files=state, started=now()
        )
    try:
        earlier = read_model(path, ScoreManifest)
    except (OSError, ValueError) as error:
        raise ScoreRefusedError(f"{path}: not a manifest of score: {brief(error)}") from error
    changes = changed_fields(earlier.config, config, ignore=_OPERATIONAL)
    if not changes and earlier.files != state:
        changes = [f"the input files: {earlier.files.files} → {state.files} files, or their sizes"]
    if changes:
        raise ScoreRefusedError(
            f"{config.output} holds scores of another configuration; choose another output, or remove the "
            f"folder to start over. Different: {'; '.join(changes)}"
        )
    return earlier.model_copy(update={"config": config, "versions": versions()})


def completed(manifest: ScoreManifest, folder: Path, field: str) -> ScoreManifest:
    """The manifest with the counts over all files of scores."""
    reasons: Counter[str] = Counter()
    gains: list[float] = []
    paths = sorted(folder.glob("*.jsonl"))
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                result = json.loads(line)[field]
                if "reason" in result:
                    reasons[result["reason"]] += 1
                else:
                    gains.append(result["gain"])
    return manifest.model_copy(
        update={
            "state": "finished",
            "finished": now(),
            "parts": len(paths),
            "lines": len(gains) + reasons.total(),
            "scored": len(gains),
            "reasons": dict(reasons.most_common()),
            "median_gain": round(statistics.median(gains), 4) if gains else None,
            "positive": sum(gain > 0 for gain in gains),
        }
    )


def score_card(manifest: ScoreManifest) -> Card:
    """The card of a finished run of score."""
    config = manifest.config
    return Card(
        title="Insertions with their scores",
        facts={
            "model": config.model.path,
            "place": config.place,
            "tokens": config.tokens,
            "weights": config.weights,
            "lines": manifest.lines,
            "scored": manifest.scored,
            "with a gain": manifest.positive,
        },
        tools={},
        versions=manifest.versions,
        created=manifest.finished or "",
        data_files="scores/*.jsonl",
    )
