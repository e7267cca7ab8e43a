"""Check manifests before a cluster refuses them: python -m cluster.manifests [--crds FOLDER] [FILE…]

In: YAML files with Kubernetes objects; none named, those of this repository. Out: one line per fault on
standard output, exit code 1 if there is any, 2 if a file cannot be read. Two kinds of check: what KubeRay's
operator refuses (rules.py), always; and with --crds the full schema with unknown fields refused (schemas.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.rules import Object, faults
from cluster.schemas import Schemas

ROOT = Path(__file__).parents[1]
MANIFESTS = (ROOT / "ray_job.yaml", *sorted((ROOT / "cluster" / "kubernetes").rglob("*.yaml")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, fast where PyYAML has libyaml, and strict: a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def documents(path: Path) -> list[Object]:
    """The objects in a YAML file; yaml.YAMLError says where it is broken."""
    with path.open(encoding="utf-8") as stream:
        return [document for document in yaml.load_all(stream, _Loader) if document]


def check(paths: Iterable[Path], schemas: Schemas | None = None) -> list[str]:
    """``file: kind name: fault`` for everything that is wrong."""
    return [
        f"{path}: {document.get('kind')} {document.get('metadata', {}).get('name')}: {fault}"
        for path in paths
        for document in documents(path)
        for fault in [*faults(document), *(schemas.faults(document) if schemas else ())]
    ]


def read_schemas(folder: Path) -> Schemas:
    """The schemas of every definition (*.yaml) in `folder`."""
    found = [document for path in sorted(folder.glob("*.yaml")) for document in documents(path)]
    return Schemas([one for one in found if one["kind"] == "CustomResourceDefinition"])


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.manifests", description="Check Kubernetes manifests."
    )
    parser.add_argument("files", nargs="*", type=Path, help="manifests; none: those of this repository")
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
