"""The page of the exit codes and of the errors behind them. The sources are read, not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reference.markdown import code, prose, table

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "tools_service")

EXIT_CODES = {
    0: "Done.",
    1: "The run failed: the message says why. `toolformer-tools call`: the call has no result.",
    2: "The command line, the configuration or an input that it names is wrong.",
    3: "`annotate` has used up `--max-hours` or `--max-gpu-hours`. The same command goes on.",
    130: "Interrupted with Ctrl-C. The same command resumes the run.",
}


@dataclass(frozen=True)
class ErrorClass:
    """A class of exceptions, with the exit code of a command that ends with one."""

    name: str
    module: str
    exit_code: int
    summary: str


def page() -> str:
    """Exit codes, and every error of the project with its exit code."""
    codes = ((code(str(number)), meaning) for number, meaning in EXIT_CODES.items())
    errors = sorted(all_errors(), key=lambda error: (error.name, error.module))
    rows = (
        (code(error.name), str(error.exit_code), code(error.module), prose(error.summary)) for error in errors
    )
    return (
        "# Errors and exit codes\n\n"
        f"{table(('exit code', 'meaning'), codes)}\n"
        "An error of the project is one message without a traceback; it names the option, file, line, text "
        "or tool that it concerns. Anything with a traceback is a bug.\n\n"
        "## Errors\n\n"
        "The exceptions that Python code meets, and the exit code of a command that ends with one.\n\n"
        f"{table(('error', 'exit code', 'module', 'when'), rows)}"
    )


def all_errors() -> Iterator[ErrorClass]:
    """Every class of error of the two packages."""
    classes = list(_classes())
    codes = {"ToolformerError": 1}
    for _ in range(len(classes)):  # until no further class derives from one of them
        before = len(codes)
        for _, node in classes:
            if code := _exit_code(node, codes):
                codes[node.name] = code
        if len(codes) == before:
            break
    for module, node in classes:
        if code := _exit_code(node, codes):
            summary = (ast.get_docstring(node) or "").partition("\n\n")[0]
            yield ErrorClass(node.name, module, code, summary)


def _exit_code(node: ast.ClassDef, codes: Mapping[str, int]) -> int | None:
    """The exit code that a class sets or has from its bases, by their `codes`; None for no error."""
    if node.name == "ToolformerError":
        return 1
    of_bases = [codes[base] for base in _bases(node) if base in codes]
    for statement in node.body:
        if (
            of_bases
            and isinstance(statement, ast.Assign)
            and ast.unparse(statement.targets[0]) == "exit_code"
        ):
            return int(ast.literal_eval(statement.value))
    return max(of_bases, default=None)


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield from (
                (module, node)
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ClassDef)
            )


def _bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base) for base in node.bases}
