"""tools.json in the folder of a fine-tuned model: all that a server needs to decode with calls.

In: C* and a tokenizer, or the folder of a model. Out: the tools whose calls the model learned, with the
JSON schemas of their parameters; how calls are written; when one starts (paper section 4.2). What answers
the calls is not in it: a server brings its own tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.storage.manifest import MANIFEST
from pipeline.syntax.tokenizer import CallTokens
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import atomic_write_json, read_json, read_model
from tools_service.base.settings import Frozen
from tools_service.contract.declarations import installed_tools
from tools_service.contract.schemas import with_schema
from tools_service.contract.spec import MAX_CALL_TOKENS, ToolSpec
from tools_service.syntax.calls import API, ARROW, END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS = "tools.json"
_SPECS = TypeAdapter(tuple[ToolSpec, ...])


class LearnedTool(Frozen):
    """A tool whose calls the model was trained on."""

    name: str
    """The name in its calls."""
    description: str = ""
    """What the tool does, in a sentence; empty if it is not known."""
    parameters: dict[str, Any] | None = None
    """JSON schema of the parameters; null if it is not known."""
    takes_input: bool = True
    """Whether its calls have an input; without one they are written Tool()."""
    arguments: Literal["text", "positional", "named"] | None = None
    """How the input gives the parameters: text is the one parameter; positional is ``a, b``; named is
    ``key=value``. Null: text for one parameter, positional for several."""
    max_call_tokens: int = MAX_CALL_TOKENS
    """A call without an arrow after this many tokens fails."""
    dated: bool = False
    """Whether results depend on the date of the text."""


class CallSyntax(Frozen):
    """A call is written api_start, Tool(input), arrow, result, api_end."""

    api_start: str = API
    """Stands before the name of the tool; the paper's <API>."""
    arrow: str = ARROW
    """Stands between the call and its result."""
    api_end: str = END
    """Stands behind the result; the paper's </API>."""
    api_start_tokens: tuple[int, ...]
    """The ids of api_start in this model's tokenizer; the other markers may be part of larger tokens."""


class LearnedTools(Frozen):
    """The content of tools.json."""

    format: Literal[1] = 1
    """Version of this file's format."""
    syntax: CallSyntax
    """How a call is written."""
    k: int = 10
    """Start a call where api_start is among the k likeliest tokens (section 4.2)."""
    max_calls: int = 1
    """Calls per input."""
    tools: tuple[LearnedTool, ...]
    """The tools whose calls the model was trained on."""


def write_tools(folder: Path, augmented: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write tools.json for a model that was trained on C* in folder `augmented`; none if it has no calls."""
    if tools := _tools_of(augmented):
        syntax = CallSyntax(api_start_tokens=CallTokens.of(tokenizer).api)
        atomic_write_json(folder / TOOLS, LearnedTools(syntax=syntax, tools=tools).model_dump(mode="json"))


def read_tools(folder: Path) -> LearnedTools | None:
    """tools.json of a model; None if it has none. Raises ConfigurationError for a damaged one."""
    try:
        return read_model(folder / TOOLS, LearnedTools)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / TOOLS} is not one that finetune writes: {brief(error)}. Bring it back, or remove it"
        ) from error


def _tools_of(augmented: Path) -> tuple[LearnedTool, ...]:
    """The tools with calls in C*, as merge declares them; earlier versions of merge named them only."""
    try:
        manifest = read_json(augmented / MANIFEST)
        names = [name for name, examples in manifest["tools"].items() if examples["calls"]]
        declared = {spec.name: spec for spec in _SPECS.validate_python(manifest.get("tool_specs", ()))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return ()
    installed = {name: with_schema(spec) for name, spec in installed_tools().items() if name in names}
    return tuple(_learned(name, declared.get(name) or installed.get(name)) for name in names)


def _learned(name: str, spec: ToolSpec | None) -> LearnedTool:
    if spec is None:
        return LearnedTool(name=name)
    return LearnedTool(**{field: getattr(spec, field) for field in LearnedTool.model_fields})
