"""The JSON schema of a tool's parameters, which may be a stranger's, and the check of values against it.

In: the schema of an object, as a function's signature, a declaration or an MCP server gives it. Out: the
parameters in their order, and for wrong values a reason of a few fixed words with the parameter's name.
The schema is data of a stranger. Nothing is fetched, references are resolved once and within a bound, and
patterns run on an engine that takes linear time. It has no back references and no look-around: a pattern
with these is left to the tool to check. So are `format` and `patternProperties`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic_core import SchemaError as PydanticSchemaError
from pydantic_core import SchemaValidator, core_schema

from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.printable import printable

if TYPE_CHECKING:
    from jsonschema import ValidationError

logger = logging.getLogger(__name__)

MAX_PARAMETERS = 64
_MAX_NODES = 2_000  # of the schema, once references are resolved
_MAX_DEPTH = 64
_MAX_NAME = 40  # characters of a parameter's name in a reason

_TYPES: dict[str, Any] = {
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
}
ALL_TYPES = frozenset(_TYPES)

_MAPS = ("properties", "dependentSchemas", "dependencies")  # keywords from names to schemas
_VERBATIM = ("enum", "const", "default", "examples", "required", "dependentRequired")
_DROPPED = ("$defs", "definitions", "$id", "id", "$schema", "$anchor", "$comment")
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
_KINDS = {
    "enum": "not one of the choices",
    "const": "not one of the choices",
    "minimum": "out of range",
    "maximum": "out of range",
    "exclusiveMinimum": "out of range",
    "exclusiveMaximum": "out of range",
    "multipleOf": "out of range",
    "minLength": "wrong length",
    "maxLength": "wrong length",
    "minItems": "wrong length",
    "maxItems": "wrong length",
}


class ParametersError(ConfigurationError):
    """A schema that does not describe parameters, or that is not checked for its size or references."""


class Parameters:
    """The parameters of a tool: `properties` by name in their order, and the `required` names."""

    def __init__(self, schema: Any) -> None:
        """Raises ParametersError unless `schema` is the JSON schema of an object."""
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise ParametersError('parameters: wanted a JSON schema with type = "object"')
        # Imported where a tool has parameters: annotating with the packaged tools needs no jsonschema.
        import jsonschema
        from jsonschema.validators import extend, validator_for

        try:
            self.schema: dict[str, Any] = _Inliner(schema).inline(schema)
            draft = {"$schema": str(schema.get("$schema"))}
            validator: Any = validator_for(draft, default=jsonschema.Draft202012Validator)
            if validator is jsonschema.Draft3Validator:  # there `required` and types are other things
                validator = jsonschema.Draft4Validator
            validator.check_schema(self.schema, format_checker=None)
        except jsonschema.SchemaError as error:
            place = ".".join(map(str, error.absolute_path)) or "the whole"
            message = printable(error.message, 120)
            raise ParametersError(f"parameters: not a JSON schema: {printable(place)}: {message}") from error
        self._validator = extend(validator, {"pattern": _check_pattern})(self.schema)
        self.properties: dict[str, Any] = self.schema.get("properties", {})
        if len(self.properties) > MAX_PARAMETERS:
            raise ParametersError(
                f"parameters: {len(self.properties)} of them, a tool may have {MAX_PARAMETERS}"
            )
        required = self.schema.get("required", ())
        if unknown := [name for name in required if name not in self.properties]:
            raise ParametersError(f"parameters: {printable(unknown[0])} is required but has no schema")
        self.required = frozenset(required)

    def violation(self, values: Mapping[str, Any]) -> str | None:
        """Why `values` (JSON values by name) do not fit, or None."""
        from jsonschema.exceptions import best_match

        for name in self.properties:
            if name in self.required and name not in values:
                return reason("missing argument", name)
        try:
            error = best_match(islice(self._validator.iter_errors(values), 1))
        except Exception as failure:  # a stranger's schema: its check may fail on some value
            logger.warning("parameters: the check of a call failed: %s", brief(failure))
            return "arguments cannot be checked"
        if error is None:
            return None
        kind = _KINDS.get(error.validator, "wrong value")
        return reason(kind, str(error.absolute_path[0])) if error.absolute_path else "wrong arguments"


def reason(kind: str, name: str) -> str:
    """A reason that concerns the parameter `name`."""
    return f"{kind}: {printable(name, _MAX_NAME)}"


def allowed_types(schema: Any) -> frozenset[str]:
    """The JSON types that values of `schema`, which has no references, may have."""
    if not isinstance(schema, Mapping):
        return frozenset() if schema is False else ALL_TYPES
    types = ALL_TYPES
    if "type" in schema:
        named = schema["type"]
        types = frozenset([named] if isinstance(named, str) else named)
        types |= {"integer"} if "number" in types else set()
    if choices := [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]:
        types &= {name for name in ALL_TYPES for choice in choices if _is_of(choice, name)}
    for keyword in ("anyOf", "oneOf"):
        if branches := schema.get(keyword):
            types &= frozenset().union(*map(allowed_types, branches))
    for branch in schema.get("allOf", ()):
        types &= allowed_types(branch)
    return types


def item_schema(schema: Any, index: int) -> Any:
    """The schema of the item at `index` of an array that `schema` allows; True if it says nothing."""
    for part in _parts(schema):
        items = part.get("items")
        first = part.get("prefixItems", items)  # drafts before 2020-12 have a list of items
        if isinstance(first, list) and index < len(first):
            return first[index]
        if isinstance(items, Mapping):
            return items
    return True


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """`schema` and the schemas that it combines."""
    if isinstance(schema, Mapping):
        yield schema
        for keyword in ("allOf", "anyOf", "oneOf"):
            for branch in schema.get(keyword, ()):
                yield from _parts(branch)


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


class _Inliner:
    """Puts what local references point to in their place; the result is a tree of bounded size."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: list[str] = []  # the references that are being resolved
        self._nodes = 0

    def inline(self, schema: Any, depth: int = 0) -> Any:
        if not isinstance(schema, Mapping | list):
            return schema
        self._nodes += 1
        if depth > _MAX_DEPTH:
            raise ParametersError("parameters: the JSON schema is nested too deep")
        if self._nodes > _MAX_NODES:
            raise ParametersError(f"parameters: the JSON schema has more than {_MAX_NODES:,} parts")
        if isinstance(schema, list):
            return [self.inline(part, depth + 1) for part in schema]
        if "patternProperties" in schema:  # it decides what the others allow
            others = ("patternProperties", "additionalProperties", "unevaluatedProperties")
            schema = {keyword: value for keyword, value in schema.items() if keyword not in others}
        here: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _VERBATIM:
                here[keyword] = value
            elif keyword in _MAPS and isinstance(value, Mapping):
                here[keyword] = {str(name): self.inline(part, depth + 1) for name, part in value.items()}
            elif keyword in ("$dynamicRef", "$recursiveRef"):
                raise ParametersError(f"parameters: {keyword} in the JSON schema is not supported")
            elif keyword != "$ref" and keyword not in _DROPPED:
                here[keyword] = self.inline(value, depth + 1)
        return _both(self._resolve(schema["$ref"], depth + 1), here) if "$ref" in schema else here

    def _resolve(self, reference: Any, depth: int) -> Any:
        shown = printable(str(reference), 80)
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ParametersError(f"parameters: the JSON schema refers to {shown}, which is never fetched")
        if reference in self._open:
            raise ParametersError(f"parameters: the JSON schema contains itself ({shown})")
        target: Any = self._root
        steps = [step.replace("~1", "/").replace("~0", "~") for step in unquote(reference).split("/")[1:]]
        for step in steps:
            if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, Mapping) and step in target:
                target = target[step]
            else:
                raise ParametersError(f"parameters: the JSON schema has nothing at {shown}")
        self._open.append(reference)
        inlined = self.inline(target, depth)
        self._open.pop()
        return inlined


def _both(target: Any, here: dict[str, Any]) -> Any:
    """The schema of what fits `target` and `here`, the keywords beside the reference."""
    if isinstance(target, dict) and not (target.keys() & here.keys()) - _ANNOTATIONS:
        return {**target, **here}
    return {"allOf": [target, here]}


def _check_pattern(_validator: Any, pattern: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    from jsonschema import ValidationError

    if isinstance(value, str) and isinstance(pattern, str) and not _matches(pattern, value):
        yield ValidationError("does not match the pattern")


def _matches(pattern: str, text: str) -> bool:
    matcher = _linear_time(pattern)
    return matcher is None or matcher.isinstance_python(text)


@lru_cache(maxsize=256)
def _linear_time(pattern: str) -> SchemaValidator | None:
    """`pattern` for pydantic's regular expressions in Rust; None if they cannot have it."""
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern))
    except PydanticSchemaError as error:
        logger.warning("parameters: the tool itself must check a pattern: %s", brief(error))
        return None
