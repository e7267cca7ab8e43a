"""Kubernetes objects against KubeRay's custom resource definitions, with unknown fields refused.

In: the definitions (ray.io_*.yaml of ray-operator/config/crd/bases in KubeRay's repository), which this
repository does not contain. RayJob and RayCluster are checked whole. Pods, claims, services and network
rules of other kinds are checked against the places where those definitions hold the same Kubernetes types.
Not checked: the definitions' CEL rules (x-kubernetes-validations), whose substance is in rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.rules import Object

_POD = ("headGroupSpec", "template")
_CLAIM = (*_POD, "spec", "volumes", "[]", "ephemeral", "volumeClaimTemplate")
_NETWORK = ("networkPolicy", "head")
_SELECTOR = (*_NETWORK, "ingressRules", "[]", "from", "[]", "podSelector")
# Where other kinds hold a type, and where RayCluster's spec has the same.
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
    """JSON Schemas of ray.io/v1, from its definitions; ValueError if RayCluster's is not among them."""

    def __init__(self, definitions: list[Object]) -> None:
        self._whole = {one["spec"]["names"]["kind"]: strict_schema(one) for one in definitions}
        if "RayCluster" not in self._whole:
            raise ValueError(
                "the definition of RayCluster is missing; KubeRay's ray.io_rayclusters.yaml has it"
            )

    def faults(self, document: Object) -> Iterator[str]:
        """``path: what is wrong there`` for every departure from the schema."""
        kind = document.get("kind", "")
        if kind in self._whole:
            yield from _faults(document, self._whole[kind], ())
        spec = self._whole["RayCluster"]["properties"]["spec"]
        for at, schema_at in PARTS.get(kind, ()):
            for path, part in _parts(document, at):
                yield from _faults(part, _at(spec, schema_at), path)


def _faults(document: Any, schema: Object, prefix: tuple[str | int, ...]) -> Iterator[str]:
    import jsonschema  # type: ignore[import-untyped]

    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        where = ".".join(map(str, (*prefix, *error.absolute_path)))
        yield f"{where or 'the object'}: {error.message[:200]}"


def _parts(document: Any, at: tuple[str, ...], path: tuple[str | int, ...] = ()) -> Iterator[Any]:
    """(path, value) of everything at the place `at`; [] is every item of a list."""
    if not at:
        yield path, document
    elif at[0] == "[]":
        for number, item in enumerate(document):
            yield from _parts(item, at[1:], (*path, number))
    elif at[0] in document:
        yield from _parts(document[at[0]], at[1:], (*path, at[0]))


def _at(schema: Object, path: tuple[str, ...]) -> Object:
    for name in path:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


def strict_schema(definition: Object) -> Object:
    """JSON Schema of a definition's v1: defaulted fields optional, unknown fields refused."""
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema: Object = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes's own, in every object
    return schema


def _strict(schema: Any) -> Any:
    """`schema` as JSON Schema: what OpenAPI adds is translated, and objects are closed."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    fields = schema.get("properties", {})
    kept = {key: value for key, value in schema.items() if not key.startswith("x-")}
    for key in ("description", "default", "format", "properties", "required", "nullable"):
        kept.pop(key, None)
    strict = {key: value if key == "enum" else _strict(value) for key, value in kept.items()}
    strict["properties"] = {name: _strict(field) for name, field in fields.items()}
    strict["required"] = [n for n in schema.get("required", []) if "default" not in fields.get(n, {})]
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not open_ended:
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)  # anyOf, or nothing, says what it may be
        strict.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if schema.get("nullable"):
        strict = {"anyOf": [strict, {"type": "null"}]}
    return strict
