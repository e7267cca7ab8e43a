"""A plain typed function as a tool: the calls of a model become calls of the function, results become text.

In: a function (signatures.py), and inputs of calls. Out: results or reasons by the contract (tool.py). A
function of one string gets the whole input of a call, others get their parameters from it (arguments.py).
A parameter ``date: datetime.date | None`` is the date of the text and no part of the input.

What the function returns becomes text:

- a str as it is, an int in digits, true or false, a date or time as ISO 8601 writes it, a Decimal as it is;
- a float with six significant digits but at least two decimals, without zeros at its end: ``8.04672``,
  ``1234567.89``, ``35``. Below 1e-6 and from 1e15 on it has an exponent.

None is no result. So is an exception: `NoResult` gives its own reason, a ValueError is "wrong input", all
others "tool failed". An answer of another type is a "malformed answer". Calls are answered one after the
other in the thread of the caller.
"""

from __future__ import annotations

import datetime
import inspect
import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import ValidationError

from tools_service.base.errors import brief
from tools_service.base.printable import printable
from tools_service.contract.arguments import CallArguments, Style
from tools_service.contract.parameters import ParametersError, reason
from tools_service.contract.signatures import DATE, FunctionError, FunctionSignature
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import MALFORMED_ANSWER, TOOL_FAILED, Tool, ToolInput, ToolResult

logger = logging.getLogger(__name__)

NO_RESULT = "no result"
WRONG_INPUT = "wrong input"
NOT_FINITE = "no finite number"

_MAX_REASON = 80
_EXPONENT_FROM = 1e15
_EXPONENT_BELOW = 1e-6
_SIGNIFICANT_DIGITS = 6
_MAX_DECIMAL_DIGITS = 30


class NoResult(Exception):  # noqa: N818  # a function that has no result has not failed
    """Raised by a function without an answer. The argument is the reason; use few and short ones."""


class ResultTypeError(TypeError):
    """A function returned something that is not text."""


class FunctionTool:
    """A function that answers calls. Safe in several threads if the function is."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        style: Style | None = None,
    ) -> None:
        """`parameters` replaces the JSON schema that the function's types give.

        Raises FunctionError for a function that cannot be a tool, and ParametersError.
        """
        self._function = function
        self.signature = FunctionSignature(function)
        self.name = name or self.signature.name
        self.description = self.signature.description
        self.arguments = CallArguments(parameters or self.signature.parameters, style)
        declared, known = self.arguments.parameters.properties, self.signature.adapters
        if unknown := [key for key in declared if key not in known]:
            raise FunctionError(f"{self.name}: the function has no parameter {printable(unknown[0], 40)}")
        if missing := [key for key in self.signature.parameters["required"] if key not in declared]:
            raise FunctionError(f"{self.name}: parameters lacks {missing[0]}, which the function needs")

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Answer the calls one after the other."""
        return [self._answer(call) for call in inputs]

    def _answer(self, call: ToolInput) -> ToolResult:
        values = self._values(call)
        if isinstance(values, str):
            return ToolResult(reason=values)
        try:
            return _result(self._call(values))
        except NoResult as error:
            return ToolResult(reason=printable(str(error), _MAX_REASON) or NO_RESULT)
        except ResultTypeError as error:
            logger.warning("%s: %s", self.name, error)
            return ToolResult(reason=MALFORMED_ANSWER)
        except (Exception, SystemExit) as error:  # a tool is isolated here: its failure becomes a reason
            what = f"{type(error).__name__}: {brief(error)}"
            if type(error) is ValueError:  # a subclass need not concern the input: damaged JSON of a server
                logger.debug("%s refused %.80r: %s", self.name, call.text, what)
                return ToolResult(reason=WRONG_INPUT)
            logger.warning("%s failed on %.80r: %s", self.name, call.text, what)
            return ToolResult(reason=TOOL_FAILED)

    def _values(self, call: ToolInput) -> dict[str, Any] | str:
        """The function's arguments by name, or the reason for none."""
        values = self.arguments.parse(call.text)
        if isinstance(values, str):
            return values
        for name, adapter in self.signature.adapters.items():
            if name not in values:
                if name in self.signature.parameters["required"]:
                    return reason("missing argument", name)
                continue
            try:
                values[name] = adapter.validate_python(values[name])
            except ValidationError:
                return reason("wrong value", name)
        if self.signature.dated:
            try:
                values[DATE] = datetime.date.fromisoformat(call.date) if call.date is not None else None
            except ValueError:
                return "malformed date"
        return values

    def _call(self, values: dict[str, Any]) -> Any:
        """Call the function; what `values` lacks has a default."""
        positional = []
        for name, parameter in self.signature.signature.parameters.items():
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(values.pop(name, parameter.default))
        return self._function(*positional, **values)


def tool_of_function(spec: ToolSpec, function: Callable[..., Any]) -> Tool:
    """The tool that `spec` declares and `function` answers. Raises FunctionError, which names the tool."""
    field = f"tools.{spec.name}"
    try:
        tool = FunctionTool(function, spec.name, parameters=spec.parameters, style=spec.arguments)
    except ParametersError as error:
        raise FunctionError(f"{field}: {error}") from error
    if tool.signature.dated != spec.dated:
        raise FunctionError(
            f"{field}: the function has {'a' if tool.signature.dated else 'no'} parameter "
            f"date: datetime.date | None; declare dated = {str(tool.signature.dated).lower()}"
        )
    if spec.takes_input and not tool.arguments.parameters.properties:
        raise FunctionError(f"{field}: the function has no parameters; declare takes_input = false")
    if not spec.takes_input and (needed := tool.arguments.parameters.required):
        raise FunctionError(f"{field}: the function needs {next(iter(needed))}; remove takes_input = false")
    return tool


def as_text(value: Any) -> str:
    """The text of a result, as the module's docstring has it. Raises ResultTypeError."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value) if abs(value.adjusted()) > _MAX_DECIMAL_DIGITS else format(value, "f")
    if isinstance(value, numbers.Integral):
        try:
            return str(int(value))
        except ValueError as error:  # Python writes no more than 4,300 digits
            raise ResultTypeError(str(error)) from error
    if isinstance(value, numbers.Real):
        return _float_text(float(value))
    raise ResultTypeError(f"it returned a value of the type {type(value).__name__}; return a str or a number")


def _result(value: Any) -> ToolResult:
    if value is None:
        return ToolResult(reason=NO_RESULT)
    # Integers and fractions are finite, and may be too large to ask.
    real = isinstance(value, numbers.Real | Decimal) and not isinstance(value, numbers.Rational)
    if real and not math.isfinite(value):
        return ToolResult(reason=NOT_FINITE)
    return ToolResult(as_text(value))


def _float_text(value: float) -> str:
    if value.is_integer() and abs(value) < _EXPONENT_FROM:
        return str(int(value))
    if not _EXPONENT_BELOW <= abs(value) < _EXPONENT_FROM:
        return f"{value:.{_SIGNIFICANT_DIGITS}g}"
    decimals = max(2, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")
