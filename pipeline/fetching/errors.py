"""The error of this package."""

from __future__ import annotations

from tools_service.base.errors import ConfigurationError


class FetchError(ConfigurationError):
    """A model cannot be staged. The message names the model, the reason, and what to do."""
