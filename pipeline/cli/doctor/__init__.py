"""The command `doctor`: is this machine fit for a run, and if not, what to do (docs/doctor.md).

Its modules need the standard library alone, so that it works where packages are missing.
"""

from __future__ import annotations
