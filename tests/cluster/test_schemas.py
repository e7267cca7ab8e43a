"""Definitions become strict schemas; with KUBERAY_CRDS, all manifests are checked against
KubeRay's."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.manifests import MANIFESTS, documents, read_schemas
from cluster.rules import FIELDS, problems
from cluster.schemas import Schemas
from tests.cluster.variants import VARIANTS, rendered

pytestmark = pytest.mark.unit

Object = dict[str, Any]
STRING = {"type": "string"}


def definition(kind: str, spec: Object) -> Object:
    """A definition like KubeRay's, with a few fields."""
    schema = {"type": "object", "properties": {"apiVersion": STRING, "kind": STRING, "spec": spec}}
    schema["properties"]["metadata"] = {"type": "object"}  # type: ignore[index]
    versions = [
        {"name": "v1alpha1", "schema": {"openAPIV3Schema": {"type": "object"}}},
        {"name": "v1", "schema": {"openAPIV3Schema": schema}},
    ]
    return {
        "kind": "CustomResourceDefinition",
        "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": f"{kind.lower()}s.ray.io"},
        "spec": {"names": {"kind": kind}, "versions": versions},
    }


POD = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {"labels": {"type": "object", "additionalProperties": STRING}},
        },
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "protocol"],
                        "properties": {"name": STRING, "protocol": {"type": "string", "default": "TCP"}},
                    },
                },
                "volumes": {"type": "array", "items": {"type": "object", "properties": {}}},
            },
        },
    },
}
JOB = {
    "type": "object",
    "required": ["entrypoint", "backoffLimit"],
    "properties": {
        "entrypoint": STRING,
        "backoffLimit": {"type": "integer", "format": "int32", "default": 0, "minimum": 0},
        "required": {"type": "boolean"},  # a field with the name of a keyword
        "port": {"x-kubernetes-int-or-string": True, "type": "integer"},
        "amount": {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, STRING],
            "pattern": "^[0-9]+Gi$",
        },
        "labels": {"type": "object", "additionalProperties": STRING},
        "mode": {"type": "string", "enum": ["disabled", "token"]},
        "open": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
        "closed": {"type": "object"},
        "maybe": {"type": "string", "nullable": True},
        "template": POD,
    },
}
CLUSTER = {
    "type": "object",
    "properties": {"headGroupSpec": {"type": "object", "properties": {"template": POD}}},
}


@pytest.fixture
def schemas() -> Schemas:
    return Schemas([definition("RayJob", JOB), definition("RayCluster", CLUSTER)])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"entrypoint": "run", "port": "http", "labels": {"any": "x"}, "open": {"any": {"depth": 1}}}, None),
        (
            {"entrypoint": "run", "port": 80, "amount": 1, "maybe": None, "required": True, "mode": "token"},
            None,
        ),
        ({"entrypoint": "run", "entryPoint": "run"}, "spec: .*'entryPoint' was unexpected"),
        ({"backoffLimit": 1}, "spec: 'entrypoint' is a required property"),
        ({"entrypoint": "run", "backoffLimit": "1"}, "spec.backoffLimit: '1' is not of type 'integer'"),
        ({"entrypoint": "run", "backoffLimit": -1}, "spec.backoffLimit: -1 is less than"),
        ({"entrypoint": "run", "port": True}, "spec.port: True is not valid"),
        ({"entrypoint": "run", "amount": "1 GB"}, "spec.amount: '1 GB' does not match"),
        ({"entrypoint": "run", "labels": {"any": 1}}, "spec.labels.any: 1 is not of type 'string'"),
        ({"entrypoint": "run", "mode": "tokens"}, "spec.mode: 'tokens' is not one of"),
        ({"entrypoint": "run", "closed": {"any": 1}}, "spec.closed: .*'any' was unexpected"),
        (
            {
                "entrypoint": "run",
                "template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "image": "c"}]}},
            },
            "spec.template.spec.containers.1: .*'image' was unexpected",
        ),
    ],
)
def test_only_valid_objects_pass(schemas: Schemas, spec: Object, expected: str | None) -> None:
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "a", "any": 1},
        "spec": spec,
    }
    found = list(schemas.problems(document))
    assert len(found) == (expected is not None), found
    if expected is not None:
        assert re.search(expected, found[0]), found


@pytest.mark.parametrize("kind", ["StatefulSet", "Job"])
def test_pods_of_other_kinds_are_checked_like_the_cluster_s(schemas: Schemas, kind: str) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "redis"}]}}
    good = {"kind": kind, "spec": {"template": template}}
    assert list(schemas.problems(good)) == []
    template["spec"]["containers"][0]["imagePolicy"] = "Always"  # type: ignore[index]
    assert [problem.partition(": ")[0] for problem in schemas.problems(good)] == [
        "spec.template.spec.containers.0"
    ]


def test_definitions_without_the_cluster_s_are_refused() -> None:
    with pytest.raises(ValueError, match="RayCluster is missing"):
        Schemas([definition("RayJob", JOB)])


CRDS = os.environ.get("KUBERAY_CRDS")
with_definitions = pytest.mark.skipif(
    not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's definitions"
)
# Fields whose keys the user chooses.
USER_KEYS = {"annotations", "labels", "matchLabels", "requests", "limits", "resources", "selector"}


@pytest.fixture(scope="module")
def full() -> Schemas:
    return read_schemas(Path(CRDS or ""))


@with_definitions
def test_the_repository_s_manifests_pass_the_full_definitions(full: Schemas) -> None:
    for path in MANIFESTS:
        assert [problem for document in documents(path) for problem in full.problems(document)] == []


@with_definitions
@pytest.mark.parametrize("variant", VARIANTS)
def test_rendered_manifests_pass_the_full_definitions(full: Schemas, tmp_path: Path, variant: str) -> None:
    files = rendered(tmp_path, variant)
    kubernetes = [document for name in files if name != "ray_up/aws.yaml" for document in files[name]]
    assert [problem for document in kubernetes for problem in full.problems(document)] == []


@with_definitions
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_misspelt_field_is_found_at_every_depth(full: Schemas, path: Path) -> None:
    for number, document in enumerate(documents(path)):
        separate = json.loads(json.dumps(document))
        for place in places(separate):
            broken = copy.deepcopy(separate)
            holder = broken
            for name in place[:-1]:
                holder = holder[name]
            holder[f"{place[-1]}x"] = holder.pop(place[-1])
            assert [*problems(broken), *full.problems(broken)], (
                f"object {number}: {'.'.join(map(str, place))}"
            )


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key that the user does not choose."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not path or path[-1] not in USER_KEYS or name in USER_KEYS:
                yield (*path, name)
            yield from places(inner, (*path, name))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


@with_definitions
def test_the_known_fields_are_those_of_the_definitions() -> None:
    found = {
        d["spec"]["names"]["kind"]: d for path in Path(CRDS or "").glob("*.yaml") for d in documents(path)
    }
    job, cluster = (fields_of(found[kind]) for kind in ("RayJob", "RayCluster"))
    of = {name: value for name, value in (job | cluster).items() if name in FIELDS}
    known = {name: set(value.get("items", value)["properties"]) for name, value in of.items()}
    assert known | {"RayJob": set(job), "RayCluster": set(cluster)} == FIELDS


def fields_of(definition: Object) -> Object:
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    fields: Object = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return fields
