"""Keep freed memory for the next forward, instead of giving it back to the system.

glibc returns large blocks to the system when they are freed. Every forward of a model then asks for
its activations anew, and the system fills each page with zeros. Here: for the life of the process,
freed memory stays with it, which keeps the size that it reached.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT_BLOCK = 32 * 2**20  # bytes; glibc takes no more
_KEPT = 512 * 2**20  # bytes


def keep_freed_memory() -> bool:
    """Let the allocator of this process keep what is freed; False if it is not glibc's, or set already."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
    return False
