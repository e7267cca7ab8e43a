"""The section of a report about an annotation (paper section 2). In: its folder, which may still grow."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.config import MergeConfig
from pipeline.report.html.data import AnnotationSection


def annotation_section(folder: Path, merge: MergeConfig | None = None) -> AnnotationSection:
    """Read the annotation in `folder`. Raises ManifestError if there is none."""
    raise ValueError("not yet")
