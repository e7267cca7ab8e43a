"""The page of the reasons for everything that is not kept."""

from __future__ import annotations


def page() -> str:
    return "# Reasons\n"
