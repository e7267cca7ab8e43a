"""Ends what a killed process leaves of its local Ray.

Ray's servers end with the process that started them, but the raylet's two agents first wait for the
servers: most of a minute. In: the id of the starting process on the command line, and a pipe from it as
standard input. When the pipe closes, that process has ended, and what its raylets started is killed.
"""

from __future__ import annotations

import functools
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_CHECK_S = 0.5  # at first; the agents start with their raylet
_LONGEST_CHECK_S = 5.0  # looking at all processes of a machine takes CPU time from the run


@functools.cache
def start_reaper() -> subprocess.Popen[bytes]:
    """Watch over this process, once; the watch ends with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools_service.runtime.reaper", str(os.getpid())],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the terminal's processes is not for this one
    )


def reap(owner: int) -> None:
    """Wait for the end of standard input, then kill the descendants that `owner`'s raylets had."""
    watched: set[psutil.Process] = set()
    ended, check_s = False, _CHECK_S
    while not ended:
        ended = bool(select.select([sys.stdin], [], [], check_s)[0])
        check_s = min(1.1 * check_s, _LONGEST_CHECK_S)
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(owner).children():
                if child.name() == "raylet":
                    watched.update(child.children(recursive=True))
        watched = {process for process in watched if process.is_running()}
    for process in watched:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    reap(int(sys.argv[1]))
