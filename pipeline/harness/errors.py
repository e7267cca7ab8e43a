"""The errors of this package."""

from __future__ import annotations

from tools_service.base.errors import ConfigurationError, ToolformerError


class HarnessError(ConfigurationError):
    """A task that cannot be run, or that asks for something the model cannot do; the message says which."""


class HarnessRunError(ToolformerError):
    """The harness or a task failed while it ran."""
