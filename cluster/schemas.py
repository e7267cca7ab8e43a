"""Check Kubernetes objects against KubeRay's custom resource definitions.

Unknown fields are refused. In: the definitions (ray.io_*.yaml of ray-operator/config/crd/bases in
KubeRay's repository), which this repository does not contain. RayJob and RayCluster are checked
completely. Pods, claims, services and network rules of other kinds are checked against the parts of
those definitions with the same Kubernetes types. The definitions' CEL rules
(x-kubernetes-validations) are not evaluated; rules.py contains their substance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.rules import Object

_POD = ("headGroupSpec", "template")
_CLAIM = (*_POD, "spec", "volumes", "[]", "ephemeral", "volumeClaimTemplate")
_NETWORK = ("networkPolicy", "head")
_SELECTOR = (*_NETWORK, "ingressRules", "[]", "from", "[]", "podSelector")
# By kind: the path of a part, and the path in RayCluster's spec of a part with the same type.
PARTS: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "StatefulSet": (
        (("spec", "template"), _POD),
        (("spec", "selector"), _SELECTOR),
        (("spec", "volumeClaimTemplates", "[]"), _CLAIM),
    ),
    "Service": ((("spec",), ("headGroupSpec", "headService", "spec")),),
    "PersistentVolumeClaim": ((("spec",), (*_CLAIM, "spec")),),
    "Job": ((("spec", "template"), _POD),),
    "PodMonitor": ((("spec", "selector"), _SELECTOR),),
    "NetworkPolicy": (
        (("spec", "ingress"), (*_NETWORK, "ingressRules")),
        (("spec", "egress"), (*_NETWORK, "egressRules")),
        (("spec", "podSelector"), _SELECTOR),
    ),
}


class Schemas:
    """JSON Schemas of ray.io/v1. ValueError if the definition of RayCluster is missing."""

    def __init__(self, definitions: list[Object]) -> None:
        self._by_kind = {each["spec"]["names"]["kind"]: strict_schema(each) for each in definitions}
        if "RayCluster" not in self._by_kind:
            raise ValueError(
                "the definition of RayCluster is missing; KubeRay's ray.io_rayclusters.yaml has it"
            )

    def problems(self, document: Object) -> Iterator[str]:
        """``path: message`` for every violation of the schema."""
        kind = document.get("kind", "")
        if kind in self._by_kind:
            yield from _problems(document, self._by_kind[kind], ())
        spec = self._by_kind["RayCluster"]["properties"]["spec"]
        for pattern, schema_path in PARTS.get(kind, ()):
            for path, part in _parts(document, pattern):
                yield from _problems(part, _subschema(spec, schema_path), path)


def _problems(document: Any, schema: Object, prefix: tuple[str | int, ...]) -> Iterator[str]:
    import jsonschema  # type: ignore[import-untyped]

    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        where = ".".join(map(str, (*prefix, *error.absolute_path)))
        yield f"{where or 'the object'}: {error.message[:200]}"


def _parts(document: Any, pattern: tuple[str, ...], path: tuple[str | int, ...] = ()) -> Iterator[Any]:
    """(path, value) of every part that `pattern` matches; [] matches every item of a list."""
    if not pattern:
        yield path, document
    elif pattern[0] == "[]":
        for number, item in enumerate(document):
            yield from _parts(item, pattern[1:], (*path, number))
    elif pattern[0] in document:
        yield from _parts(document[pattern[0]], pattern[1:], (*path, pattern[0]))


def _subschema(schema: Object, path: tuple[str, ...]) -> Object:
    for name in path:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


def strict_schema(definition: Object) -> Object:
    """The JSON Schema of v1: fields with a default are optional, unknown fields refused."""
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: Object = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes checks it itself
    return schema


def _strict(schema: Any) -> Any:
    """`schema` as JSON Schema: OpenAPI's extensions are translated, and objects are closed."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    fields = schema.get("properties", {})
    keywords = {key: value for key, value in schema.items() if not key.startswith("x-")}
    for key in ("description", "default", "format", "properties", "required", "nullable"):
        keywords.pop(key, None)
    strict = {key: value if key == "enum" else _strict(value) for key, value in keywords.items()}
    strict["properties"] = {name: _strict(field) for name, field in fields.items()}
    strict["required"] = [n for n in schema.get("required", []) if "default" not in fields.get(n, {})]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not open_ended:
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)  # replaced by anyOf
        strict.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if schema.get("nullable"):
        strict = {"anyOf": [strict, {"type": "null"}]}
    return strict
