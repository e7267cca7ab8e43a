"""Names of Ray actors, as the dashboard and `ray list actors` show them.

In: what the actors are, and the run that they belong to. Out: a name for each, as in "evaluator 3 of demo
(5f2c91)". No two starts of a run share names: those of a killed one stay in use for a moment. The actors of
Ray Data's pools are named by Ray Data, after the class that they run.
"""

from __future__ import annotations

import itertools
import uuid

_MAX_CHARACTERS = 40  # of a run's name


class ActorNames:
    """Counts the actors of one kind."""

    def __init__(self, kind: str, run: str) -> None:
        self._kind = kind
        self._run = f"{run[:_MAX_CHARACTERS]} ({uuid.uuid4().hex[:6]})"
        self._numbers = itertools.count(1)

    def __call__(self) -> dict[str, str]:
        """The name of the next actor, for `options`."""
        return {"name": f"{self._kind} {next(self._numbers)} of {self._run}"}
