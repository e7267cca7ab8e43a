"""The declaration of a tool: what answers its calls, how they are written, sampled and filtered.

`ToolSpec` is all that the method and the cluster know of a tool (paper section 2, Appendix A). The
paper's tools (builtin.py) and a user's are declared alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from tools_service.base.settings import (
    ALL,
    FilePath,
    Frozen,
    Nats,
    NotAnOption,
    PositiveInt,
    Probability,
)

MAX_CALL_TOKENS = 60
SELECT_RULES = ("all", "dated", "pattern")

# Attributes of ToolsConfig and MethodConfig, where the sections of tools stand beside them.
_TAKEN_SECTIONS = frozenset(dir(Frozen)) | {
    *("service", "max_result_tokens", "cache_size", "declared", "operational", "at_inference"),
    *("spec", "specs", "of", "with_section", "with_sections"),
    *("tools", "prompts", "use_prompts", "seed", "input_rule", "with_declarations"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _is_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be a letter, then letters, digits and underscores, 40 at most")
    if value.lower() == ALL:
        raise ValueError(f"{value} stands for all tools in options; give the tool another name")
    if value.lower() in _TAKEN_SECTIONS or value.lower().startswith("model_"):
        raise ValueError(f"configurations have a field {value.lower()} already; give the tool another name")
    return value


def _is_reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        raise ValueError("must name an object of Python: package.module:name")
    return value


def _is_rule(value: str) -> str:
    if value not in SELECT_RULES and not _REFERENCE.fullmatch(value):
        raise ValueError('must be "all", "dated", {pattern = "…"}, or a function, "package.module:name"')
    return value


ToolName = Annotated[str, AfterValidator(_is_name)]
"""A tool's name as calls have it: a letter, then letters, digits and underscores."""
Reference = Annotated[str, AfterValidator(_is_reference)]
"""An object of Python: ``package.module:name``."""


def _is_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error}") from error
    return value


class Select(Frozen):
    """Which texts a tool is tried on (paper Appendix A)."""

    rule: Annotated[str, AfterValidator(_is_rule)] = "all"
    """all; dated: a date in the text's URL, which is then the date of its calls; pattern; or a
    function, module:name, from a text to true or false or the reason against it."""
    pattern: Annotated[str, AfterValidator(_is_pattern)] | None = None
    """Regular expression that the text must contain, for the rule `pattern`."""
    random_share: Probability = 0.0
    """Share of the texts without the pattern that are tried all the same; a function may use it."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """Read ``"all"`` and ``{pattern = "…"}``."""
        if isinstance(value, str):
            return {"rule": value}
        if isinstance(value, dict) and value.get("pattern") is not None:
            return {"rule": "pattern", **value}
        return value

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if (self.pattern is not None) != (self.rule == "pattern"):
            raise ValueError('give either a pattern, {pattern = "…"}, or another rule')
        return self


class ToolMethod(Frozen):
    """Sampling and filtering of one tool (paper section 2, Appendix A)."""

    tau_s: Probability = 0.05
    """Positions with p(<API>) above this threshold are candidates."""
    k: PositiveInt = 5
    """Maximum positions per text."""
    m: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Calls sampled per position."""
    tau_f: Nats = 1.0
    """Keep a call if it lowers the loss by at least this many nats."""
    max_call_tokens: PositiveInt = MAX_CALL_TOKENS
    """Discard a sampled call that is not closed after this many tokens."""
    given_name: bool = False
    """Draw after <API> and the tool's name instead of after <API>: no draw begins with another name."""
    prompt: FilePath | None = None
    """File with the annotation prompt. None: the file with the tool's name in the folder of prompts."""
    select: Select = Select()
    """Which texts the tool is tried on."""
    takes_input: Annotated[bool, NotAnOption()] = True
    """Whether its calls have an input; without one they are written Tool()."""
    drop_input_only_after: Annotated[bool, NotAnOption()] = False
    """Drop a call whose input stands in the text after the call and not before it."""


class ToolSpec(ToolMethod):
    """The declaration of a tool."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    name: ToolName
    """The name in its calls."""
    implementation: Annotated[Reference, Field(alias="class")]
    """The class or function that answers: package.module:name."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of the class that differ from their defaults."""
    config: Reference | None = None
    """The class of the settings. None: `Config` of the class, or the settings that all tools have."""
    description: str = ""
    """What the tool does, in a sentence. Empty: the documentation of the class or function."""
    parameters: dict[str, Any] | None = None
    """JSON schema of the parameters. None: those of the function, or one text."""
    arguments: Literal["text", "positional", "named"] | None = None
    """How the input of a call gives the parameters: text is the one parameter; positional is
    ``a, b``; named is ``key=value``. None: text for one parameter, positional for several."""
    dated: bool = False
    """Whether results depend on the date of the text."""

    @property
    def section(self) -> str:
        """The name of its section in configurations."""
        return self.name.lower()

    def method(self) -> ToolMethod:
        """How its calls are sampled and filtered."""
        return ToolMethod(**{name: getattr(self, name) for name in ToolMethod.model_fields})


def hashed_stream(name: str) -> int:
    """The number of a tool in the random streams of draws: one of 2**62 that its name determines."""
    digest = blake2b(f"tool {name}".encode(), digest_size=8).digest()
    return 2**62 + int.from_bytes(digest, "big") // 4
