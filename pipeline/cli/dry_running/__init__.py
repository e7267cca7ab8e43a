"""`--dry-run`: what a command would read, run and write, and what is missing. Nothing runs."""

from __future__ import annotations
