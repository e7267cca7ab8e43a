"""A file system that is too small, for output folders: a tmpfs, which needs the right to mount."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs at `folder` that has `size` bytes until `enlarge` is called."""

    folder: Path
    size: int

    def enlarge(self) -> None:
        """Make room."""
        subprocess.run(["mount", "-o", "remount,size=1G", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount it for the length of the block."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield SmallDisk(folder, size)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), 2**20):
                pass
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


def disk_bytes(path: Path) -> int:
    """What a file, or all files of a folder, take on such a file system."""
    if path.is_dir():
        return sum(map(disk_bytes, path.iterdir()))
    return -(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES
