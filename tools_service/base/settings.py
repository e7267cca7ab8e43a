"""The base of every configuration model, and the constrained numbers that they share.

Apart from config.py so that tools_service/config.py can use them: pipeline/config.py imports that one.
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
    """Base of all configurations: immutable, no unknown fields, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Old field names that files may still hold, and the names they have now."""

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or cls.RENAMED.keys().isdisjoint(values):
            return values
        current = {name: value for name, value in values.items() if name not in cls.RENAMED}
        renamed = {cls.RENAMED[name]: value for name, value in values.items() if name in cls.RENAMED}
        return current | renamed
