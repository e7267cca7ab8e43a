"""The base class of every configuration model, and the constrained types that their fields share.

Every number of a configuration has a lower and an upper bound (which also refuses nan and inf), and
every path refuses an empty text, which would mean the working folder. This module is apart from
config.py because pipeline/base/config.py imports tools_service/config.py.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tools_service.base.uris import is_uri, require_whole_scheme

ALL = "all"
"""In fields with a value for each tool: the tools that are not named."""
_MOST = 2**31 - 1  # of counts and sizes
_MOST_REAL = 1e30  # of FLOP/s, seconds, prices
_LEAST_RESOURCE = 1e-4  # the smallest share that Ray counts


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty; is a variable of the shell unset?")
    if "\0" in value:
        raise ValueError("must not hold a null character")
    if not value.isascii() and value != value.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError("must be text in UTF-8")
    return value


def _path_not_blank(value: Any) -> Any:
    # Path("") is the working folder, so the text is checked before it becomes a path.
    _not_blank(str(value))
    return value


def _folder_or_uri(value: Any) -> Any:
    if isinstance(value, Path):
        return value
    text = _not_blank(str(value))
    require_whole_scheme(text)
    return text if is_uri(text) else Path(text)


def _iso_date(value: Any) -> str:
    try:
        return datetime.date.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise ValueError(f"must be a date, YYYY-MM-DD, got {str(value)[:40]!r}") from error


def _resource(value: float) -> float:
    if 0 < value < _LEAST_RESOURCE:
        raise ValueError(f"must be 0 or at least {_LEAST_RESOURCE}")
    return value


def _whole_above_one(value: float) -> float:
    if value > 1 and value % 1:
        raise ValueError("above 1 it must be a whole number")
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0, le=_MOST_REAL)]
Positive = Annotated[float, Field(gt=0.0, le=_MOST_REAL)]
Nats = Annotated[float, Field(ge=-1e9, le=1e9)]
PositiveInt = Annotated[int, Field(ge=1, le=_MOST)]
NotNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
FileSize = Annotated[int, Field(ge=0)]
"""Bytes of a file, which may be more than 2 GiB."""
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
Resource = Annotated[float, Field(ge=0.0, le=1e6), AfterValidator(_resource)]
"""CPUs of a process on Ray."""
Gpus = Annotated[Resource, AfterValidator(_whole_above_one)]
"""GPUs of a process on Ray; a fraction shares one."""
Text = Annotated[str, AfterValidator(_not_blank)]
"""A text that is not blank: a name, or a path, glob or URI that is kept as text."""
FilePath = Annotated[Path, BeforeValidator(_path_not_blank)]
"""A file or folder. An empty text is an error."""
FolderOrUri = Annotated[str | FilePath, BeforeValidator(_folder_or_uri)]
"""A folder, as a path, or the URI of one, as text."""
IsoDate = Annotated[str, BeforeValidator(_iso_date)]
"""YYYY-MM-DD."""


def _of_every_tool(value: Any) -> Any:
    return {ALL: value} if isinstance(value, int | float) and not isinstance(value, bool) else value


ForEveryTool = BeforeValidator(_of_every_tool)
"""A number by tool may be one number, which is that of every tool."""


class NotAnOption:
    """Marks a field that the command line does not show: a declaration sets it."""


class ModelSource:
    """Marks a text that names a model: a folder, or a model of the hub."""


ModelPath = Annotated[Text, ModelSource()]
"""Folder or hub name of a model. A relative folder is made absolute for processes elsewhere."""


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
