"""Freed memory stays with the process, unless the user has set the allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library than glibc"),
]

PROGRAM = """
import resource, sys
import numpy
from tools_service.base.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [numpy.ones(24 * 2**17) for _ in range(6)]  # of 24 MiB
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults()
print(kept, faults())
"""


def run(argument: str, **variables: str) -> tuple[str, int]:
    """What keep_freed_memory returned, and the page faults of memory that is allocated again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, argument]
    output = subprocess.check_output(command, env=environment | variables, text=True, timeout=60)
    kept, faults = output.split()
    return kept, int(faults)


def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    _, before = run("as it is")
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < before / 10


def test_variables_of_the_user_win() -> None:
    assert run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
