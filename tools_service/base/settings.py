"""The base class of every configuration model, and the constrained numbers that they share.

It is apart from config.py because pipeline/base/config.py imports tools_service/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """Base of all configurations: immutable, no unknown fields, field docstrings as help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Old field names that files may still hold, each with its present name."""

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        """Read old names. Their values win: a file is laid over defaults with the present names."""
        if not isinstance(values, Mapping) or cls.RENAMED.keys().isdisjoint(values):
            return values
        current = {name: value for name, value in values.items() if name not in cls.RENAMED}
        renamed = {cls.RENAMED[name]: value for name, value in values.items() if name in cls.RENAMED}
        return current | renamed
