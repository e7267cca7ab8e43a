"""python -m tools_service COMMAND: the same as the installed command `toolformer-tools` (commands.py).

Where packages are missing it says which one, and what to do.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; return the exit code."""
    try:
        from tools_service.commands import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "tools_service":
            raise
        print(
            f"python -m tools_service: the package {error.name} is not installed for {sys.executable}; use "
            "the Python of the environment that has it (source .venv/bin/activate; `make setup` makes it)",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
