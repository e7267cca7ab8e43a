"""Check Kubernetes manifests before a cluster refuses them.

    python -m cluster.manifests [--crds FOLDER] [FILE…]

In: YAML files with Kubernetes objects; by default those of this repository. Out: one line per
problem on standard output. Exit code 1 if there is a problem, 2 if a file cannot be read. The rules
of KubeRay's operator (rules.py) are always checked. With --crds, the full schema is checked too,
and unknown fields are refused (schemas.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.rules import Object, problems
from cluster.schemas import Schemas

ROOT = Path(__file__).parents[1]
RAY_JOB = ROOT / "ray_job.yaml"
KUBERNETES = ROOT / "cluster" / "kubernetes"
MANIFESTS = (RAY_JOB, *sorted(KUBERNETES.rglob("*.yaml")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader (fast, if PyYAML has libyaml) that refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is a duplicate key", key.start_mark
                )
        return super().construct_mapping(node, deep)


def documents(path: Path) -> list[Object]:
    """The objects in a YAML file. yaml.YAMLError if it is invalid."""
    with path.open(encoding="utf-8") as stream:
        return [document for document in yaml.load_all(stream, _Loader) if document]


def check(paths: Iterable[Path], schemas: Schemas | None = None) -> list[str]:
    """``file: kind name: problem`` for every problem."""
    return [
        f"{path}: {document.get('kind')} {document.get('metadata', {}).get('name')}: {problem}"
        for path in paths
        for document in documents(path)
        for problem in [*problems(document), *(schemas.problems(document) if schemas else ())]
    ]


def read_schemas(folder: Path) -> Schemas:
    """The schemas of all definitions (*.yaml) in `folder`."""
    definitions = [document for path in sorted(folder.glob("*.yaml")) for document in documents(path)]
    return Schemas([each for each in definitions if each["kind"] == "CustomResourceDefinition"])


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.manifests", description="Check Kubernetes manifests."
    )
    parser.add_argument("files", nargs="*", type=Path, help="manifests; default: those of this repository")
    parser.add_argument("--crds", type=Path, help="folder with KubeRay's definitions (ray.io_*.yaml)")
    arguments = parser.parse_args(argv)
    paths = arguments.files or MANIFESTS
    try:
        schemas = read_schemas(arguments.crds) if arguments.crds else None
        found = check(paths, schemas)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"python -m cluster.manifests: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) if found else f"{len(paths)} files: nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
