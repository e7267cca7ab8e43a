"""Converts pickled weights to safetensors, in a process of its own: `python -m pipeline.fetching.unpickling`.

In, on standard input: a `Job` as JSON. Out: shards in the job's folder, and on standard output a `Result` as
JSON, with their index. The files are a stranger's. torch unpickles them with `weights_only`, which builds
tensors and calls nothing; beside that, this process has no network where the system allows it, none of the
user's tokens, a limit of memory, and a hook that refuses to open a socket, start a process or write a file.
Types, shapes and bits of the tensors stay. conversion.py is the other side.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000  # flags of unshare(2)
_WORKING_BYTES = 2 * 2**30  # beside the file itself and the shard that is written
_MOST_COPIES = 4  # tensors may share bytes of a file; in all, no more than this many times the file
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.system",
    "ctypes.",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Job:
    """The files to convert, in order; where to; and names that repeat the tensor of another name (tied)."""

    files: list[str]
    folder: str
    tied: dict[str, str]
    indexed: dict[str, str] | None
    shard_bytes: int


@dataclass(frozen=True)
class Result:
    """What came of a job: an error of half a sentence, or the index of the shards if there are several."""

    error: str | None = None
    index: dict[str, Any] | None = None


class UnfitWeightsError(Exception):
    """Files that are not converted. The message is half a sentence that names the file."""


def main() -> None:
    """Do the job on standard input."""
    job = Job(**json.loads(sys.stdin.read()))
    _leave_network()
    import safetensors.torch  # before the hook: imports open files
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    largest = max(Path(file).stat().st_size for file in job.files)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limit = used + 2 * largest + 2 * job.shard_bytes + _WORKING_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(_refuse)
    try:
        result = Result(index=_convert(job, torch, safetensors.torch))
    except UnfitWeightsError as error:
        result = Result(error=str(error))
    except MemoryError:
        result = Result(error="it needs more memory than its size explains")
    print(json.dumps(asdict(result)))


def _leave_network() -> None:
    """Have no network from here on, where the system lets a process without rights do so."""
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_NETWORK) == 0:
        return
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NETWORK) == 0:
        # A system may forbid these (AppArmor on Ubuntu); files are accessible without them, too.
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        with suppress(OSError):
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """The hook of sys.addaudithook: end the process at what no conversion does."""
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if event.startswith(_FORBIDDEN) or is_write:
        raise UnfitWeightsError(f"something in it would {event} {str(arguments[:1])[:100]}")


def _convert(job: Job, torch: Any, safetensors_torch: Any) -> dict[str, Any] | None:
    """Write the shards; return their index if there are several."""
    names: dict[str, str] = {}
    plans = []
    for file in job.files:  # names and sizes first: wrong files cost no disk
        state = _load(Path(file), torch)
        if twice := names.keys() & state.keys():
            raise UnfitWeightsError(f"{Path(file).name} and {names[min(twice)]} both hold {min(twice)}")
        repeats = {name for name in state if _repeats(state, name, job.tied)}
        kept = {name: tensor.nbytes for name, tensor in state.items() if name not in repeats}
        if sum(kept.values()) > _MOST_COPIES * Path(file).stat().st_size:
            raise UnfitWeightsError(f"{Path(file).name} describes {sum(kept.values()):,} bytes and has fewer")
        names |= dict.fromkeys(state, Path(file).name)
        plans.append(list(_shards(kept, job.shard_bytes)))
        del state
    if missing := sorted((job.indexed or {}).keys() - names.keys()):
        raise UnfitWeightsError(f"no file holds {missing[0]}, which the index names")

    count, number, total = sum(map(len, plans)), 0, 0
    weight_map: dict[str, str] = {}
    for file, groups in zip(job.files, plans, strict=True):
        state = _load(Path(file), torch)
        for group in groups:
            number += 1
            name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            tensors = _own_memory({tensor: state[tensor] for tensor in group})
            try:
                safetensors_torch.save_file(tensors, Path(job.folder, name), metadata={"format": "pt"})
            except Exception as error:  # a type that safetensors lacks, or the disk
                raise UnfitWeightsError(f"{Path(file).name}: {' '.join(str(error).split())[:200]}") from error
            weight_map |= dict.fromkeys(group, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
            del tensors
        del state
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return index if count > 1 else None


def _load(file: Path, torch: Any) -> dict[str, Any]:
    """The tensors of a file by name, mapped into memory where its form allows that."""
    is_zip = _is_sound_zip(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise UnfitWeightsError(f"{file.name} {_asked_for(str(error))}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file makes anything fail
        if "allocate memory" in str(error):
            raise MemoryError from error
        shown = " ".join(str(error).split())[:200]
        raise UnfitWeightsError(f"{file.name} is cut off or damaged: {shown}") from error
    if not isinstance(state, dict) or not state:
        raise UnfitWeightsError(f"{file.name} holds no tensors by name, but a {type(state).__name__}")
    return {name: _checked(file, name, tensor, torch) for name, tensor in state.items()}


def _is_sound_zip(file: Path) -> bool:
    """Whether a file has the present form, a zip without compression; False for the form of old versions."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            if opened.read(4) == b"PK\3\4":
                raise UnfitWeightsError(f"{file.name} is cut off: the end of the zip file is missing")
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UnfitWeightsError(f"{file.name} is cut off or damaged: {error}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UnfitWeightsError(f"{file.name} is compressed inside, which torch.save never does")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise UnfitWeightsError(f"{file.name} says of its parts that they are larger than itself")
    return True


def _asked_for(message: str) -> str:
    """What a pickle asks for beside tensors, as the end of a sentence."""
    match = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", message)
    if match:
        return f"asks for {match[1]}, so it is not weights alone; nothing of it was run"
    return f"is no file of weights alone: {' '.join(message.split())[:200]}"


def _checked(file: Path, name: object, tensor: Any, torch: Any) -> Any:
    """The tensor, without gradient. Raises UnfitWeightsError if it is none, or has no bytes of its own."""
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        kind = type(tensor).__name__
        raise UnfitWeightsError(f"{file.name}: {str(name)[:80]!r} is a {kind}, not a tensor with a name")
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UnfitWeightsError(f"{file.name}: {name[:80]} is sparse, quantized or without values")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        shape = list(tensor.shape)
        raise UnfitWeightsError(
            f"{file.name}: {name[:80]} has the shape {shape}, and fewer numbers than that"
        )
    return tensor


def _repeats(state: dict[str, Any], name: str, tied: dict[str, str]) -> bool:
    """Whether the model ties this tensor to another name that has the very same bytes of the file."""
    source = tied.get(name)
    return source in state and _place(state[name]) == _place(state[source])


def _place(tensor: Any) -> tuple[Any, ...]:
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _shards(sizes: dict[str, int], most: int) -> Iterator[list[str]]:
    """The names, in order, in lists of at most `most` bytes; a larger tensor is alone."""
    shard: list[str] = []
    size = 0
    for name, own in sizes.items():
        if shard and size + own > most:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += own
    yield shard


def _own_memory(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors, contiguous, those that share memory copied: safetensors has no views."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone().contiguous() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return own


if __name__ == "__main__":
    main()
