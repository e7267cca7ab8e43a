"""python -m pipeline COMMAND: the same as the installed command `toolformer` (cli/main.py).

`doctor` works where packages are missing; every other command says which one, and what to do.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run one command; return the exit code."""
    try:
        from pipeline.cli.main import main as run
    except ModuleNotFoundError as error:
        if sys.argv[1:2] == ["doctor"]:
            return _doctor()
        if error.name is None or error.name.split(".")[0] in ("pipeline", "tools_service"):
            raise
        print(
            f"python -m pipeline: the package {error.name} is not installed for {sys.executable}; use the "
            "Python of the environment that has it (.venv/bin/python -m pipeline, made by `make setup`); "
            "`python -m pipeline doctor` lists what is missing",
            file=sys.stderr,
        )
        return 2
    return run()


def _doctor() -> int:
    from pipeline.cli.doctor.run import doctor

    try:
        return doctor(sys.argv[2:])
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
